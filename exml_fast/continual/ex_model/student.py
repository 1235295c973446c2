"""The ex-model's network while it learns, and as it was after the expert before."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from exml_fast.continual.ex_model.config import OptimizerConfig
from exml_fast.continual.expert import Expert
from exml_fast.engine.substitution import twin
from exml_fast.training import placed

__all__ = ["Student"]


class Student:
    """A network, its optimiser, and a frozen copy of what it had learned before the current expert.

    Args:
        model: the network, which is trained in place; ``architecture`` and ``arguments`` name it.
        config: of the optimiser.
        device: where it learns.
    """

    def __init__(
        self,
        model: nn.Module,
        architecture: str,
        arguments: dict[str, Any],
        config: OptimizerConfig,
        device: torch.device,
    ) -> None:
        self.model, self.architecture, self.arguments, self._config = model.to(device), architecture, arguments, config
        # Faster layers that share the parameters: training this network trains the model.
        self.network = twin(placed(self.model, device))
        self.initial = {name: value.detach().clone() for name, value in self.model.state_dict().items()}
        self.optimizer = config.of(self.model.parameters())
        self.previous: nn.Module | None = None

    def is_like(self, expert: Expert, units: list[int]) -> bool:
        """Whether an expert has the same architecture, arguments and units."""
        card = expert.card
        same = card.architecture == self.architecture and card.arguments == self.arguments
        return same and list(expert.units) == units

    def begin(self, reset: bool, first: Expert | None) -> None:
        """Start to learn from an expert: from the initial weights (``reset``), or as a copy of the expert ``first``."""
        if reset:
            self.model.load_state_dict(self.initial)
        if first is not None:
            self.model.load_state_dict(first.model.state_dict())
        self.optimizer = self._config.of(self.model.parameters())

    def remember(self) -> None:
        """Keep the network as it is now, as ``previous``."""
        self.previous = copy.deepcopy(self.network).eval().requires_grad_(False)

    def plain_previous(self) -> nn.Module | None:
        """``previous`` with the layers of ``model``, which the engine can fuse; None before the second expert."""
        if self.previous is None:
            return None
        plain = copy.deepcopy(self.model)
        plain.load_state_dict(self.previous.state_dict())
        return plain

    def state_dict(self) -> dict[str, Any]:
        """A copy of everything that changes."""
        model: dict[str, Tensor] = self.model.state_dict()
        return {
            "initial": self.initial,
            "model": {name: value.detach().clone() for name, value in model.items()},
            "previous": None if self.previous is None else self.previous.state_dict(),
            "optimizer": copy.deepcopy(self.optimizer.state_dict()),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`."""
        self.initial = state["initial"]
        self.model.load_state_dict(state["model"])
        if state["previous"] is not None:
            self.remember()
            assert self.previous is not None
            self.previous.load_state_dict(state["previous"])
        self.optimizer.load_state_dict(state["optimizer"])
