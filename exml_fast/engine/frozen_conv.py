"""Convolutions of a frozen network: constant weights in the layout the library likes best, and no saved activation.

oneDNN reorders plain weights at each call, and its input gradients of some layers (strided depthwise in bfloat16, a
stem of stride 2) take many times as long as the forward pass. With constant weights both can be avoided: weights are
packed once, and the gradient may be computed as another convolution (:class:`Plan`). Which way is the fastest is
measured once for each layer shape.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import platform
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from exml_fast._native import build_info
from exml_fast.storage import load_json, save_json

__all__ = ["ConvShape", "FrozenConv2d", "Plan", "could_be_chosen", "fastest_plan", "lanes_are_faster", "only_plan"]

# A packed convolution is prepared for the batch it will see, and timed with at most so many images, or with one where
# that takes so many products.
MEASURED_BATCH, MANY_PRODUCTS = 2, 1e8
LEAST_ROUNDS, MOST_ROUNDS, MEASURED_SECONDS = 3, 20, 0.006
FEW_CHANNELS = 4
CLEAR_GAIN = 0.9
HOPELESS = 1.5  # times as long as the fastest
# Output channels up to which our own convolution may beat the library's, and a vector of it in bytes.
FEW_OUTPUTS, VECTOR = 16, 64
# Channels up to which the convolution with one image a vector lane may be the fastest, the most images that a vector
# takes, and the memory a thread that they may take.
LANE_CHANNELS, LANE_IMAGES, LANE_BYTES = 64, 16, 2**23
# Of Winograd's algorithm: pixels of a tile's side, tiles that show how fast it is, the fewest channels, and output
# channels of a panel of weights.
TILE, TILES, TILE_CHANNELS, PANEL = 4, 28, 16, 32
# Winograd's F(4, 3) with the points 0, ±1, ±2 and infinity: the transform of three weights (Lavin 2016, 4.2).
WINOGRAD = ((1 / 4, 0, 0), (-1 / 6, -1 / 6, -1 / 6), (-1 / 6, 1 / 6, -1 / 6), (1 / 24, 1 / 12, 1 / 6),
            (1 / 24, -1 / 12, 1 / 6), (0, 0, 1))  # fmt: skip
# Of the choices below: plans that were measured among others are forgotten.
CHOICES = 4

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")

Key = TypeVar("Key")


@dataclass(frozen=True)
class ConvShape:
    """What decides how fast a convolution is."""

    input: tuple[int, int, int, int]
    weight: tuple[int, int, int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    channels_last: bool

    @classmethod
    def of(cls, conv: nn.Module, input: Sequence[int], channels_last: bool) -> ConvShape:
        """Of a convolution with numeric padding for such an input."""
        assert isinstance(conv, nn.Conv2d)
        settings = (input, conv.weight.shape, conv.stride, conv.padding, conv.dilation)
        # Pairs and fours, whose length mypy does not see.
        input, weight, stride, padding, dilation = (tuple(int(v) for v in values) for values in settings)
        return cls(input, weight, stride, padding, dilation, conv.groups, channels_last)  # type: ignore[arg-type]

    @property
    def depthwise(self) -> bool:
        """One filter a channel."""
        return self.groups == self.weight[0] == self.input[1] > 1

    @property
    def by_lanes(self) -> bool:
        """Whether the convolution with one image a vector lane (csrc/ops/lane_conv2d.h) can do it, and may be fast."""
        outputs, inputs, *kernel = self.weight
        pixels = inputs * self.input[2] * (self.input[3] + 2 * self.padding[1]) + outputs * math.prod(self.input[2:])
        return (
            self.stride == self.dilation == (1, 1)
            and self.groups == 1
            and max(outputs, inputs) <= LANE_CHANNELS
            and self.input[0] >= LANE_IMAGES // 2
            and pixels * VECTOR <= LANE_BYTES
            and all(0 <= p < k for p, k in zip(self.padding, kernel, strict=True))
        )

    @property
    def by_winograd(self) -> bool:
        """Whether Winograd's algorithm (csrc/ops/winograd_conv2d.h) can do it, forward and back."""
        return (
            self.channels_last
            and self.weight[2:] == (3, 3)
            and self.stride == self.dilation == (1, 1)
            and self.groups == 1
            and min(self.weight[:2]) >= TILE_CHANNELS
            and max(self.padding) <= 2
        )

    @property
    def flipped_padding(self) -> tuple[int, int]:
        """Padding of the convolution that is the adjoint of this one."""
        height, width = (d * (k - 1) for d, k in zip(self.dilation, self.weight[2:], strict=True))
        return height - self.padding[0], width - self.padding[1]


