"""One self-contained HTML page that shows what a run did."""

from exml_fast.report.page import Report, Row, Samples, render, write_picture, write_report

__all__ = ["Report", "Row", "Samples", "render", "write_picture", "write_report"]
