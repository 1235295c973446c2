"""Executes a notebook and writes it, with its outputs, as a page of the documentation site."""

from __future__ import annotations

import base64
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

SECONDS = 600


def write_page(notebook: Path) -> Path:
    """Execute ``notebook`` and write ``<stem>.md`` and its pictures beside it, unless they are newer; the page.

    Raises:
        CellExecutionError: if a cell fails.
    """
    page = notebook.with_suffix(".md")
    if page.exists() and page.stat().st_mtime > notebook.stat().st_mtime:
        return page
    content = nbformat.read(notebook, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        resources = {"metadata": {"path": folder}}
        NotebookClient(content, timeout=SECONDS, kernel_name="python3", resources=resources).execute()
    parts = []
    for number, cell in enumerate(content.cells):
        if cell.cell_type == "markdown":
            parts.append(cell.source)
        else:
            parts.append(f"```python\n{cell.source}\n```")
            parts += [_shown(output, page, f"{number}-{place}") for place, output in enumerate(cell.outputs)]
    page.write_text("\n\n".join(filter(None, parts)) + "\n", encoding="utf-8")
    return page


def _shown(output: Any, page: Path, name: str) -> str:
    """An output of a cell as Markdown; empty for messages on stderr."""
    data = output.get("data", {})
    if "image/png" in data:
        picture = page.with_name(f"{page.stem}-{name}.png")
        picture.write_bytes(base64.b64decode(data["image/png"]))
        return f"![Output of the cell above]({picture.name})"
    text = data.get("text/plain") or (output.get("text", "") if output.get("name") == "stdout" else "")
    return f"```text\n{text.rstrip()}\n```" if text.strip() else ""
