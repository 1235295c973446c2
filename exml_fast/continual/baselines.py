"""The paper's baselines: ensembles of all experts, and one model of averaged parameters (Carta 2022, sec. 5).

All predict global class ids from normalised images; all but ParameterAverage keep the whole stream in memory.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from exml_fast.continual.expert import Card, Expert
from exml_fast.data import InputSpec

__all__ = [
    "CannotMerge", "DifferentNetworks", "EnsembleAverage", "MinEntropy", "Oracle", "ParameterAverage", "require_same",
]  # fmt: skip


class CannotMerge(ValueError):
    """The parameters of these networks cannot be merged into one network."""


class DifferentNetworks(CannotMerge):
    """The parameters of different networks cannot be averaged."""


class _Ensemble:
    def __init__(self, experts: Iterable[Expert]) -> None:
        self.experts = list(experts)
        if not self.experts:
            raise ValueError("experts must hold at least one expert")

    @property
    def input_spec(self) -> InputSpec:
        """The first expert's input; the others see images converted from it."""
        return self.experts[0].input_spec

    def _for(self, expert: Expert, images: Tensor) -> Tensor:
        return expert.input_spec.convert(images, self.input_spec)

    @property
    def units(self) -> list[int]:
        """Sorted global ids of all units of all experts."""
        return sorted({unit for expert in self.experts for unit in expert.units})


class Oracle(_Ensemble):
    """The prediction of the expert whose experience the task label names, among its classes."""

    def predict(self, images: Tensor, task: int | None = None) -> Tensor:
        """Global ids (N,) of images that all come from experience ``task`` (an index of ``experts``)."""
        if task is None or not 0 <= task < len(self.experts):
            raise ValueError(f"task must be an experience, 0 to {len(self.experts) - 1}, got {task!r}")
        return self.experts[task].predict(self._for(self.experts[task], images))


class EnsembleAverage(_Ensemble):
    """Average of the experts' logits (the paper's outputs); each unit is averaged over the experts that have it.

    With ``probabilities`` the softmax over each head is averaged instead of the logits.
    """

    def __init__(self, experts: Iterable[Expert], *, probabilities: bool = False) -> None:
        super().__init__(experts)
        self.probabilities = probabilities

    def outputs(self, images: Tensor) -> Tensor:
        """(N, len(units)) averages."""
        units = self.units
        place = {unit: j for j, unit in enumerate(units)}
        total = torch.zeros(len(images), len(units))
        votes = torch.zeros(len(units))
        for expert in self.experts:
            logits = expert.logits(self._for(expert, images)).cpu()
            at = torch.tensor([place[u] for u in expert.units])
            total[:, at] += torch.softmax(logits, 1) if self.probabilities else logits
            votes[at] += 1
        return total / votes

    def predict(self, images: Tensor, task: int | None = None) -> Tensor:
        """Global ids (N,); ``task`` is ignored."""
        return torch.tensor(self.units)[self.outputs(images).argmax(1)]


class MinEntropy(_Ensemble):
    """For each image, the prediction of the expert whose softmax over its units has the least entropy."""

    def predict(self, images: Tensor, task: int | None = None) -> Tensor:
        """Global ids (N,); ``task`` is ignored."""
        entropies, predictions = [], []
        for expert in self.experts:
            log_p = torch.log_softmax(expert.logits(self._for(expert, images)).cpu(), 1)
            entropies.append(-(log_p.exp() * log_p).sum(1))
            predictions.append(torch.tensor(expert.units)[log_p.argmax(1)])
        best = torch.stack(entropies).argmin(0)
        return torch.stack(predictions).gather(0, best[None])[0]


class ParameterAverage:
    """One model whose weights are the mean of the experts' (integer buffers: the largest).

    ValueError naming both if two experts differ in architecture, arguments or units.
    """

    def __init__(self, experts: Iterable[Expert]) -> None:
        count, total = 0, {}
        first: Card | None = None
        model: nn.Module
        classes: set[int] = set()
        for expert in experts:
            card, count = expert.card, count + 1
            state = {k: v.detach().cpu() for k, v in expert.model.state_dict().items()}
            if first is None:
                model = copy.deepcopy(expert.model).cpu()
                first, total = card, {k: v.double() if v.is_floating_point() else v for k, v in state.items()}
            else:
                require_same(_shared(first), _shared(card), count)
                if {k: v.shape for k, v in state.items()} != {k: v.shape for k, v in total.items()}:
                    raise DifferentNetworks(f"the weights of experts 1 and {count} differ in names or shapes")
                for key, value in state.items():
                    floating = value.is_floating_point()
                    total[key] = total[key] + value.double() if floating else torch.maximum(total[key], value)
            classes |= set(card.classes)
        if first is None:
            raise ValueError("experts must hold at least one expert")
        like = model.state_dict()
        mean = {k: (v / count if v.is_floating_point() else v).to(like[k].dtype) for k, v in total.items()}
        model.load_state_dict(mean)
        card = Card(
            first.architecture, first.arguments, first.units, tuple(u for u in first.units if u in classes),
            first.class_names, first.input_spec, {"method": "parameter average", "experts": count},
        )  # fmt: skip
        self.expert = Expert(model.eval(), card)

    @property
    def input_spec(self) -> InputSpec:
        """The input all experts share."""
        return self.expert.input_spec

    def predict(self, images: Tensor, task: int | None = None) -> Tensor:
        """Global ids (N,); ``task`` is ignored."""
        return self.expert.predict(images)


def require_same(first: Mapping[str, Any], other: Mapping[str, Any], number: int) -> None:
    """DifferentNetworks naming the first of these values in which expert ``number`` differs from expert 1."""
    for name, mine in first.items():
        if mine != other[name]:
            raise DifferentNetworks(
                f"parameters of different networks cannot be averaged: {name} of expert 1 is {mine}, "
                f"of expert {number} {other[name]}"
            )


def _shared(card: Card) -> dict[str, Any]:
    return {name: getattr(card, name) for name in ("architecture", "arguments", "units", "input_spec")}