@dataclass(frozen=True)
class Plan:
    """How a layer computes.

    Attributes:
        forward: "plain" weights; "packed" in oneDNN's layout; "lanes": one image a vector lane, for few channels
            (csrc/ops/lane_conv2d.h); "winograd": of 3×3 layers, a quarter of the products, in float32
            (csrc/ops/winograd_conv2d.h).
        adjoint: of the input gradient. "library": as the library does it; "convolution": for stride 1, a convolution
            with the flipped, transposed weights; "zero_stuffed": the same on a gradient with zeros between its values;
            "subpixel": stride² convolutions, one for each position modulo the stride, as the channels of one, then a
            pixel shuffle; "lanes" as above.
        adjoint_weights: of "convolution", "zero_stuffed" and "subpixel": "plain", "packed" in oneDNN's layout,
            "windows", for our own convolution to few channels (csrc/ops/window_conv2d.h), or "winograd" as above.
    """

    forward: str = "plain"
    adjoint: str = "library"
    adjoint_weights: str = "plain"

    def without_winograd(self, dtype: torch.dtype) -> Plan:
        """The same with the library's convolutions in its place, which round less."""
        weights = "packed" if _can_pack(dtype) else "plain"
        forward, adjoint_weights = (
            weights if way == "winograd" else way for way in (self.forward, self.adjoint_weights)
        )
        return Plan(forward, self.adjoint, adjoint_weights)


class FrozenConv2d(nn.Module):
    """``conv`` with constant weights in ``dtype``; casts its input to it.

    Args:
        conv: padding mode "zeros"; numeric padding.
        dtype: float32, bfloat16 or float64.
        shape: of the input (N, C, H, W) that the plan is for; other sizes are computed correctly.
        plan: see :class:`Plan`; for the CPU, elsewhere the library decides.
    """

    def __init__(self, conv: nn.Conv2d, dtype: torch.dtype, shape: ConvShape, plan: Plan) -> None:
        super().__init__()
        weight = conv.weight.detach().to(dtype)
        plan = plan if weight.device.type == "cpu" else Plan()
        self.dtype, self.shape, self.plan = dtype, shape, plan
        self.bias = None if conv.bias is None else conv.bias.detach().to(dtype)
        self.memory_format = torch.channels_last if shape.channels_last else torch.contiguous_format
        # With one channel ``contiguous`` would keep the strides, from which our kernels read the format.
        plain = torch.empty_like(weight, memory_format=self.memory_format).copy_(weight)
        self.packed: Tensor | None = None
        if plan.forward == "packed":
            self.packed = _packed(plain, shape.padding, shape.stride, shape.dilation, shape)
        elif plan.forward == "winograd":
            self.packed = _transformed(conv.weight.detach())
        # Winograd's products are in float32, whatever the pixels are.
        self.prepared = _prepared(conv.weight.detach() if plan.adjoint_weights == "winograd" else plain, shape, plan)
        # Where nobody reads its values the plain weight is a shape only.
        unread = self.packed is not None and plan.adjoint not in ("library", "lanes")
        self.weight = plain.new_empty(()).expand(plain.shape) if unread else plain

    @staticmethod
    def takes(conv: nn.Module) -> bool:
        """Whether ``conv`` is a convolution that this class can stand for, and nothing was put on it."""
        plain = type(conv) is nn.Conv2d and conv.padding_mode == "zeros" and not isinstance(conv.padding, str)
        return plain and is_untouched(conv)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, K, H', W') in ``dtype``."""
        s = self.shape
        x = x.to(self.dtype).contiguous(memory_format=self.memory_format)
        result: Tensor = torch.ops.exml._frozen_conv2d(
            x, self.weight, self.bias, s.stride, s.padding, s.dilation, s.groups, self.packed, self.prepared,
            self.plan.forward == "lanes", self.plan.adjoint,
        )  # fmt: skip
        return result

    def extra_repr(self) -> str:
        """Dtype and plan."""
        return f"{tuple(self.weight.shape)}, {self.dtype}, {self.plan}"


def is_untouched(module: nn.Module) -> bool:
    """Whether calling ``module`` runs its class's own code alone: no hooks, no methods of the instance."""
    return not (
        any(getattr(module, hooks) for hooks in HOOKS) or {"forward", "_conv_forward"}.intersection(vars(module))
    )


