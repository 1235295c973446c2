"""Reports of runs: self-contained HTML pages, charts and pictures."""

from exml_fast.report.page import Report, Row, Samples, render, write_picture, write_report

__all__ = ["Report", "Row", "Samples", "render", "write_picture", "write_report"]
