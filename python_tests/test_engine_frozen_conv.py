from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from op_checks import relative_error
from torch import nn

from exml_fast import InputSpec
from exml_fast.engine.conv_plan import ConvShape, Plan
from exml_fast.engine.frozen_conv import FrozenConv2d
from exml_fast.engine.teacher import FrozenTeacher

pytestmark = pytest.mark.compiled  # plain PyTorch otherwise

SPEC = InputSpec(32, (10, 10), (0.0,) * 32, (1.0,) * 32)
PLANS = [
    Plan(),
    *(
        Plan(a, how, b)
        for how in ("convolution", "zero_stuffed", "subpixel")
        for a, b in (("plain", "plain"), ("packed", "packed"))
    ),
    *(Plan("plain", how, "windows") for how in ("convolution", "subpixel")),
    Plan("lanes", "lanes"),
]


def shape_of(conv: nn.Conv2d, size: tuple[int, ...], channels_last: bool = True) -> ConvShape:
    return ConvShape(
        size, tuple(conv.weight.shape), conv.stride, conv.padding, conv.dilation, conv.groups, channels_last
    )


def applies(plan: Plan, shape: ConvShape) -> bool:
    if plan.forward == "lanes":
        return shape.by_lanes
    if plan.forward == "packed" and not shape.channels_last:
        return False
    if plan.adjoint_weights == "windows" and not (shape.groups == 1 and shape.dilation == (1, 1)):
        return False
    if plan.adjoint == "convolution":
        return shape.stride == (1, 1) and min(shape.flipped_padding) >= 0
    if plan.adjoint == "zero_stuffed":
        return min(shape.flipped_padding) >= 0
    return plan.adjoint == "library" or (shape.groups == 1 and len({*shape.stride}) == 1 and shape.dilation == (1, 1))


@given(data=st.data())
def test_every_plan_gives_the_same_values_and_gradients(data: st.DataObject) -> None:
    draw = data.draw
    groups = draw(st.sampled_from([1, 2, 4]))
    inputs, outputs = (groups * draw(st.integers(1, 3)) for _ in range(2))
    kernel = (draw(st.integers(1, 5)), draw(st.integers(1, 5)))
    dilation = draw(st.sampled_from([1, 1, 2]))
    stride = draw(st.sampled_from([(1, 1), (2, 2), (3, 3), (2, 1)]))
    padding = (draw(st.integers(0, 3)), draw(st.integers(0, 3)))
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, groups, bias=draw(st.booleans()))
    conv.requires_grad_(False)
    size = (draw(st.sampled_from([2, 9, 17])), inputs, draw(st.integers(9, 14)), draw(st.integers(9, 14)))
    channels_last = draw(st.booleans())
    shape = shape_of(conv, size, channels_last)
    form = torch.channels_last if channels_last else torch.contiguous_format
    x = torch.randn(size).contiguous(memory_format=form).requires_grad_()
    y = conv(x)
    g = torch.randn_like(y)
    (expected,) = torch.autograd.grad(y, x, g)
    for plan in PLANS:
        if not applies(plan, shape):
            continue
        out = FrozenConv2d(conv, torch.float32, shape, plan)(x)
        (grad,) = torch.autograd.grad(out, x, g)
        torch.testing.assert_close(out, y, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(grad, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("stride", "groups", "size"), [((2, 2), 1, (13, 14)), ((3, 2), 4, (12, 11)), ((2, 1), 2, (9, 9))]
)
@pytest.mark.parametrize("weights", ["plain", "packed"])
def test_zeros_follow_a_kernel_of_one_tap(
    stride: tuple[int, int], groups: int, size: tuple[int, int], weights: str
) -> None:
    conv = nn.Conv2d(8, 12, 1, stride, groups=groups).requires_grad_(False)
    x = torch.randn(3, 8, *size).contiguous(memory_format=torch.channels_last).requires_grad_()
    y = conv(x)
    g = torch.randn_like(y)
    plan = Plan(weights, "zero_stuffed", weights)
    (grad,) = torch.autograd.grad(FrozenConv2d(conv, torch.float32, shape_of(conv, tuple(x.shape)), plan)(x), x, g)
    torch.testing.assert_close(grad, torch.autograd.grad(y, x, g)[0], rtol=1e-4, atol=1e-4)
    assert grad.is_contiguous(memory_format=torch.channels_last)


WINOGRAD = Plan("winograd", "convolution", "winograd")


@given(data=st.data())
def test_winograd_gives_the_same_values_and_gradients(data: st.DataObject) -> None:
    draw = data.draw
    inputs, outputs = draw(st.integers(16, 70)), draw(st.integers(16, 70))
    padding = (draw(st.integers(0, 2)), draw(st.integers(0, 2)))
    size = (draw(st.integers(1, 5)), inputs, draw(st.integers(3, 14)), draw(st.integers(3, 14)))
    conv = nn.Conv2d(inputs, outputs, 3, 1, padding, bias=draw(st.booleans())).requires_grad_(False)
    x = torch.randn(size, dtype=torch.float64, requires_grad=True)
    y = copy.deepcopy(conv).double()(x)
    g = torch.randn_like(y)
    (expected,) = torch.autograd.grad(y, x, g)
    shape = shape_of(conv, size)
    assert shape.by_winograd
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.bfloat16, 2e-2)):
        out = FrozenConv2d(conv, dtype, shape, WINOGRAD)(x)
        (grad,) = torch.autograd.grad(out, x, g.to(dtype))
        assert out.dtype == dtype and out.is_contiguous(memory_format=torch.channels_last)
        for found, wanted in ((out, y), (grad, expected)):
            assert relative_error(found, wanted) < tolerance / 4
            largest = float(wanted.detach().abs().max())
            torch.testing.assert_close(found.double(), wanted, rtol=tolerance, atol=tolerance * largest)