_measured: dict[str, tuple[Plan, float]] = {}
# Two measurements at a time would both be of a loaded machine.
_measuring = threading.Lock()


def fastest_plan(shape: ConvShape, dtype: torch.dtype) -> tuple[Plan, float]:
    """The fastest plan on this CPU for a layer, and the seconds an image that it took, forward and adjoint.

    Measured at the first call for a shape, dtype and number of threads on this machine and remembered in
    ``convolutions.json`` of the folder $EXML_FAST_CACHE (~/.cache/exml_fast), so that later runs compute the same bits.
    """
    small = _few_images(shape)
    return _once_a_machine(
        f"{dataclasses.astuple(small)} {dtype}",
        lambda: _measure(small, dtype),
        lambda plan: could_be_chosen(plan, small, dtype),
    )


def only_plan(shape: ConvShape, dtype: torch.dtype) -> Plan | None:
    """The plan of a layer for which there is one choice only, for which nothing needs to be measured."""
    first, *others = _candidates(shape, dtype)
    return None if others else first


def lanes_are_faster(shape: ConvShape, dtype: torch.dtype, of_input: bool, of_weight: bool) -> bool:
    """Whether a layer that ``by_lanes`` allows learns, or answers, faster that way; remembered as the fastest plan is.

    ``of_input`` and ``of_weight``: the gradients that are wanted beside the forward pass.
    """
    small = _few_images(shape)
    plan, _ = _once_a_machine(
        f"{dataclasses.astuple(small)} {dtype}, gradients {of_input, of_weight}",
        lambda: _measure_lanes(small, dtype, of_input, of_weight),
        lambda plan: plan in (Plan(), Plan("lanes")),
    )
    return plan.forward == "lanes"


