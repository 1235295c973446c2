"""The contenders of benches/inversion.py: the same step of inversion in several ways."""

from __future__ import annotations

import copy
import random
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch._inductor.config as inductor
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from exml_fast.data import InputSpec
from exml_fast.engine import FrozenTeacher
from exml_fast.engine.frozen_conv import FrozenConv2d
from exml_fast.engine.statistics import bn_layers
from exml_fast.inversion import Recipe, Synthesizer

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


Draw = tuple[int, int, bool]
"""Shift in pixels, down and right, and whether to flip left to right."""


@dataclass
class Problem:
    """The input of every contender."""

    model: nn.Module
    """The network, in evaluation mode. Contenders copy it."""
    spec: InputSpec
    recipe: Recipe
    labels: Tensor
    start: Tensor
    """(N, C, H, W) float32."""
    draws: Callable[[], Iterator[Draw]]

    @property
    def device(self) -> str:
        return self.start.device.type


def python_draws(jitter: int) -> Iterator[Draw]:
    source = random.Random(0)
    while True:
        yield source.randint(-jitter, jitter), source.randint(-jitter, jitter), source.random() < 0.5


def augmented(x: Tensor, draw: Draw) -> Tensor:
    down, right, flip = draw
    x = torch.roll(x, (down, right), (2, 3))
    return torch.flip(x, (3,)) if flip else x


def differences(x: Tensor) -> list[Tensor]:
    """The four neighbour differences of total variation (Yin 2020, B.1)."""
    return [
        x[..., :, 1:] - x[..., :, :-1],
        x[..., 1:, :] - x[..., :-1, :],
        x[..., 1:, :-1] - x[..., :-1, 1:],
        x[..., 1:, 1:] - x[..., :-1, :-1],
    ]


class Published:
    """A step in the style of published implementations."""

    def __init__(self, problem: Problem) -> None:
        self.problem, self.draws = problem, problem.draws()
        self.model = copy.deepcopy(problem.model)
        self.distances: list[Tensor] = []
        for _, layer in bn_layers(self.model):
            layer.register_forward_hook(self._match)
        self.x = problem.start.clone().requires_grad_()
        settings = problem.recipe.optimisation
        self.optimizer = torch.optim.Adam([self.x], settings.lr, settings.adam_betas)
        self.bounds = [bound.flatten().tolist() for bound in problem.spec.bounds()]
        cuda = problem.device == "cuda"
        self.autocast: Callable[[], AbstractContextManager[Any]] = (
            partial(torch.autocast, "cuda", torch.float16) if cuda else nullcontext
        )

    def _match(self, layer: Any, args: tuple[Tensor, ...], output: Tensor) -> None:
        x = args[0]
        mean = x.mean((0, 2, 3))
        var = x.permute(1, 0, 2, 3).contiguous().view(x.shape[1], -1).var(1, unbiased=False)
        weight = 1.0 if self.distances else self.problem.recipe.matching.bn_first
        distance = torch.norm(layer.running_var - var, 2) + torch.norm(layer.running_mean - mean, 2)
        self.distances.append(weight * distance)

    def rest(self) -> None:
        """Free the memory held between two steps, so that a measured peak is that of a whole step."""
        self.optimizer.zero_grad()
        self.model.zero_grad()
        self.distances.clear()

    def step(self) -> float:
        recipe = self.problem.recipe
        x = augmented(self.x, next(self.draws))
        self.rest()
        with self.autocast():
            loss = recipe.classification.ce * F.cross_entropy(self.model(x), self.problem.labels)
            loss = loss + recipe.priors.tv_l2 * sum(torch.norm(d) for d in differences(x))
            loss = loss + recipe.priors.l2 * torch.norm(x) + recipe.matching.bn * sum(self.distances)
        loss.backward()
        self.optimizer.step()
        if recipe.pixels.clip == "valid":
            for channel, (low, high) in enumerate(zip(*self.bounds, strict=True)):
                self.x.data[:, channel] = torch.clamp(self.x.data[:, channel], low, high)
        return loss.item()


