"""Reports of runs: self-contained HTML pages, charts and pictures."""

from exml_fast.report.page import (
    Learning,
    Report,
    Row,
    Samples,
    Similarities,
    render,
    write_picture,
    write_report,
)

__all__ = ["Learning", "Report", "Row", "Samples", "Similarities", "render", "write_picture", "write_report"]
