"""The convolution with one image a vector lane against the library's, and the module that chooses between them."""

from __future__ import annotations

import copy
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from op_checks import assert_compiles, run_python
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from exml_fast.engine import conv_tuning, learned_conv
from exml_fast.engine.conv_plan import ConvShape
from exml_fast.engine.learned_conv import LearnedConv2d
from exml_fast.engine.substitution import twin
from exml_fast.ops import lane_conv2d, reference

TOLERANCE = {torch.float64: 1e-14, torch.float32: 4e-6, torch.bfloat16: 1e-2}


def assert_right(x: Tensor, weight: Tensor, bias: Tensor | None, padding: tuple[int, int]) -> None:
    """Output and all gradients are those of the twin in float64.

    Rounding errors of a sum grow with its terms, not with the sum itself, which may be near zero. So they are compared
    with the sum of the absolute terms: the same convolution of absolute values.
    """
    given = [t.detach() for t in (x, weight, bias) if t is not None]
    out_shape = reference.lane_conv2d(x, weight, bias, padding).shape
    g = torch.linspace(-1, 1, out_shape.numel(), dtype=torch.float64).view(out_shape).sin().to(x.dtype)

    def results(op: Callable[..., Tensor], tensors: list[Tensor], g: Tensor) -> list[Tensor]:
        leaves = [t.requires_grad_() for t in tensors]
        out = op(*leaves[:2], leaves[2] if bias is not None else None, padding)
        assert all(leaf.dtype == out.dtype for leaf in leaves)
        return [out.detach(), *torch.autograd.grad(out, leaves, g)]

    ours = results(lane_conv2d, [t.detach() for t in given], g)
    exact = results(reference.lane_conv2d, [t.double() for t in given], g.double())
    sizes = results(reference.lane_conv2d, [t.double().abs() for t in given], g.double().abs())
    for mine, theirs, size in zip(ours, exact, sizes, strict=True):
        assert mine.dtype == x.dtype
        assert ((mine.double() - theirs).abs() <= TOLERANCE[x.dtype] * (size + 1e-30)).all()


@given(data=st.data())
def test_values_and_gradients_are_the_librarys(data: st.DataObject) -> None:
    draw = data.draw
    kernel = (draw(st.integers(1, 7)), draw(st.integers(1, 7)))
    padding = tuple(draw(st.integers(0, k - 1)) for k in kernel)
    size = [draw(st.integers(max(1, k - 2 * p), 12)) for k, p in zip(kernel, padding, strict=True)]
    batch, inputs, outputs = (draw(st.integers(1, n)) for n in (35, 5, 19))
    dtype = draw(st.sampled_from(list(TOLERANCE)))
    wide = draw(st.booleans())  # more than is read: no format at all
    x = torch.randn(batch, inputs, size[0], size[1] * (1 + wide))[..., : size[1]].to(dtype)
    if draw(st.booleans()):
        x = x.contiguous(memory_format=draw(st.sampled_from([torch.channels_last, torch.contiguous_format])))
    weight = torch.randn(outputs, inputs, *kernel).to(dtype)
    bias = torch.randn(outputs, 2).to(dtype)[:, 0] if draw(st.booleans()) else None
    assert_right(x, weight, bias, padding)


@pytest.mark.parametrize("capability", ["baseline", "avx2", "avx512"])
def test_every_instruction_set(capability: str) -> None:
    """The choice is made when the extension is loaded."""
    run_python(
        "from test_ops_lane_conv2d import TOLERANCE, assert_right\n"
        "for dtype in TOLERANCE:\n"
        "    for kernel, outputs, padding in ((5, 16, 0), (3, 7, 1), (1, 1, 0), (6, 13, 5)):\n"
        "        shapes = (37, 6, 9, 11), (outputs, 6, kernel, kernel), (outputs,)\n"
        "        assert_right(*(torch.randn(shape).to(dtype) for shape in shapes), (padding, padding))\n",
        EXML_CPU_CAPABILITY=capability,
        PYTHONPATH=os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]),
    )


@pytest.mark.compiled
def test_gradcheck_and_second_derivatives() -> None:
    x, weight, bias = (torch.randn(s, dtype=torch.float64, requires_grad=True) for s in ((9, 2, 5, 4), (3, 2, 3, 3), 3))
    assert torch.autograd.gradcheck(lambda *leaves: lane_conv2d(*leaves, (1, 2)), (x, weight, bias))
    y = lane_conv2d(x, weight, bias, (0, 0))
    for leaf in (x, weight):
        (grad,) = torch.autograd.grad(y.square().sum(), leaf, create_graph=True)
        with pytest.raises(NotImplementedError, match="lane_conv2d: second derivatives"):
            grad.sum().backward()


