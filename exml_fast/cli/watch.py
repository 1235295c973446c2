"""What a command shows while it runs: lines or bars on stderr, and with ``--watch`` a page that refreshes itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

import typer
from torch import Tensor

from exml_fast.cli.progress import Reporter
from exml_fast.report.film import Film
from exml_fast.report.live import LivePage
from exml_fast.reproduction.provenance import command_line

__all__ = ["Viewer"]


class Viewer(Reporter):
    """A :class:`Reporter` that also keeps a film of the images, and with ``watch`` rewrites ``out/report/index.html``.

    Args:
        out: the folder of the run.
        title: of the page.
        watch: write the page.
        followed: whether the command writes a page of its results in the end.
        tensorboard: as :class:`Reporter`.
    """

    def __init__(
        self, out: Path, title: str, *, watch: bool, followed: bool = True, tensorboard: Path | None = None
    ) -> None:
        super().__init__(tensorboard=tensorboard)
        self.film = Film()
        self._page = None
        if watch:
            self._page = LivePage(out / "report" / "index.html", title, command_line(), followed=followed)

    def __enter__(self) -> Self:
        if self._page is not None:
            self._page.__enter__()
            typer.echo(f"page, while the command runs: {self._page.path}", err=True)
        super().__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        if self._page is not None:
            self._page.__exit__(kind, error, trace)

    def __call__(self, stage: str, step: int, total: int, terms: dict[str, float]) -> None:
        super().__call__(stage, step, total, terms)
        if self._page is not None:
            self._page(stage, step, total, terms)

    def images(self, stage: str, step: int, total: int, make: Callable[[], Tensor]) -> None:
        """Keep the images for the page; see :data:`exml_fast.progress.Progress`."""
        super().images(stage, step, total, make)
        self.film.images(stage, step, total, make)
        if self._page is not None:
            self._page.images(stage, step, total, make)