@dataclass(frozen=True)
class Option:
    """How torch.compile is used."""

    dtype: str
    """ "float32", "bfloat16" (cast weights; BatchNorms stay in float32), or "autocast" (to bfloat16)."""
    mode: str = "default"
    """ "default", "max-autotune", or "frozen": max-autotune with inductor's freezing, which stores the weights as
    constants and packs them. Inductor freezes only functions that run without gradients, so the gradient of the images
    is then taken inside of the compiled function, by torch.func."""

    def __str__(self) -> str:
        return f"{self.dtype}, {self.mode}"


# The modes are tried in the fastest dtype.
OPTIONS = [Option(dtype) for dtype in ("float32", "bfloat16", "autocast")]


MODES = {"cpu": ("max-autotune", "frozen"), "cuda": ("max-autotune",)}


class Compiled:
    """A step by torch.compile: loss and gradient are compiled; augmentation and update are eager."""

    def __init__(self, problem: Problem, option: Option, backend: str = "inductor") -> None:
        self.problem, self.draws, self.option = problem, problem.draws(), option
        self.dtype = torch.bfloat16 if option.dtype == "bfloat16" else torch.float32
        self.model = copy.deepcopy(problem.model).requires_grad_(False)
        self.model.to(dtype=self.dtype, memory_format=torch.channels_last)
        self.calls: list[tuple[Tensor, Tensor, Tensor]] = []
        for (_, layer), (_, original) in zip(bn_layers(self.model), bn_layers(problem.model), strict=True):
            layer.float()
            layer.load_state_dict(original.state_dict())
            layer.register_forward_pre_hook(self._record)
        self.x = problem.start.clone().requires_grad_()
        settings = problem.recipe.optimisation
        self.optimizer = torch.optim.Adam([self.x], settings.lr, settings.adam_betas, fused=True)
        self.low, self.high = problem.spec.bounds(problem.device)
        options: dict[str, Any] = {"fullgraph": True, "dynamic": False, "backend": backend}
        if option.mode == "max-autotune" and backend == "inductor":
            options["mode"] = "max-autotune" if problem.device == "cuda" else "max-autotune-no-cudagraphs"
        frozen = option.mode == "frozen"
        self.compiled = torch.compile(self._loss_and_gradient if frozen else self._loss, **options)
        self.gradient = self._frozen if frozen else self._backward

    def _record(self, layer: Any, args: tuple[Tensor, ...]) -> None:
        self.calls.append((args[0], layer.running_mean, layer.running_var))

    def _loss(self, x: Tensor) -> Tensor:
        recipe = self.problem.recipe
        norm = torch.linalg.vector_norm
        self.calls.clear()
        with torch.autocast(self.problem.device, torch.bfloat16, enabled=self.option.dtype == "autocast"):
            logits = self.model(x.to(dtype=self.dtype, memory_format=torch.channels_last))
        loss = recipe.classification.ce * F.cross_entropy(logits.float(), self.problem.labels)
        loss = loss + recipe.priors.l2 * norm(x)
        for d in differences(x):
            loss = loss + recipe.priors.tv_l2 * norm(d)
        for z, mean, var in self.calls:
            v, m = torch.var_mean(z.float(), (0, 2, 3), correction=0)
            loss = loss + recipe.matching.bn * (norm(v - var) + norm(m - mean))
        self.calls.clear()
        return loss

    def _loss_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        gradient, loss = torch.func.grad_and_value(self._loss)(x)
        return loss, gradient

    def _backward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        loss = self.compiled(x)
        (gradient,) = torch.autograd.grad(loss, x)
        return loss.detach(), gradient

    def _frozen(self, x: Tensor) -> tuple[Tensor, Tensor]:
        with inductor.patch(freezing=True, max_autotune=True), torch.no_grad():
            return self.compiled(x.detach())

    def rest(self) -> None:
        self.optimizer.zero_grad()

    def step(self) -> Tensor:
        x = augmented(self.x, next(self.draws))
        loss, gradient = self.gradient(x)
        (self.x.grad,) = torch.autograd.grad(x, self.x, gradient)
        self.optimizer.step()
        torch.clamp(self.x.data, self.low, self.high, out=self.x.data)
        return loss