def _few_images(shape: ConvShape) -> ConvShape:
    products = math.prod(shape.weight) * math.prod(_output_size(shape))
    images = 1 if products > MANY_PRODUCTS else MEASURED_BATCH
    if shape.by_lanes:
        images = LANE_IMAGES * torch.get_num_threads()
    if shape.by_winograd:
        tiles = math.prod(-(-n // TILE) for n in _output_size(shape))
        images = max(images, -(-TILES * torch.get_num_threads() // tiles))
    return dataclasses.replace(shape, input=(min(shape.input[0], images), *shape.input[1:]))


def _once_a_machine(
    what: str, measure: Callable[[], tuple[Plan, float]], could_be: Callable[[Plan], bool]
) -> tuple[Plan, float]:
    capabilities = f"{torch.backends.cpu.get_cpu_capability()}, {build_info()['cpu_capability']}"
    machine = f"{platform.node()}, {capabilities}, torch {torch.__version__}"
    key = f"choices {CHOICES}, {machine}, {torch.get_num_threads()} threads: {what}"
    with _measuring:
        if key not in _measured:
            found = _remembered().get(key)
            if found is not None and _is_time(found[1]) and could_be(found[0]):
                _measured[key] = found
            else:
                # In a thread of its own the caller's autocast, hooks of saved tensors and checkpoints are not at work.
                with ThreadPoolExecutor(1) as thread:
                    _measured[key] = thread.submit(measure).result()
                _remember(key)
        return _measured[key]


def _is_time(seconds: object) -> bool:
    return isinstance(seconds, float) and seconds > 0


def could_be_chosen(plan: Plan, shape: ConvShape, dtype: torch.dtype) -> bool:
    """Whether ``plan``, which a file or a caller says, is one of those tried for such a layer."""
    # Of another teacher's plans the batch may have been larger.
    several = dataclasses.replace(shape, input=(max(shape.input[0], LANE_IMAGES), *shape.input[1:]))
    choices = list(_candidates(several, dtype))
    ways = {(choice.adjoint, choice.adjoint_weights) for choice in choices}
    return plan.forward in {choice.forward for choice in choices} and (plan.adjoint, plan.adjoint_weights) in ways


def _cache_file() -> Path:
    return Path(os.environ.get("EXML_FAST_CACHE") or "~/.cache/exml_fast").expanduser() / "convolutions.json"


def _remembered() -> dict[str, tuple[Plan, float]]:
    try:
        return {key: (Plan(*plan), seconds) for key, (plan, seconds) in load_json(_cache_file()).items()}
    except (OSError, ValueError, TypeError, AttributeError, RuntimeError):  # none, not ours, no home: measuring helps
        return {}


def _remember(key: str) -> None:
    entries = {**_remembered(), key: _measured[key]}
    entries = {key: found for key, found in entries.items() if key.startswith(f"choices {CHOICES},")}
    with contextlib.suppress(OSError, RuntimeError):  # a machine where nothing can be written measures each time
        _cache_file().parent.mkdir(parents=True, exist_ok=True)
        save_json(_cache_file(), {key: [dataclasses.astuple(plan), time] for key, (plan, time) in entries.items()})


def _measure(shape: ConvShape, dtype: torch.dtype) -> tuple[Plan, float]:
    conv = nn.utils.skip_init(  # leaves the random state alone
        nn.Conv2d, shape.input[1], shape.weight[0], shape.weight[2:], shape.stride, shape.padding, shape.dilation,
        shape.groups, bias=False,
    )  # fmt: skip
    conv.weight.data.fill_(0.01)
    format_ = torch.channels_last if shape.channels_last else torch.contiguous_format
    x = torch.zeros(shape.input, dtype=dtype).contiguous(memory_format=format_).requires_grad_()
    ahead: dict[str, Callable[[], object]] = {}
    back: dict[tuple[str, str], Callable[[], object]] = {}
    for plan in _candidates(shape, dtype):
        layer = FrozenConv2d(conv, dtype, shape, plan)
        y = layer(x)
        ahead.setdefault(plan.forward, partial(layer, x))
        pull = partial(torch.autograd.grad, y, x, torch.zeros_like(y), retain_graph=True)
        back.setdefault((plan.adjoint, plan.adjoint_weights), pull)
    (forward, forward_time), ((how, weights), adjoint_time) = _fastest(ahead), _fastest(back)
    return Plan(forward, how, weights), (forward_time + adjoint_time) / shape.input[0]


@torch.enable_grad()
def _measure_lanes(shape: ConvShape, dtype: torch.dtype, of_input: bool, of_weight: bool) -> tuple[Plan, float]:
    format_ = torch.channels_last if shape.channels_last else torch.contiguous_format
    x = torch.zeros(shape.input, dtype=dtype).contiguous(memory_format=format_).requires_grad_(of_input)
    weight = torch.empty(shape.weight, dtype=dtype, memory_format=format_).fill_(0.01).requires_grad_(of_weight)
    wanted = [t for t in (x, weight) if t.requires_grad]
    ways: dict[str, Callable[[], Tensor]] = {
        "plain": lambda: nn.functional.conv2d(x, weight, padding=shape.padding),
        "lanes": lambda: torch.ops.exml._lane_conv2d(x, weight, None, shape.padding),
    }
    g = torch.zeros_like(ways["plain"]().detach())

    def pass_through(way: Callable[[], Tensor]) -> None:
        y = way()
        if wanted:
            torch.autograd.grad(y, wanted, g)

    chosen, seconds = _fastest({name: partial(pass_through, way) for name, way in ways.items()})
    return Plan(chosen), seconds / shape.input[0]


def _fastest(ways: Mapping[Key, Callable[[], object]]) -> tuple[Key, float]:
    """The fastest way and its seconds; an earlier one unless the gain is clear, so that noise does not decide."""
    seconds = dict.fromkeys(ways, math.inf)
    for way in ways.values():
        way()
    begun, rounds = time.perf_counter(), 0
    # By turns: what else the machine does shall meet all of them.
    while True:
        for key, way in ways.items():
            if rounds < 2 or seconds[key] < HOPELESS * min(seconds.values()):
                at = time.perf_counter()
                way()
                seconds[key] = min(seconds[key], time.perf_counter() - at)
        rounds += 1
        spent = time.perf_counter() - begun
        enough = len(ways) == 1 or spent > MEASURED_SECONDS or rounds == MOST_ROUNDS
        if rounds >= LEAST_ROUNDS and enough:
            break
    chosen = next(iter(seconds))
    for key, value in seconds.items():
        if value < CLEAR_GAIN * seconds[chosen]:
            chosen = key
    return chosen, seconds[chosen]


def _candidates(shape: ConvShape, dtype: torch.dtype) -> Iterator[Plan]:
    """Plans worth a try: all pairs are not, forward and adjoint are timed apart."""
    packs = (False, True) if shape.channels_last and _can_pack(dtype) else (False,)
    adjoints = ["library"]
    dense = shape.groups == 1 and min(shape.weight[:2]) > FEW_CHANNELS
    fits = min(shape.flipped_padding) >= 0
    if shape.stride == (1, 1) and fits:
        # A dense layer's packed convolution has never been slower than the library's gradient.
        adjoints = ["convolution"] if dense and True in packs else ["library", "convolution"]
    elif fits and shape.depthwise:
        adjoints.append("zero_stuffed")
    elif shape.input[1] <= FEW_CHANNELS and _is_square(shape):
        adjoints.append("subpixel")
    if dense and True in packs:
        packs = (True,)
    ahead = ["packed" if pack else "plain" for pack in packs]
    ways = [(how, weights) for how in adjoints for weights in _weights_of(how, shape, packs)]
    if shape.by_lanes:
        ahead.append("lanes")
        ways.append(("lanes", "plain"))
    if shape.by_winograd and dtype in (torch.float32, torch.bfloat16):
        ahead.append("winograd")
        ways.append(("convolution", "winograd"))
    for number in range(max(len(ahead), len(ways))):
        yield Plan(ahead[number % len(ahead)], *ways[min(number, len(ways) - 1)])


def _weights_of(adjoint: str, shape: ConvShape, packs: tuple[bool, ...]) -> list[str]:
    if adjoint == "library":
        return ["plain"]
    few = shape.input[1] * (shape.stride[0] ** 2 if adjoint == "subpixel" else 1) <= FEW_OUTPUTS
    own = few and adjoint != "zero_stuffed" and shape.groups == 1 and shape.dilation == (1, 1) and shape.channels_last
    return [*("packed" if pack else "plain" for pack in packs), *(["windows"] if own else [])]


def _is_square(s: ConvShape) -> bool:
    """Whether the adjoint can be a convolution by positions modulo the stride."""
    return s.groups == 1 and s.stride[0] == s.stride[1] and s.dilation == (1, 1)


def _can_pack(dtype: torch.dtype) -> bool:
    return dtype in (torch.float32, torch.bfloat16) and torch.backends.mkldnn.is_available()


def _packed(
    weight: Tensor, padding: tuple[int, int], stride: tuple[int, int], dilation: tuple[int, int], shape: ConvShape,
    input: tuple[int, int, int, int] | None = None, groups: int | None = None,
) -> Tensor:  # fmt: skip
    packed: Tensor = torch.ops.mkldnn._reorder_convolution_weight(
        weight, padding, stride, dilation, shape.groups if groups is None else groups, input or shape.input
    )
    return packed


def _prepared(weight: Tensor, shape: ConvShape, plan: Plan) -> Tensor | None:
    """The weights with which the adjoint is a convolution of the output's gradient."""
    if plan.adjoint in ("library", "lanes"):
        return None
    count, groups = shape.input[0], shape.groups
    out = _output_size(shape)
    if plan.adjoint == "subpixel":
        prepared, padding, dilation = _subpixel(weight, shape.stride[0]), (_taps(shape) - 1,) * 2, (1, 1)
        seen, groups = (count, weight.shape[0], *out), 1
    else:
        # (groups · out, in, ...) with out and in exchanged within each group, taps reversed
        grouped = weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)
        prepared, padding, dilation = grouped.flip(2, 3), shape.flipped_padding, shape.dilation
        if plan.adjoint == "zero_stuffed":
            reach = (d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True))
            # Pairs, whose length mypy does not see.
            out = tuple(n - 2 * p + r for n, p, r in zip(shape.input[2:], padding, reach, strict=True))  # type: ignore[assignment]
        seen = (count, weight.shape[0], *out)
    format_ = torch.channels_last if shape.channels_last else torch.contiguous_format
    prepared = prepared.contiguous(memory_format=format_)
    if plan.adjoint_weights == "winograd":
        return _transformed(prepared)
    if plan.adjoint_weights == "windows":
        return _windows(prepared)
    packed = plan.adjoint_weights == "packed"
    return _packed(prepared, padding, (1, 1), dilation, shape, seen, groups) if packed else prepared


def _windows(weight: Tensor) -> Tensor:
    """(K, C, h, w) to (K, h, S): the values of a row of taps as channels_last images have them, zeros to a vector."""
    weight = weight.to(torch.float64 if weight.dtype == torch.float64 else torch.float32)
    rows = weight.permute(0, 2, 3, 1).flatten(2)
    return nn.functional.pad(rows, (0, -rows.shape[2] % (VECTOR // rows.element_size()))).contiguous()


def _transformed(weight: Tensor) -> Tensor:
    """(K, C, 3, 3) to (K/32, 6, 6, C, 32) float32: G w Gᵀ (Lavin 2016, Eq. 12) in panels, K filled up with zeros."""
    rows = torch.tensor(WINOGRAD, dtype=torch.float64)
    both = torch.kron(rows, rows).to(weight.device, torch.float32)
    padded = nn.functional.pad(weight.float().flatten(2), (0, 0, 0, 0, 0, -len(weight) % PANEL))
    panels = padded.unflatten(0, (-1, PANEL)).permute(0, 3, 2, 1)  # (K/32, 9, C, 32)
    return (both @ panels.flatten(2)).unflatten(2, panels.shape[2:]).unflatten(1, (6, 6))


def _taps(shape: ConvShape) -> int:
    return -(-max(shape.weight[2:]) // shape.stride[0])


def _subpixel(weight: Tensor, stride: int) -> Tensor:
    """(K, C, h, w) to (C·stride², K, t, t): tap m of position a is tap stride·m + a of the original, reversed."""
    count, channels, height, width = weight.shape
    taps = -(-max(height, width) // stride)
    padded = nn.functional.pad(weight, (0, taps * stride - width, 0, taps * stride - height))
    split = padded.view(count, channels, taps, stride, taps, stride).flip(2, 4)
    return split.permute(1, 3, 5, 0, 2, 4).reshape(channels * stride * stride, count, taps, taps)


def _output_size(s: ConvShape) -> tuple[int, int]:
    height, width = (
        (n + 2 * p - d * (k - 1) - 1) // stride + 1
        for n, p, d, k, stride in zip(s.input[2:], s.padding, s.dilation, s.weight[2:], s.stride, strict=True)
    )
    return height, width
