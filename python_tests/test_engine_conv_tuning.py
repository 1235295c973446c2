from __future__ import annotations

import time
from functools import partial
from pathlib import Path

import pytest
import torch
from op_checks import run_python
from torch import nn

from exml_fast.data import InputSpec
from exml_fast.engine import conv_tuning
from exml_fast.engine.conv_plan import ConvShape, Plan, can_pack
from exml_fast.engine.conv_tuning import fastest_plan, only_plan
from exml_fast.engine.teacher import FrozenTeacher

SPEC = InputSpec(32, (10, 10), (0.0,) * 32, (1.0,) * 32)


def shape_of(conv: nn.Conv2d, size: tuple[int, ...], channels_last: bool = True) -> ConvShape:
    return ConvShape(
        size, tuple(conv.weight.shape), conv.stride, conv.padding, conv.dilation, conv.groups, channels_last
    )


def test_plans_are_measured_once_a_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EXML_FAST_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(conv_tuning, "_measured", {})
    shape = ConvShape((8, 3, 17, 17), (5, 3, 3, 3), (2, 2), (1, 1), (1, 1), 1, True)
    first = fastest_plan(shape, torch.float32)
    assert first[1] > 0
    measure = conv_tuning._measure
    monkeypatch.setattr(conv_tuning, "_measure", lambda *_: pytest.fail("measured again"))
    assert fastest_plan(shape, torch.float32) == first
    monkeypatch.setattr(conv_tuning, "_measured", {})  # as in another process
    assert fastest_plan(shape, torch.float32) == first
    monkeypatch.setattr(conv_tuning, "_measure", measure)
    for broken in ("{", "[]", '{"a": 1}'):
        (tmp_path / "cache" / "convolutions.json").write_text(broken)
        monkeypatch.setattr(conv_tuning, "_measured", {})
        assert fastest_plan(shape, torch.float32)[1] > 0


@pytest.mark.compiled
def test_one_plan_needs_no_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    only = ConvShape((4, 32, 8, 8), (32, 32, 1, 1), (1, 1), (0, 0), (1, 1), 1, True)
    several = ConvShape((4, 32, 8, 8), (32, 32, 3, 3), (1, 1), (1, 1), (1, 1), 1, True)
    packed = [dtype for dtype in (torch.float32, torch.bfloat16) if can_pack(dtype)]
    for dtype in packed:
        assert only_plan(only, dtype) == Plan("packed", "convolution", "packed")
        assert only_plan(several, dtype) is None
    monkeypatch.setattr(conv_tuning, "_measure", lambda *_: pytest.fail("measured"))
    model = nn.Sequential(
        nn.Conv2d(32, 32, 1), nn.BatchNorm2d(32), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 5)
    )
    for dtype in packed:
        precision = str(dtype).removeprefix("torch.")
        teacher = FrozenTeacher(model.eval(), SPEC, precision=precision, batch_size=4)
        assert list(teacher.plans.values()) == [(precision, Plan("packed", "convolution", "packed"))]


OLDER = """
import torch
from torch import nn
from exml_fast.data import InputSpec
from exml_fast.engine.conv_plan import Plan, can_pack
from exml_fast.engine.teacher import FrozenTeacher

assert not can_pack(torch.bfloat16), "the limit has no effect"
model = nn.Sequential(
    nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 32, 1), nn.AdaptiveAvgPool2d(1),
    nn.Flatten(), nn.Linear(32, 5),
).eval()
spec, images = InputSpec(3, (10, 10), (0.0,) * 3, (1.0,) * 3), torch.randn(4, 3, 10, 10, requires_grad=True)
packed = Plan("packed", "convolution", "packed")
half = {"0": ("bfloat16", Plan("packed", "library", "plain")), "3": ("bfloat16", packed)}
for precision, plans in (("auto", None), ("bfloat16", None), ("bfloat16", half)):
    teacher = FrozenTeacher(model, spec, precision=precision, batch_size=4, plans=plans)
    logits, _ = teacher(images)
    logits.square().sum().backward()
    assert teacher.precision == ("float32" if precision == "auto" else precision)
    torch.testing.assert_close(logits, model(images), rtol=0.05, atol=0.05)
"""


