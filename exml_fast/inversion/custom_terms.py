"""Terms of the user's own beside those of a recipe."""

from __future__ import annotations

import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from exml_fast.inversion.objective import Step, Term
from exml_fast.validation import require

__all__ = ["CustomTerm", "checked_terms", "identity_of"]


@dataclass(frozen=True)
class CustomTerm:
    """A loss of your own, for ``terms`` of :func:`exml_fast.inversion.invert` and :class:`Synthesizer`.

    Args:
        function: called with a :class:`exml_fast.inversion.Step` in every step. It returns a value for each image,
            (N,), or a scalar for the batch, differentiable by ``step.images``. It must depend on the step alone: an
            interrupted run then continues to the same bits. On CUDA it is captured as a graph, so it must not wait for
            the device (``item``, ``print`` of a tensor, branches on values).
        weight: factor in the total; a negative one maximises the term.
        name: in the history; the function's own name when None.
        couples: False if the function returns a value for each image that does not depend on the other images. Stopped
            images may then leave the batch.

    Raises:
        ValueError: for a weight that is not finite, or a name that is missing.
    """

    function: Callable[[Step], Tensor]
    weight: float = 1.0
    name: str = ""
    couples: bool = True

    def __post_init__(self) -> None:
        require(callable(self.function), "function", "a function of a step", self.function)
        number = isinstance(self.weight, int | float) and not isinstance(self.weight, bool)
        require(number and abs(self.weight) < float("inf"), "weight", "a finite number", self.weight)
        if not self.name:
            own = getattr(self.function, "__name__", type(self.function).__name__)
            if own == "<lambda>":
                raise ValueError("terms: a lambda has no name: use a def, or CustomTerm(function, name=…)")
            object.__setattr__(self, "name", own)

    def __call__(self, step: Step) -> Tensor:
        """(N,) or a scalar. ValueError naming the term for anything else."""
        value: Any = self.function(step)
        count = len(step.images)
        shapes = [(count,)] if not self.couples else [(count,), ()]
        if not isinstance(value, Tensor) or tuple(value.shape) not in shapes or not value.is_floating_point():
            expected = f"one value for each image, ({count},)" + (", or a scalar" if self.couples else "")
            found = f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"term {self.name!r} must return {expected}, got {found}")
        return value


def checked_terms(given: Sequence[Term | Callable[[Step], Tensor]]) -> tuple[Term, ...]:
    """``given`` with functions as :class:`CustomTerm`; ValueError for a term without a name, or a taken name."""
    if callable(given) or isinstance(given, str):
        raise ValueError(f"terms must be a list of functions or terms, got {given!r:.200}")
    made = list[Term]()
    for term in given:
        whole: Any = term
        if not all(hasattr(term, name) for name in ("name", "weight", "couples")):
            require(callable(term), "terms", "functions or terms", term)
            whole = CustomTerm(whole)
        require(whole.name != "loss", "terms", "without the name 'loss', which is the weighted sum", whole.name)
        made.append(whole)
    return tuple(made)


def identity_of(terms: Sequence[Term]) -> list[Any]:
    """What a checkpoint knows of the terms: names, weights, the code of functions, and the tensors of modules."""
    return [[term.name, float(term.weight), term.couples, *_code(getattr(term, "function", term))] for term in terms]


def _code(function: Any) -> list[Any]:
    if isinstance(function, nn.Module):
        return [repr(function), *function.state_dict().values()]
    code = getattr(function, "__code__", None) or getattr(type(function).__call__, "__code__", None)
    qualified = getattr(function, "__qualname__", type(function).__qualname__)
    if not isinstance(code, types.CodeType):
        return [qualified]
    constants = [constant for constant in code.co_consts if isinstance(constant, int | float | str | None)]
    return [qualified, code.co_code.hex(), repr(constants), repr(code.co_names)]
