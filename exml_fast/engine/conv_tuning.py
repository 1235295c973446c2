"""Decides the algorithm (Plan) and the dtype of each convolution of a frozen network, by timing the candidates.

A plan is timed once for each layer shape, dtype and number of threads on a machine, and then remembered in a file.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import platform
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from exml_fast import ops
from exml_fast._native import COMPILED, build_info
from exml_fast.engine.conv_plan import LANE_IMAGES, ConvShape, Plan, can_pack
from exml_fast.engine.frozen_conv import FrozenConv2d
from exml_fast.storage import load_json, save_json

__all__ = [
    "PRECISIONS",
    "Plans",
    "checked_plans",
    "choose_plans",
    "could_be_chosen",
    "fastest_plan",
    "lanes_are_faster",
    "only_plan",
    "winograd_is_faster",
    "without_winograd",
]

PRECISIONS = ("auto", "float32", "bfloat16")
# "auto" chooses bfloat16 where all convolutions together become WORTH_IT times as fast. It keeps a layer in float32
# where bfloat16 makes that layer CAST_PAYS times as slow: then the casts around the layer cost less.
WORTH_IT, CAST_PAYS = 1.1, 1.5

# A plan is timed with MEASURED_BATCH images, or with one image if these take more than MANY_PRODUCTS products.
MEASURED_BATCH, MANY_PRODUCTS = 2, 1e8
LEAST_ROUNDS, MOST_ROUNDS, MEASURED_SECONDS = 7, 20, 0.03
# A later candidate replaces an earlier one if it takes less than CLEAR_GAIN of the time. A candidate that takes more
# than HOPELESS times as long as the fastest is not timed again.
CLEAR_GAIN, HOPELESS = 0.9, 1.5
# Input channels up to which the input gradient may be computed position by position (subpixel), and output channels
# up to which our own convolution (windows) may be faster than the library's.
FEW_CHANNELS, FEW_OUTPUTS = 4, 16
# Side of a tile of Winograd's algorithm in pixels, and tiles a thread that are enough to time it.
TILE, TILES = 4, 28
# A layer that learns is timed with more images, because its weights are transformed or repacked once a step, and for
# longer, because a whole training keeps the choice.
TRAINED_BATCH, TRAINED_SECONDS = 32, 0.1
# Number of the list of candidates below. A change of that list increases it, and older measurements are forgotten.
CHOICES = 6

Key = TypeVar("Key")

Plans = dict[str, tuple[str, Plan]]
"""A dtype's name and a plan for each convolution's name."""


def choose_plans(shapes: Mapping[str, ConvShape], own: torch.dtype, precision: str, device: torch.device) -> Plans:
    """The dtype and the plan of each convolution of a network.

    Args:
        shapes: the network's convolutions.
        own: the dtype of the network's parameters. Only float32 can become another dtype.
        precision: one of PRECISIONS. "auto" chooses what is faster, measured on the CPU, and assumed on CUDA from
            compute capability 8.0.
        device: where the network runs. Plans are for the CPU; elsewhere the library decides.
    """
    if own != torch.float32 or precision != "auto":
        dtype = torch.bfloat16 if precision == "bfloat16" and own == torch.float32 else own
        return {name: (_name(dtype), _plan(shape, dtype, device, False)[0]) for name, shape in shapes.items()}
    single = {name: _plan(shape, own, device) for name, shape in shapes.items()}
    # The library has no fast convolutions for bfloat16 where it cannot pack its weights.
    possible = shapes if device.type != "cpu" or can_pack(torch.bfloat16) else {}
    half = {name: _plan(shape, torch.bfloat16, device) for name, shape in possible.items()}
    half = {name: found for name, found in half.items() if found[1] <= CAST_PAYS * single[name][1]}
    before = sum(seconds for _, seconds in single.values())
    after = sum(half.get(name, single[name])[1] for name in shapes)
    plans = {name: (_name(own), plan) for name, (plan, _) in single.items()}
    if before >= WORTH_IT * after:
        plans |= {name: ("bfloat16", plan) for name, (plan, _) in half.items()}
    return plans


def without_winograd(plans: Plans) -> Plans:
    """The same plans with the library's convolutions, which round less, in place of Winograd's."""
    return {name: (dtype, plan.without_winograd(getattr(torch, dtype))) for name, (dtype, plan) in plans.items()}


def checked_plans(plans: Plans, shapes: Mapping[str, ConvShape], own: torch.dtype) -> Plans:
    """``plans`` as this machine can compute them.

    ValueError unless they could be those of a network with these convolutions and this dtype.
    """
    rule = "plans must be those of a teacher of the same network, convolution names to (dtype, Plan)"
    if not isinstance(plans, Mapping):
        raise ValueError(f"{rule}: expected a dict, got {type(plans).__name__}")
    if plans.keys() != shapes.keys():
        raise ValueError(f"{rule}: expected the convolutions {sorted(shapes)}, got {sorted(map(str, plans))}")
    dtypes, here = ("float32", "bfloat16") if own == torch.float32 else (_name(own),), Plans()
    for name, value in plans.items():
        match value:
            case (str(dtype), Plan() as plan) if dtype in dtypes:
                layer = shapes[name], getattr(torch, dtype)
                if plan == Plan() or any(could_be_chosen(plan, *layer, packable) for packable in (True, False)):
                    here[name] = dtype, plan.on_this_machine(layer[1])
                    continue
        raise ValueError(f"{rule}: expected one of {dtypes} and a Plan for {shapes[name]} for {name!r}, got {value!r}")
    return here


def _plan(shape: ConvShape, dtype: torch.dtype, device: torch.device, timed: bool = True) -> tuple[Plan, float]:
    """The fastest plan and its seconds. The seconds are NaN for an only plan that is not ``timed``."""
    if device.type == "cpu":
        only = None if timed else only_plan(shape, dtype)
        return fastest_plan(shape, dtype) if only is None else (only, math.nan)
    fast = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
    return Plan(), 0.5 if dtype == torch.bfloat16 and fast else 1.0


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


_measured: dict[str, tuple[Plan, float]] = {}
# Two simultaneous measurements would disturb each other.
_measuring = threading.Lock()


def fastest_plan(shape: ConvShape, dtype: torch.dtype) -> tuple[Plan, float]:
    """The fastest plan of a layer on this CPU, and the seconds an image that it takes, forward and backward.

    The first call for a shape, a dtype and a number of threads on a machine times the candidates. The result is kept
    in ``convolutions.json`` in the folder $EXML_FAST_CACHE (~/.cache/exml_fast): later runs then compute the same bits.
    """
    small = _few_images(shape)
    return _once_a_machine(
        f"{dataclasses.astuple(small)} {dtype}",
        lambda: _measure(small, dtype),
        lambda plan: could_be_chosen(plan, small, dtype),
    )


def only_plan(shape: ConvShape, dtype: torch.dtype) -> Plan | None:
    """The plan of a layer that has one candidate, which needs no timing; None for other layers."""
    first, *others = _candidates(shape, dtype)
    return None if others else first


def lanes_are_faster(shape: ConvShape, dtype: torch.dtype, of_input: bool, of_weight: bool) -> bool:
    """Whether the kernel with one image a vector lane is faster for a layer that ``ConvShape.by_lanes`` allows.

    The result is kept as that of :func:`fastest_plan`.

    Args:
        shape: the layer.
        dtype: float32 or float64.
        of_input: the pass includes the gradient of the input.
        of_weight: the pass includes the gradient of the weight.
    """
    if not COMPILED:
        return False
    small = _trained_images(shape)
    plan, _ = _once_a_machine(
        f"{dataclasses.astuple(small)} {dtype}, gradients {of_input, of_weight}",
        lambda: _measure_lanes(small, dtype, of_input, of_weight),
        lambda plan: plan in (Plan(), Plan("lanes")),
    )
    return plan.forward == "lanes"


def winograd_is_faster(shape: ConvShape, dtype: torch.dtype) -> bool:
    """Whether Winograd's kernel, which transforms its weights anew, is faster for a layer that learns.

    Timed are the output and the gradient of the input, for a layer that ``ConvShape.by_winograd`` allows. The result is
    kept as that of :func:`fastest_plan`.

    Args:
        shape: the layer.
        dtype: float32 or bfloat16.
    """
    if not COMPILED:
        return False
    small = _trained_images(shape)
    plan, _ = _once_a_machine(
        f"{dataclasses.astuple(small)} {dtype}, learned",
        lambda: _measure_learned(small, dtype),
        lambda plan: plan in (Plan(), Plan("winograd")),
    )
    return plan.forward == "winograd"


def _few_images(shape: ConvShape) -> ConvShape:
    products = math.prod(shape.weight) * math.prod(shape.output_size)
    images = 1 if products > MANY_PRODUCTS else MEASURED_BATCH
    if shape.by_lanes:
        images = LANE_IMAGES * torch.get_num_threads()
    if shape.by_winograd:
        tiles = math.prod(-(-n // TILE) for n in shape.output_size)
        images = max(images, -(-TILES * torch.get_num_threads() // tiles))
    return dataclasses.replace(shape, input=(min(shape.input[0], images), *shape.input[1:]))


def _trained_images(shape: ConvShape) -> ConvShape:
    images = max(TRAINED_BATCH, LANE_IMAGES * torch.get_num_threads())
    return dataclasses.replace(shape, input=(min(shape.input[0], images), *shape.input[1:]))


def _once_a_machine(
    what: str, measure: Callable[[], tuple[Plan, float]], could_be: Callable[[Plan], bool]
) -> tuple[Plan, float]:
    capabilities = f"{torch.backends.cpu.get_cpu_capability()}, {build_info()['cpu_capability']}"
    machine = f"{platform.node()}, {capabilities}, torch {torch.__version__}"
    key = f"choices {CHOICES}, {machine}, {torch.get_num_threads()} threads: {what}"
    with _measuring:
        if key not in _measured:
            with _alone_on_machine():
                found = _remembered().get(key)
                if found is not None and _is_time(found[1]) and could_be(found[0]):
                    _measured[key] = found
                else:
                    # A new thread has none of the caller's autocast, saved-tensor hooks and activation checkpoints.
                    with ThreadPoolExecutor(1) as thread:
                        _measured[key] = thread.submit(measure).result()
                    _remember(key)
        return _measured[key]


def _is_time(seconds: object) -> bool:
    return isinstance(seconds, float) and seconds > 0


def could_be_chosen(plan: Plan, shape: ConvShape, dtype: torch.dtype, packable: bool | None = None) -> bool:
    """Whether ``plan``, from a file or a caller, is a candidate for such a layer; ``packable`` as in _candidates."""
    # The plan may come from a teacher with a larger batch.
    several = dataclasses.replace(shape, input=(max(shape.input[0], LANE_IMAGES), *shape.input[1:]))
    choices = list(_candidates(several, dtype, packable))
    ways = {(choice.adjoint, choice.adjoint_weights) for choice in choices}
    return plan.forward in {choice.forward for choice in choices} and (plan.adjoint, plan.adjoint_weights) in ways


def _cache_file() -> Path:
    return Path(os.environ.get("EXML_FAST_CACHE") or "~/.cache/exml_fast").expanduser() / "convolutions.json"


@contextlib.contextmanager
def _alone_on_machine() -> Iterator[None]:
    """Other processes wait: those that start together, as the ranks of torchrun, then choose the same plans."""
    with contextlib.ExitStack() as stack:
        # No locks on Windows, no writable folder, or a file system without locks.
        with contextlib.suppress(ImportError, OSError, RuntimeError):
            import fcntl

            _cache_file().parent.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(open(_cache_file().with_suffix(".lock"), "ab"))
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _remembered() -> dict[str, tuple[Plan, float]]:
    try:
        return {key: (Plan(*plan), seconds) for key, (plan, seconds) in load_json(_cache_file()).items()}
    except (
        OSError,
        ValueError,
        TypeError,
        AttributeError,
        RuntimeError,
    ):  # no file, a foreign file or no home folder: measure
        return {}


def _remember(key: str) -> None:
    entries = {**_remembered(), key: _measured[key]}
    entries = {key: found for key, found in entries.items() if key.startswith(f"choices {CHOICES},")}
    with contextlib.suppress(OSError, RuntimeError):  # without a writable folder, each process measures
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
        "lanes": lambda: ops.lane_conv2d(x, weight, None, shape.padding),
    }
    g = torch.zeros_like(ways["plain"]().detach())

    def pass_through(way: Callable[[], Tensor]) -> None:
        y = way()
        if wanted:
            torch.autograd.grad(y, wanted, g)

    chosen, seconds = _fastest({name: partial(pass_through, way) for name, way in ways.items()}, TRAINED_SECONDS)
    return Plan(chosen), seconds / shape.input[0]


@torch.enable_grad()
def _measure_learned(shape: ConvShape, dtype: torch.dtype) -> tuple[Plan, float]:
    x = torch.zeros(shape.input, dtype=dtype).contiguous(memory_format=torch.channels_last).requires_grad_()
    weight = torch.empty(shape.weight, dtype=dtype, memory_format=torch.channels_last).fill_(0.01)
    ways: dict[str, Callable[[], Tensor]] = {
        "plain": lambda: nn.functional.conv2d(x, weight, padding=shape.padding),
        "winograd": lambda: ops.winograd_conv2d(x, weight, padding=shape.padding),
    }
    g = torch.zeros_like(ways["plain"]().detach())
    passes = {name: lambda way=way: torch.autograd.grad(way(), x, g) for name, way in ways.items()}
    chosen, seconds = _fastest(passes, TRAINED_SECONDS)
    return Plan(chosen), seconds / shape.input[0]


def _fastest(ways: Mapping[Key, Callable[[], object]], measured: float = MEASURED_SECONDS) -> tuple[Key, float]:
    """The fastest way and its seconds; an earlier way where the gain of a later one is within noise."""
    seconds = dict.fromkeys(ways, math.inf)
    for way in ways.values():
        way()
    begun, rounds = time.perf_counter(), 0
    # Candidates take turns, so that other load on the machine slows all of them alike.
    while True:
        for key, way in ways.items():
            if rounds < 2 or seconds[key] < HOPELESS * min(seconds.values()):
                at = time.perf_counter()
                way()
                seconds[key] = min(seconds[key], time.perf_counter() - at)
        rounds += 1
        spent = time.perf_counter() - begun
        enough = len(ways) == 1 or spent > measured or rounds == MOST_ROUNDS
        if rounds >= LEAST_ROUNDS and enough:
            break
    chosen = next(iter(seconds))
    for key, value in seconds.items():
        if value < CLEAR_GAIN * seconds[chosen]:
            chosen = key
    return chosen, seconds[chosen]


def _candidates(shape: ConvShape, dtype: torch.dtype, packable: bool | None = None) -> Iterator[Plan]:
    """The plans to time. Forward and adjoint are timed apart, so not every pair of them occurs.

    With ``packable`` they are those of a machine with our kernels, whose library can pack weights or not.
    """
    if packable is None:
        if not COMPILED:  # PyTorch's own convolution alone
            yield Plan()
            return
        packable = can_pack(dtype)
    packs = (False, True) if shape.channels_last and packable else (False,)
    adjoints = ["library"]
    dense = shape.groups == 1 and min(shape.weight[:2]) > FEW_CHANNELS
    fits = min(shape.flipped_padding) >= 0
    if shape.stride == (1, 1) and fits:
        # The packed convolution of a dense layer was never slower than the library's gradient.
        adjoints = ["convolution"] if dense and True in packs else ["library", "convolution"]
    elif fits and (shape.depthwise or shape.pointwise):
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