@pytest.mark.compiled
def test_a_processor_without_bfloat16() -> None:
    """It computes in float32, in bfloat16 when asked, and what a run of another machine has planned."""
    if torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        pytest.skip("PyTorch and oneDNN can be limited to AVX2 only on a processor that has it")
    limits = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "EXML_CPU_CAPABILITY": "avx2"}
    run_python(OLDER, **limits)


def by_a_clock_of_its_own(
    monkeypatch: pytest.MonkeyPatch, seconds: dict[str, list[float]]
) -> tuple[list[str], tuple[str, float]]:
    """The calls and the result of ``_fastest`` for ways that take these seconds, the last ones for ever."""
    calls: list[str] = []
    now = 0.0

    def way(name: str) -> None:
        nonlocal now
        times = seconds[name]
        now += times[min(calls.count(name), len(times) - 1)]
        calls.append(name)

    with monkeypatch.context() as patch:
        patch.setattr(time, "perf_counter", lambda: now)
        found = conv_tuning._fastest({name: partial(way, name) for name in seconds})
    return calls, found


def test_the_fastest_way_is_found_beside_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, found = by_a_clock_of_its_own(monkeypatch, {"slow": [9.0, 0.02], "fast": [9.0, 0.001]})
    assert found == ("fast", pytest.approx(0.001)) and calls.count("slow") == 3, (
        "the first call is not timed, two show it hopeless"
    )
    _, found = by_a_clock_of_its_own(monkeypatch, {"first": [9.0, 0.006], "better": [9.0, 0.02, 0.002]})
    assert found == ("better", pytest.approx(0.002)), "one interruption does not decide"
    _, found = by_a_clock_of_its_own(monkeypatch, {"first": [0.0100], "hardly better": [0.0095]})
    assert found[0] == "first"
    calls, found = by_a_clock_of_its_own(monkeypatch, {"only": [9.0, 0.5, 0.1, 0.2]})
    assert found == ("only", pytest.approx(0.1)) and len(calls) == 1 + conv_tuning.LEAST_ROUNDS


def test_layers_that_learn_are_timed_with_many_images() -> None:
    for batch, images in ((8, 8), (128, max(32, 16 * torch.get_num_threads()))):
        shape = ConvShape((batch, 16, 32, 32), (16, 16, 3, 3), (1, 1), (1, 1), (1, 1), 1, True)
        assert conv_tuning._trained_images(shape).input == (images, 16, 32, 32)


def test_winograd_is_timed_with_enough_tiles_for_each_thread() -> None:
    for size, batch, threads, images in ((56, 4, 1, 1), (14, 64, 1, 2), (4, 64, 1, 28), (4, 64, 2, 56), (7, 4, 1, 4)):
        shape = ConvShape((batch, 128, size, size), (128, 128, 3, 3), (1, 1), (1, 1), (1, 1), 1, True)
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            assert conv_tuning._few_images(shape).input[0] == images
        finally:
            torch.set_num_threads(before)


@pytest.mark.compiled
def test_zeros_between_are_tried_for_strided_layers_of_one_tap_and_depthwise_ones() -> None:
    way = Plan("plain", "zero_stuffed")
    for weight, groups, stride, expected in (
        ((64, 32, 1, 1), 1, 2, True),
        ((32, 1, 3, 3), 32, 2, True),
        ((64, 32, 3, 3), 1, 2, False),
        ((64, 32, 1, 1), 1, 1, False),
    ):
        padding = (weight[2] // 2,) * 2
        shape = ConvShape((4, 32, 8, 8), weight, (stride, stride), padding, (1, 1), groups, True)
        assert conv_tuning.could_be_chosen(way, shape, torch.float32, packable=False) is expected