@pytest.mark.compiled
def test_opcheck() -> None:
    op = torch.ops.exml
    for bias in (None, torch.randn(3)):
        for format in (torch.contiguous_format, torch.channels_last):
            x = torch.randn(9, 2, 6, 6).to(memory_format=format)
            weight = torch.randn(3, 2, 3, 3)
            torch.library.opcheck(op.lane_conv2d, (x.clone().requires_grad_(), weight, bias, (1, 1)))
            torch.library.opcheck(op._lane_conv2d_forward, (x, weight, bias, (1, 1)))
            grad = torch.randn(9, 3, 6, 6).to(memory_format=format)
            torch.library.opcheck(op._lane_conv2d_input, (grad, weight, x.shape, (1, 1)))
            torch.library.opcheck(op._lane_conv2d_weight, (grad, x, weight.shape, (1, 1)))


def test_compiles() -> None:
    weight, bias = torch.randn(3, 1, 3, 3), torch.randn(3)
    for format in (torch.contiguous_format, torch.channels_last):
        x = torch.empty(9, 1, 6, 6, memory_format=format).normal_()
        assert_compiles(lambda x: lane_conv2d(x, weight, bias, (1, 0)), x)


def test_no_images_and_no_number() -> None:
    assert_right(torch.randn(0, 2, 6, 6), torch.randn(3, 2, 3, 3), None, (1, 1))
    x = torch.zeros(17, 1, 6, 6)
    x[3, 0, 2, 2] = float("nan")
    y = lane_conv2d(x, torch.ones(2, 1, 3, 3), None, (1, 1))
    expected = F.conv2d(x, torch.ones(2, 1, 3, 3), padding=1)
    assert torch.equal(y.isnan(), expected.isnan()) and int(y.isnan().sum()) == 18


@pytest.mark.parametrize("channels", [1, 3])
def test_format_is_the_librarys(channels: int) -> None:
    x, weight = torch.randn(9, channels, 6, 6), torch.randn(4, channels, 3, 3)
    last = [torch.empty_like(t, memory_format=torch.channels_last).copy_(t) for t in (x, weight)]
    for images in (x, last[0]):
        for kernels in (weight, last[1]):
            ours, library = lane_conv2d(images, kernels, None, (0, 0)), F.conv2d(images, kernels)
            assert ours.stride() == library.stride()


@pytest.mark.compiled
def test_several_threads_give_the_same() -> None:
    run_python(
        "import torch, exml_fast.ops\n"
        "x, w = torch.randn(100, 3, 9, 9), torch.randn(4, 3, 3, 3)\n"
        "g = torch.randn(100, 4, 9, 9)\n"
        "found = []\n"
        "for threads in (1, 2, 2):\n"
        "    torch.set_num_threads(threads)\n"
        "    found.append((torch.ops.exml._lane_conv2d_input(g, w, x.shape, [1, 1]),\n"
        "                  torch.ops.exml._lane_conv2d_weight(g, x, w.shape, [1, 1])))\n"
        "for other in found[1:]:\n"
        "    assert torch.equal(found[0][0], other[0])\n"
        "    torch.testing.assert_close(found[0][1], other[1], rtol=1e-4, atol=1e-4)\n"
        "assert torch.equal(found[1][1], found[2][1])\n"
    )


@pytest.mark.compiled
def test_errors_name_the_argument() -> None:
    x, weight = torch.randn(9, 3, 6, 6), torch.randn(4, 3, 3, 3)
    with pytest.raises(ValueError, match=r"x must have shape \(N, C, H, W\) with C = 3"):
        lane_conv2d(x[:, :2], weight, None, (0, 0))
    with pytest.raises(ValueError, match="weight and bias must have x's dtype Float, got Double"):
        lane_conv2d(x, weight.double(), None, (0, 0))
    for wrong in (torch.zeros(1), torch.zeros(4, 1)):
        with pytest.raises(ValueError, match=r"bias must have shape \(4,\), got"):
            lane_conv2d(x, weight, wrong, (0, 0))
    with pytest.raises(ValueError, match="lane_conv2d: all tensors must be on one device, got cpu, meta"):
        lane_conv2d(x, weight.to("meta"), None, (0, 0))
    # An error of a private op is a RuntimeError from torch 2.15 on.
    with pytest.raises((ValueError, RuntimeError), match="padding must be from 0"):
        torch.ops.exml._lane_conv2d_input(x, weight, (9, 3, 2, 2), (3, 0))
    with pytest.raises(ValueError, match="padding must be from 0 to the kernel's size less one, got"):
        lane_conv2d(x, weight, None, (3, 0))
    with pytest.raises(ValueError, match=r"kernels of .* are larger than the padded images"):
        lane_conv2d(x[..., :2, :2], weight, None, (0, 0))


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learned_conv, "lanes_are_faster", lambda *_: True)


