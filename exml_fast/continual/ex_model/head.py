"""The logits of an ex-model: which class each stands for, and after which expert it is known."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["Head"]


class Head:
    """K logits for the classes of a stream.

    Args:
        units: global class id of each logit.
        experiences: global ids of the classes of each expert.
        device: where the tensors are that the methods return.

    Raises:
        ValueError: if a class of an expert is not among ``units``.
    """

    def __init__(self, units: Sequence[int], experiences: Sequence[Sequence[int]], device: torch.device) -> None:
        self.units, self.experiences, self.device = list(units), experiences, device
        self.position = {unit: j for j, unit in enumerate(self.units)}
        for i, classes in enumerate(experiences):
            if missing := [c for c in classes if c not in self.position]:
                raise ValueError(f"expert {i + 1} was trained on classes {missing}, not among the units {self.units}")

    def known(self, experts: int) -> list[int]:
        """Classes of the first ``experts`` experts, ascending."""
        return sorted({c for classes in self.experiences[:experts] for c in classes})

    def positions(self, classes: Sequence[int]) -> list[int]:
        """Logits of these classes."""
        return [self.position[c] for c in classes]

    def mask(self, classes: Sequence[int]) -> Tensor:
        """(K,) bool: the logits of these classes."""
        mask = torch.zeros(len(self.units), dtype=torch.bool, device=self.device)
        mask[self.positions(classes)] = True
        return mask

    def positions_of(self, labels: Tensor) -> Tensor:
        """Logits (N,) int64 of labels (N,), which are global ids."""
        place = torch.full((max(self.units) + 1,), -1, device=self.device)
        place[torch.tensor(self.units, device=self.device)] = torch.arange(len(self.units), device=self.device)
        return place[labels]

    def classes_of(self, positions: Tensor) -> Tensor:
        """Global ids (N,) int64 of logits (N,): the inverse of :meth:`positions_of`."""
        return torch.tensor(self.units, device=self.device)[positions]

    def of_tasks(self) -> Tensor:
        """(K, K) bool: row j marks the logits of the experience that the class of logit j belongs to.

        ValueError if two experiences share a class: the task of such a class is ambiguous.
        """
        heads = torch.zeros(len(self.units), len(self.units), dtype=torch.bool, device=self.device)
        for number, classes in enumerate(self.experiences):
            members = torch.tensor(self.positions(classes), device=self.device)
            if shared := [self.units[j] for j in members.tolist() if heads[j].any()]:
                raise ValueError(
                    f"task_labels: expert {number + 1} shares the classes {shared} with an earlier one: the task of "
                    "such a class is ambiguous"
                )
            heads[members[:, None], members] = True
        return heads