def test_winograd_spreads_what_is_no_number_and_nothing_else() -> None:
    conv = nn.Conv2d(16, 16, 3, padding=1).requires_grad_(False)
    x = torch.randn(2, 16, 12, 12)
    expected = conv(x)
    x[0, 3, 5, 6] = math.nan
    y = FrozenConv2d(conv, torch.float32, shape_of(conv, (2, 16, 12, 12)), WINOGRAD)(x)
    assert y[0, :, 4:7, 5:8].isnan().all()
    torch.testing.assert_close(y[1], expected[1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(y[0, :, 8:], expected[0, :, 8:], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("plan", PLANS[1:], ids=str)
def test_it_saves_no_activation_and_works_for_other_batches(plan: Plan) -> None:
    stride = 1 if plan.adjoint in ("convolution", "lanes") else 2
    conv = nn.Conv2d(3, 8, 3, stride, 1, bias=False).requires_grad_(False)
    layer = FrozenConv2d(conv, torch.float32, shape_of(conv, (4, 3, 12, 12)), plan)
    for size in ((4, 3, 12, 12), (1, 3, 12, 12), (2, 3, 15, 9)):
        saved: list[torch.Tensor] = []
        x = torch.randn(size, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=saved: s.append(t) or t, lambda t: t):
            y = layer(x)
        assert not any(t.shape == x.shape for t in saved)
        (grad,) = torch.autograd.grad(y.square().sum(), x)
        (expected,) = torch.autograd.grad(conv(x).square().sum(), x)
        torch.testing.assert_close(grad, expected, rtol=1e-4, atol=1e-4)


def test_bfloat16_and_float64() -> None:
    conv = nn.Conv2d(8, 8, 3, 2, 1, groups=8, bias=False).requires_grad_(False)
    shape, x = shape_of(conv, (2, 8, 9, 9)), torch.randn(2, 8, 9, 9, requires_grad=True)
    for dtype, tolerance in ((torch.bfloat16, 0.05), (torch.float64, 1e-6)):
        y = FrozenConv2d(conv, dtype, shape, Plan("plain", "zero_stuffed"))(x)
        (grad,) = torch.autograd.grad(y.sum(), x)
        (expected,) = torch.autograd.grad(conv(x).sum(), x)
        assert y.dtype == dtype and grad.dtype == torch.float32
        torch.testing.assert_close(grad, expected, rtol=tolerance, atol=tolerance)


def test_second_derivatives_raise() -> None:
    conv = nn.Conv2d(3, 4, 3).requires_grad_(False)
    x = torch.randn(1, 3, 6, 6, requires_grad=True)
    y = FrozenConv2d(conv, torch.float32, shape_of(conv, (1, 3, 6, 6)), Plan())(x)
    weight = torch.randn_like(y).requires_grad_()
    (grad,) = torch.autograd.grad((y * weight).sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="frozen_conv2d: second derivatives"):
        grad.sum().backward()


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_winograd_with_threads_and_other_batches(threads: int) -> None:
    conv = nn.Conv2d(20, 36, 3, padding=1).requires_grad_(False)
    layer = FrozenConv2d(conv, torch.float32, shape_of(conv, (4, 20, 9, 11)), WINOGRAD)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for size in ((1, 20, 3, 3), (4, 20, 9, 11), (1, 20, 40, 37), (67, 20, 5, 4)):
            x = torch.randn(size, requires_grad=True)
            y, expected = layer(x), conv(x)
            g = torch.randn_like(y)
            assert relative_error(y, expected) < 1e-5
            assert relative_error(*(torch.autograd.grad(out, x, g)[0] for out in (y, expected))) < 1e-5
    finally:
        torch.set_num_threads(before)


def test_winograd_under_autocast_and_in_a_bfloat16_network() -> None:
    model = nn.Sequential(
        nn.Conv2d(32, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(32, 5),
    ).eval()  # fmt: skip
    images = torch.randn(4, 32, 10, 10)
    for dtype in ("float32", "bfloat16"):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            teacher = FrozenTeacher(model, SPEC, batch_size=4, plans={"0": (dtype, WINOGRAD)})
        assert relative_error(teacher(images)[0], model(images)) < 0.02
    half = copy.deepcopy(model).bfloat16()
    teacher = FrozenTeacher(half, SPEC, batch_size=4, plans={"0": ("bfloat16", WINOGRAD)})
    assert relative_error(teacher(images)[0], model(images)) < 0.05


def test_a_teacher_with_winograds_convolutions() -> None:
    """Logits, statistics and the gradient of both, as without it; ReLU would jump where rounding changes a sign."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Sequential(nn.Conv2d(32, 24, 3, padding=1, bias=False), nn.BatchNorm2d(24), nn.SiLU())
            self.second = nn.Sequential(nn.Conv2d(24, 24, 3, padding=1), nn.BatchNorm2d(24))
            self.head = nn.Linear(24, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.first(x)
            return self.head(nn.functional.silu(self.second(x) + x).mean((2, 3)))

    model, images = Net().eval(), torch.randn(5, 32, 10, 10)
    found = []
    for plan in (Plan(), WINOGRAD):
        plans = {name: ("float32", plan) for name in ("first.0", "second.0")}
        teacher = FrozenTeacher(model, SPEC, batch_size=5, plans=plans)
        assert ("winograd" in teacher.summary()) == (plan == WINOGRAD)
        x = images.clone().requires_grad_()
        logits, layers = teacher(x)
        total = logits.square().sum() + sum(layer.mean.square().sum() + layer.var.sum() for layer in layers)
        (grad,) = torch.autograd.grad(total, x)
        found.append((logits, grad, *(t for layer in layers for t in (layer.mean, layer.var))))
    for mine, theirs in zip(*found, strict=True):
        assert relative_error(mine, theirs) < 1e-4


def test_a_network_whose_logits_winograd_changes_is_frozen_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Conv2d(32, 32, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 5)).eval()
    fails = FrozenTeacher._fails

    def and_with_winograd(self: FrozenTeacher, *args: torch.Tensor) -> str:
        return "its logits differ" if "Winograd" in self.summary().splitlines()[1] else fails(self, *args)

    monkeypatch.setattr(FrozenTeacher, "_fails", and_with_winograd)
    monkeypatch.setattr("exml_fast.engine.conv_tuning.fastest_plan", lambda *_: (WINOGRAD, 1.0))
    for precision in ("float32", "bfloat16"):
        teacher = FrozenTeacher(model, SPEC, precision=precision, batch_size=4)
        assert "without Winograd's algorithm: its logits differ with it" in teacher.summary()
        assert teacher.plans["0"] == (precision, WINOGRAD.without_winograd(getattr(torch, precision)))
        FrozenTeacher(model, SPEC, batch_size=4, plans=teacher.plans)  # as a resumed run has them
    with pytest.raises(ValueError, match="cannot be frozen: its logits differ"):
        FrozenTeacher(model, SPEC, batch_size=4, plans={"0": ("float32", WINOGRAD)})


def test_what_it_takes() -> None:
    assert FrozenConv2d.takes(nn.Conv2d(3, 4, 3)) and not FrozenConv2d.takes(nn.Conv2d(3, 4, 3, padding="same"))
    assert not FrozenConv2d.takes(nn.Conv2d(3, 4, 3, padding_mode="reflect", padding=1))
