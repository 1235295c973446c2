"""What a network computes for a few images, which every faster copy of it must compute, too."""

from __future__ import annotations

import copy
import functools
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from exml_fast.data import InputSpec
from exml_fast.engine.freezing import HOOKS, device_of, dtype_of, probe
from exml_fast.engine.statistics import Tape, bn_layers

__all__ = ["Original"]

# Largest allowed difference of the logits, relative to the largest logit, between a network and its copy. The bound for
# bfloat16 lies far above rounding and refuses only broken copies.
TRACING_ERROR, HALF_ERROR = 1e-3, 0.5
# Of the gradient, relative to its norm: rounding may move a value past the kink of a ReLU.
GRADIENT_ERROR = 0.05
# A copy may differ by this multiple of the network's own rounding error.
OWN_ERRORS = 4


class Original:
    """The logits, the gradient and the calls of a network for two images.

    Hooks that change neither logits nor gradient only look on. They are removed, so that they do not see the calls of a
    copy of the network; to find this out, they are called once.

    Args:
        model: a frozen copy of the network.
        spec: its input.
        tape: on which observed layers record themselves; None records the calls of BatchNorms with running statistics.

    Attributes:
        example: normalised images (2, C, H, W).
        logits: (2, K).
        calls: the layer's name of each call whose statistics are wanted.
        hooked: whether hooks change what the network computes; they are still there.

    Raises:
        ValueError: if the network rejects the images, or does not return logits.
    """

    def __init__(self, model: nn.Module, spec: InputSpec, tape: Tape | None = None) -> None:
        self.model, self.spec, self.dtype = model, spec, dtype_of(model)
        images = torch.randn(3, *spec.shape, generator=torch.Generator().manual_seed(0))
        self._images = images.to(device_of(model), self.dtype)
        self.example = self._images[:2]
        hooks = _take_hooks(model)
        plain = self._plain() if hooks else None
        _put_hooks(hooks)
        with _recorded_calls(model) as calls, (tape or Tape()).recording() as entries:
            self.logits, self.gradient = self._pass()
        self.calls = calls if tape is None else [entry.name for entry in entries]
        same = plain is not None and all(map(_equal, plain, (self.logits, self.gradient)))
        self.hooked = bool(hooks) and not same
        if not self.hooked:
            _take_hooks(model)

    def difference(self, made: Callable[[Tensor], Tensor], traced: bool = False, half: bool = False) -> str:
        """What is wrong with a pass of a copy, forward and back: an error or another result; empty if nothing is.

        Args:
            made: gives the copy's logits.
            traced: compare the gradient and the logits of three images, too: tracing may lose ``torch.no_grad``, and
                what depends on the number of images.
            half: some of the copy's layers compute in bfloat16.
        """
        try:
            logits, gradient = _run(made, self.example)
            three = made(self._images).detach() if traced else None
        except Exception as failure:  # the network's own code may raise anything, for mixed dtypes for example
            return (str(failure).strip() or type(failure).__name__).splitlines()[0][:200]
        half = half or self.dtype == torch.bfloat16
        largest = float(self.logits.abs().nan_to_num().max())
        if not self._near(logits, self.logits, half):
            return f"its logits differ by {float((logits - self.logits).abs().max()):.3g} of {largest:.3g}"
        if three is None:
            return ""
        expected = self._three
        if expected is not None and (expected.shape != three.shape or not self._near(three, expected, half)):
            return "its logits differ for another number of images"
        if half or (self.gradient is None and gradient is None):
            return ""
        nothing = torch.zeros_like(self.example)
        wanted, found = (nothing if each is None else each for each in (self.gradient, gradient))
        error = float((found - wanted).norm() / wanted.norm().clamp_min(1e-30))
        if error > max(GRADIENT_ERROR, OWN_ERRORS * self._own_errors[1]):
            return f"its gradient differs by {100 * error:.0f} %"
        return ""

    def _near(self, found: Tensor, expected: Tensor, half: bool) -> bool:
        largest = float(self.logits.abs().nan_to_num().max())
        allowed = largest * (HALF_ERROR if half else TRACING_ERROR)

        def near() -> bool:
            return torch.allclose(found.to(expected.dtype), expected, rtol=0, atol=allowed, equal_nan=True)

        if not near():
            allowed = max(allowed, OWN_ERRORS * self._own_errors[0])
        return near()

    @functools.cached_property
    def _three(self) -> Tensor | None:
        """The logits of three images; None for a network that takes no odd number of them."""
        try:
            with torch.no_grad():
                found: Tensor = self.model(self._images)
                return found
        except Exception:  # the network's own code
            return None

    @functools.cached_property
    def _own_errors(self) -> tuple[float, float]:
        """By how much rounding changes the logits, and the gradient relative to its norm; zero if it is unknown."""
        try:
            logits, gradient = _run(copy.deepcopy(self.model).double(), self.example.double())
        except Exception:  # a network that does not run in float64
            return 0.0, 0.0
        error = float((logits - self.logits).abs().nan_to_num().max())
        if gradient is None or self.gradient is None:
            return error, 0.0
        return error, float((gradient - self.gradient).norm() / gradient.norm().clamp_min(1e-30))

    def _plain(self) -> tuple[Tensor, Tensor | None] | None:
        """Logits and gradient without the hooks; None where the network does not run without them."""
        try:
            return self._pass()
        except ValueError:
            return None

    def _pass(self) -> tuple[Tensor, Tensor | None]:
        return _run(lambda images: probe(self.model, images, self.spec, gradient=True), self.example)


@torch.enable_grad()
def _run(made: Callable[[Tensor], Tensor], images: Tensor) -> tuple[Tensor, Tensor | None]:
    """The logits, and the gradient of a weighted sum of them; None where they do not depend on the images."""
    x = images.detach().clone().requires_grad_()
    logits = made(x)
    if not logits.requires_grad:
        return logits, None
    weights = torch.linspace(-1, 1, logits.shape[1], dtype=logits.dtype, device=logits.device)
    (gradient,) = torch.autograd.grad((logits * weights).sum(), x, allow_unused=True)
    return logits.detach(), gradient


def _equal(a: Tensor | None, b: Tensor | None) -> bool:
    if a is None or b is None:
        return a is b
    return torch.allclose(a, b, rtol=1e-5, atol=1e-7 * float(b.abs().nan_to_num().max()), equal_nan=True)


@contextmanager
def _recorded_calls(model: nn.Module) -> Iterator[list[str]]:
    """Names of the BatchNorms with running statistics that run inside the block, in the order of the calls."""
    calls: list[str] = []
    handles = [
        module.register_forward_pre_hook(lambda *_, name=name: calls.append(name))
        for name, module in bn_layers(model)
        if isinstance(module.running_mean, Tensor)
    ]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


Hooks = list[tuple[nn.Module, str, OrderedDict[int, Any]]]


def _take_hooks(model: nn.Module) -> Hooks:
    """Remove the hooks of all modules."""
    found = [(module, kind, getattr(module, kind)) for module in model.modules() for kind in HOOKS]
    found = [(module, kind, hooks) for module, kind, hooks in found if hooks]
    for module, kind, _ in found:
        setattr(module, kind, OrderedDict())
    return found


def _put_hooks(hooks: Hooks) -> None:
    for module, kind, each in hooks:
        setattr(module, kind, each)