class Engine:
    """The Synthesizer. A run of two blocks of steps is timed between its calls of ``progress``."""

    def __init__(self, problem: Problem, precision: str, block: int) -> None:
        self.labels, self.block = problem.labels, block
        recipe = problem.recipe.replace(steps=2 * block)
        self.model = copy.deepcopy(problem.model)
        self.synthesizer = Synthesizer(self.model, problem.spec, recipe, block=block, precision=precision)
        self.first_block = 0.0

    def run(self) -> float:
        """Milliseconds of a step in the second block. The Synthesizer reuses memory by itself."""
        stamps = [time.perf_counter()]
        self.synthesizer.run(self.labels, progress=lambda *_: stamps.append(time.perf_counter()))
        self.first_block = stamps[1] - stamps[0]
        return (stamps[2] - stamps[1]) * 1e3 / self.block


class Bare:
    """Only forward and input gradient of the folded teacher; on a GPU as one CUDA graph."""

    def __init__(self, problem: Problem, dtype: torch.dtype) -> None:
        self.model = folded(problem.model, problem.start).to(dtype=dtype, memory_format=torch.channels_last)
        self.x = problem.start.to(dtype=dtype, memory_format=torch.channels_last).requires_grad_()
        with torch.no_grad():
            self.gradient = torch.randn_like(self.model(self.x))
        self.step: Callable[[], Any] = self._step
        if problem.device == "cuda":
            graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(3):
                    self._step()
            torch.cuda.synchronize()
            with torch.cuda.graph(graph):
                self._step()
            self.step = graph.replay

    def _step(self) -> None:
        torch.autograd.grad(self.model(self.x), self.x, self.gradient)

    def rest(self) -> None:
        pass


class Convolutions:
    """Only the convolutions of the engine's copy, by its algorithms: all forward, then all input gradients."""

    def __init__(self, problem: Problem, precision: str) -> None:
        batch = len(problem.labels)
        teacher = FrozenTeacher(copy.deepcopy(problem.model), problem.spec, precision=precision, batch_size=batch)
        self.calls: list[tuple[nn.Module, Tensor]] = []
        handles = [
            layer.register_forward_pre_hook(
                lambda layer, args: self.calls.append((layer, args[0].detach().requires_grad_()))
            )
            for layer in teacher.model.modules()
            if isinstance(layer, FrozenConv2d)
        ]
        with torch.no_grad():
            teacher(problem.start)
        for handle in handles:
            handle.remove()

    def step(self) -> None:
        inputs = [x for _, x in self.calls]
        outputs = [layer(x) for layer, x in self.calls]
        # The gradients' values do not matter.
        torch.autograd.grad(outputs, inputs, [y.detach() for y in outputs])

    def rest(self) -> None:
        pass


def folded(model: Any, example: Tensor) -> nn.Module:
    """A frozen copy in which every BatchNorm after a convolution is folded into the convolution."""
    fused = copy.deepcopy(model).requires_grad_(False)
    made: list[tuple[Tensor, nn.Conv2d]] = []
    pairs: dict[nn.Module, nn.Conv2d] = {}

    def seen(layer: nn.Module, args: tuple[Tensor, ...]) -> None:
        for output, conv in made:
            if output is args[0]:
                pairs[layer] = conv

    handles = [layer.register_forward_pre_hook(seen) for _, layer in bn_layers(fused)]
    handles += [
        conv.register_forward_hook(lambda conv, args, output: made.append((output, conv)))
        for conv in fused.modules()
        if isinstance(conv, nn.Conv2d)
    ]
    with torch.no_grad():
        expected = fused(example)
        for handle in handles:
            handle.remove()
        for name, bn in bn_layers(fused):
            if bn in pairs:
                conv, running = pairs[bn], (bn.running_mean, bn.running_var, bn.eps)
                conv.weight, conv.bias = fuse_conv_bn_weights(conv.weight, conv.bias, *running, bn.weight, bn.bias)
                fused.set_submodule(
                    name, getattr(bn, "act", nn.Identity())
                )  # BatchNorm layers of timm contain an activation
        error = torch.linalg.vector_norm(fused(example) - expected) / torch.linalg.vector_norm(expected)
    if not error < 1e-2:
        raise RuntimeError(f"folding BatchNorm changed the logits of {type(model).__name__} by {error:.1%}")
    return fused.requires_grad_(False)
