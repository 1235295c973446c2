"""The ex-model's network while it learns, and as it was after the expert before."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from exml_fast.checkpoint import fingerprint
from exml_fast.continual.ex_model.batches import Batch
from exml_fast.continual.expert import Expert
from exml_fast.engine.substitution import twin
from exml_fast.progress import Progress
from exml_fast.training import Loop, Training, placed
from exml_fast.training.loop import Loss

__all__ = ["Student"]


class Student:
    """A network, the loop that trains it, and a frozen copy of what it had learned before the current expert.

    Args:
        model: the network, which is trained in place; ``architecture`` and ``arguments`` name it.
        device: where it learns.
    """

    def __init__(self, model: nn.Module, architecture: str, arguments: dict[str, Any], device: torch.device) -> None:
        self.model, self.architecture, self.arguments = placed(model, device), architecture, arguments
        self.initial = {name: value.detach().clone() for name, value in self.model.state_dict().items()}
        self.previous: nn.Module | None = None
        self.loop: Loop[Batch] | None = None
        self._loop_state: dict[str, Any] | None = None

    def is_like(self, expert: Expert, units: list[int]) -> bool:
        """Whether an expert has the same architecture, arguments and units."""
        card = expert.card
        same = card.architecture == self.architecture and card.arguments == self.arguments
        shapes, own = ({n: v.shape for n, v in m.state_dict().items()} for m in (expert.model, self.model))
        return same and shapes == own and list(expert.units) == units

    def fingerprint(self) -> str:
        """SHA-256 of the names, shapes, types and values of the initial weights."""
        shapes = [(name, str(value.dtype), list(value.shape)) for name, value in self.initial.items()]
        return fingerprint(self.initial.values(), shapes)

    def begin(self, reset: bool, first: Expert | None) -> None:
        """Start to learn from an expert: from the initial weights (``reset``), or as a copy of the expert ``first``."""
        if reset:
            self.model.load_state_dict(self.initial)
        if first is not None:
            self.model.load_state_dict(first.model.state_dict())

    def new_loop(
        self,
        loss: Loss[Batch],
        config: Training,
        stage: str,
        progress: Progress | None,
        beside: nn.Module | None = None,
    ) -> Loop[Batch]:
        """The loop for the current expert; it continues where a checkpoint was taken."""
        self.loop = Loop(self.model, loss, config, stage=stage, progress=progress, beside=beside)
        if self._loop_state is not None:
            self.loop.load_state_dict(self._loop_state)
            self._loop_state = None
        return self.loop

    def remember(self) -> None:
        """Keep the network as it is now, as ``previous``; the loop is over."""
        self.loop = None
        self.model.zero_grad(set_to_none=True)  # gradients take as much memory as the weights
        self.previous = copy.deepcopy(twin(self.model)).eval().requires_grad_(False)

    def plain_previous(self) -> nn.Module | None:
        """``previous`` with the layers of ``model``, which the engine can fuse; None before the second expert."""
        if self.previous is None:
            return None
        plain = copy.deepcopy(self.model)
        plain.load_state_dict(self.previous.state_dict())
        return plain

    def state_dict(self) -> dict[str, Any]:
        """A copy of everything that changes; inside the loop its state has the model's."""
        model: dict[str, Tensor] = {} if self.loop is not None else self.model.state_dict()
        return {
            "initial": self.initial,
            "model": {name: value.detach().clone() for name, value in model.items()},
            "previous": None if self.previous is None else self.previous.state_dict(),
            "loop": None if self.loop is None else self.loop.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`."""
        self.initial, self._loop_state = state["initial"], state["loop"]
        self.model.load_state_dict(state["model"] if state["loop"] is None else state["loop"]["model"])
        if state["previous"] is not None:
            self.remember()
            assert self.previous is not None
            self.previous.load_state_dict(state["previous"])