def test_module_shares_its_parameters_and_learns(always: None) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 5, padding=2), nn.Tanh(), nn.Conv2d(4, 6, 3, bias=False), nn.Flatten())
    other, reference = twin(model), copy.deepcopy(model)
    assert isinstance(other[0], LearnedConv2d) and other[0].weight is model[0].weight and other[2].bias is None
    assert [name for name, _ in other.named_parameters()] == [name for name, _ in model.named_parameters()]
    x = torch.randn(16, 1, 8, 8)
    for network in (other, reference):
        optimizer = torch.optim.SGD(network.parameters(), 0.05)
        for _ in range(3):
            optimizer.zero_grad()
            network(x).square().mean().backward()
            optimizer.step()
    for mine, theirs in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)


def lane(conv: nn.Conv2d) -> nn.Conv2d:
    assert LearnedConv2d.adopt(conv)
    return conv


@pytest.mark.compiled
def test_module_leaves_to_the_library_what_the_op_cannot_do(always: None) -> None:
    def runs(conv: nn.Conv2d, x: Tensor) -> bool:
        expected = conv(x)
        with torch.no_grad(), torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
            y = lane(conv)(x)
        torch.testing.assert_close(y, expected)
        return any(event.name == "exml::_lane_conv2d_forward" for event in seen.events())

    images = torch.randn(16, 2, 8, 8)
    assert runs(nn.Conv2d(2, 3, 3), images)
    assert not runs(nn.Conv2d(2, 3, 3), images[:4])  # most lanes would be empty
    assert not runs(nn.Conv2d(2, 3, 3), images[0])  # one image without a batch
    assert not runs(nn.Conv2d(2, 3, 3, stride=2), images)
    assert not runs(nn.Conv2d(2, 4, 3, groups=2), images)
    assert not runs(nn.Conv2d(2, 3, 3, dilation=2), images)
    assert not runs(nn.Conv2d(2, 3, 3, padding=3), images)
    for conv in (nn.Conv2d(2, 3, 3, padding="same"), nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect")):
        assert not LearnedConv2d.adopt(conv)
    hooked = nn.Conv2d(2, 3, 3)
    hooked.register_full_backward_hook(lambda *_: None)
    assert not LearnedConv2d.adopt(nn.Linear(2, 3)) and not LearnedConv2d.adopt(hooked)
    with torch.autocast("cpu", torch.bfloat16):
        assert lane(nn.Conv2d(2, 3, 3))(images).dtype == torch.bfloat16
    with pytest.raises(RuntimeError, match="to have 2 channels"):
        lane(nn.Conv2d(2, 3, 3))(torch.randn(16, 3, 8, 8))


@pytest.mark.compiled
def test_module_is_measured_apart_from_its_caller(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Inside of a checkpoint the measured passes would be run again, for ever."""
    monkeypatch.setenv("EXML_FAST_CACHE", str(tmp_path))
    monkeypatch.setattr(conv_tuning, "_measured", {})
    block = nn.Sequential(lane(nn.Conv2d(4, 4, 3)), nn.ReLU())
    x = torch.randn(16, 4, 8, 8, requires_grad=True)
    checkpoint(block, x, use_reentrant=False).sum().backward()
    assert x.grad is not None and len(conv_tuning._measured) == 1


def test_twins_of_networks_that_cannot_be_shared_are_they_themselves() -> None:
    locked = nn.Sequential(nn.Conv2d(2, 3, 3))
    locked.lock = threading.Lock()
    scripted = torch.jit.trace(nn.Conv2d(2, 3, 3), torch.randn(1, 2, 8, 8))
    for model in (locked, scripted):
        assert twin(model) is model
    kept = nn.Conv2d(2, 3, 3)
    kept.gain = 2.0
    made = twin(nn.Sequential(kept))[0]
    assert type(kept) is nn.Conv2d and isinstance(made, LearnedConv2d) and made.gain == 2.0


def test_choice_is_measured_once_a_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EXML_FAST_CACHE", str(tmp_path))
    monkeypatch.setattr(conv_tuning, "_measured", {})
    shape = ConvShape((64, 1, 12, 12), (2, 1, 5, 5), (1, 1), (0, 0), (1, 1), 1, False)
    first = [conv_tuning.lanes_are_faster(shape, torch.float32, *g) for g in ((False, True), (True, True))]
    monkeypatch.setattr(conv_tuning, "_measure_lanes", lambda *_: pytest.fail("measured again"))
    monkeypatch.setattr(conv_tuning, "_measured", {})  # as in another process
    assert first == [conv_tuning.lanes_are_faster(shape, torch.float32, *g) for g in ((False, True), (True, True))]
