"""Progress of a transfer or an inversion for TensorBoard."""

from __future__ import annotations

import os
from types import TracebackType
from typing import Any, Self

__all__ = ["TensorBoard", "require_tensorboard"]


def require_tensorboard() -> Any:
    """Its SummaryWriter; ImportError where it is missing."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError("TensorBoard needs tensorboard: pip install 'exml_fast[log]'") from error
    return SummaryWriter


class TensorBoard:
    """A context manager that is also a ``progress`` callback: each term becomes a scalar ``<stage>/<term>``.

    A stage that begins again, as each round of generation, goes on where it ended.
    ``then``: another callback that is called too. ImportError where tensorboard is missing.
    """

    def __init__(self, folder: str | os.PathLike[str], then: Any = None) -> None:
        self._writer, self._then = require_tensorboard()(str(folder)), then
        self._reached: dict[str, tuple[int, int]] = {}

    def __call__(self, stage: str, step: int, total: int, terms: dict[str, float]) -> None:
        before, last = self._reached.get(stage, (0, 0))
        if step <= last:
            before += last
        self._reached[stage] = before, step
        for name, value in terms.items():
            self._writer.add_scalar(f"{stage}/{name}", value, before + step)
        if self._then is not None:
            self._then(stage, step, total, terms)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.close()
