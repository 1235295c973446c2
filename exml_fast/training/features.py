"""What the layers of a teacher compute, for a student that has some of them (Romero 2015, without a regressor)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from exml_fast.engine.statistics import bn_layers
from exml_fast.engine.substitution import copied
from exml_fast.training.precision import forward

__all__ = ["FeatureDistance", "shared_layers"]


def shared_layers(teacher: nn.Module, student: nn.Module) -> list[str]:
    """Names of the BatchNorms that both have, with as many channels: those of a network and of its pruned copy."""
    widths = {name: norm.num_features for name, norm in bn_layers(student)}
    return [name for name, norm in bn_layers(teacher) if widths.get(name) == norm.num_features]


class FeatureDistance:
    """Mean over the layers that both networks share of ‖student − teacher‖² / ‖teacher − mean‖², of their outputs.

    Of a layer that is called several times, the last call counts; a layer that only one network calls does not. Use as
    a context; it leaves no hooks on ``student``. ``student`` may be copied within the context: a copy that runs reports
    its outputs too.

    Args:
        teacher: in evaluation mode; it is not changed.
        student: the network that learns.
        precision: of the teacher, "float32" or "bfloat16".

    Raises:
        ValueError: if the networks share no layer.
    """

    def __init__(self, teacher: nn.Module, student: nn.Module, precision: str) -> None:
        self.layers = shared_layers(teacher, student)
        if not self.layers:
            raise ValueError(
                "lambda_features must be 0 here: no BatchNorm of the student has the name and width of a teacher's"
            )
        self._teacher, self._precision = copied(teacher), precision
        self._wanted: dict[str, Tensor] = {}
        self._found: dict[str, Tensor] = {}
        for name in self.layers:
            self._teacher.get_submodule(name).register_forward_hook(_keeping(self._wanted, name))
        self._handles = [
            student.get_submodule(name).register_forward_hook(_keeping(self._found, name)) for name in self.layers
        ]

    def __enter__(self) -> FeatureDistance:
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    @torch.no_grad()
    def answers(self, images: Tensor) -> Tensor:
        """The teacher's logits (N, K), at least float32, of normalised images (N, C, H, W)."""
        return forward(self._teacher, images, self._precision)

    def __call__(self) -> Tensor:
        """The distance, a scalar, after a pass of the student on the images of the last :meth:`answers`."""
        distances = []
        # A teacher in evaluation mode leaves out auxiliary heads, which a student in training mode has.
        for name in (name for name in self.layers if name in self._wanted and name in self._found):
            wanted, found = self._wanted[name].float(), self._found[name].float()
            distances.append((found - wanted).square().mean() / wanted.var(correction=0).clamp_min(1e-12))
        self._wanted.clear()
        self._found.clear()
        return torch.stack(distances).mean()


def _keeping(outputs: dict[str, Tensor], name: str) -> Callable[[Any, Any, Tensor], None]:
    # A function, unlike a bound method, stays the same one when its module is copied.
    def keep(_module: Any, _inputs: Any, output: Tensor) -> None:
        outputs[name] = output

    return keep
