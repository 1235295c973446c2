"""The steps of one batch: gradient of the objective, Adam, clip."""

from __future__ import annotations

import threading
from collections.abc import Callable

import torch
from torch import Tensor

from exml_fast import ops
from exml_fast.inversion.settings import Optimisation
from exml_fast.inversion.spectrum import NaturalSpectrum

__all__ = ["Stepper"]

# Steps before the capture: in the first ones libraries choose algorithms and allocate workspaces.
WARM_UP = 3

capturing = threading.Lock()


class Stepper:
    """Takes steps on a batch of images, in place, without waiting for the device.

    Everything that changes from step to step (its number, the random draws, the learning rate, the terms' values) lies
    in tensors. On CUDA one step can therefore be captured as a graph and replayed.

    Args:
        gradient: ``gradient(x, index)``: the gradient (R, C, H, W) at step ``index``, int64 (1,) on the device, and
            the values of the terms (T,).
        x, moments: images and Adam's first and second moments, (R, C, H, W) float32; written.
        active: bool (R,): images with False are not changed; None changes all.
        optimisation: steps, learning rates, betas.
        bounds: lowest and highest values, (C,) each, or None twice.
        first: the step to begin with, from 0.
        block: the largest number of steps of one :meth:`run`.
        capture: capture a step as a graph on CUDA; False for a gradient that waits for other processes.
        spectrum: the map P of images x = P z; Adam then works on z. None: Adam works on the images.
    """

    def __init__(
        self,
        gradient: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
        x: Tensor,
        moments: tuple[Tensor, Tensor],
        active: Tensor | None,
        optimisation: Optimisation,
        bounds: tuple[Tensor | None, Tensor | None],
        first: int,
        block: int,
        spectrum: NaturalSpectrum | None = None,
        capture: bool = True,
    ) -> None:
        self.x, self._moments, self._active = x, moments, active
        self._gradient, self._betas, self._bounds = gradient, optimisation.adam_betas, bounds
        self._rates = optimisation.learning_rates().to(x.device, torch.float32)
        self._index = torch.full((1,), first, dtype=torch.int64, device=x.device)
        self._slot = torch.zeros(1, dtype=torch.int64, device=x.device)
        self._block, self._values = block, x.new_empty(0)
        self._spectrum = spectrum
        self._change = x.new_empty(0) if spectrum is None else torch.empty_like(x)
        self._taken, self._capture = 0, capture
        self._graph: torch.cuda.CUDAGraph | None = None

    def run(self, count: int) -> Tensor:
        """The next ``count`` steps; the values of the terms at each, (count, T), valid until the next call."""
        self._slot.zero_()
        for _ in range(count):
            if self.x.device.type != "cuda" or not self._capture:
                self._step()
            elif self._taken < WARM_UP:
                self._step_aside()
            else:
                if self._graph is None:
                    self._graph = torch.cuda.CUDAGraph()
                    # Other threads may invert other networks meanwhile, but only one captures at a time.
                    with capturing, torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
                        self._step()
                self._graph.replay()
            self._taken += 1
        return self._values[:count]

    def _step(self) -> None:
        gradient, values = self._gradient(self.x, self._index)
        if not len(self._values):
            self._values = values.new_zeros(self._block, len(values))
        rate = self._rates.index_select(0, self._index)[0]
        number = (self._index + 1)[0]
        self._update(gradient, number, rate)
        self._values.index_copy_(0, self._slot, values[None])
        self._index += 1
        self._slot += 1

    def _update(self, gradient: Tensor, number: Tensor, rate: Tensor) -> None:
        """Adam and clip; in the coordinates z of images P z, whose gradient is P times that of the images."""
        low, high = self._bounds
        if self._spectrum is None:
            ops.adam_clip_(
                self.x, gradient, *self._moments, number, rate, self._betas, low=low, high=high, active=self._active
            )
            return
        change = self._change.zero_()
        ops.adam_clip_(change, self._spectrum(gradient), *self._moments, number, rate, self._betas, active=self._active)
        self.x += self._spectrum(change)
        if low is not None and high is not None:
            self.x.clamp_(low.view(-1, 1, 1), high.view(-1, 1, 1))

    def _step_aside(self) -> None:
        """A step on a side stream, which CUDA requires before a capture."""
        main, side = torch.cuda.current_stream(), torch.cuda.Stream()
        side.wait_stream(main)
        with torch.cuda.stream(side):
            self._step()
        main.wait_stream(side)
