"""Layers of networks that learn: the same values and gradients as PyTorch's."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from exml_fast.engine import learned_conv
from exml_fast.engine.batch_norm import FusedBatchNorm2d, FusedSequential
from exml_fast.engine.learned_conv import LearnedConv2d
from exml_fast.engine.substitution import twin
from exml_fast.models import CifarResNet, SlimResNet18, Vgg11BnCifar
from exml_fast.models.rectified import rectified
from exml_fast.training.precision import placed

pytestmark = pytest.mark.compiled  # plain PyTorch otherwise


def images(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return (torch.randn(*shape) * 2 + 1).to(dtype).contiguous(memory_format=torch.channels_last)


def norms(channels: int, **arguments: float | None) -> tuple[nn.BatchNorm2d, FusedBatchNorm2d]:
    """A BatchNorm of PyTorch, and ours with the same parameters and statistics."""
    norm = nn.BatchNorm2d(channels, **arguments)
    for tensor in (norm.weight, norm.running_var):
        tensor.data.uniform_(0.5, 2)
    for tensor in (norm.bias, norm.running_mean):
        tensor.data.normal_()
    fused = copy.deepcopy(norm)
    assert FusedBatchNorm2d.adopt(fused) and isinstance(fused, FusedBatchNorm2d)
    return norm, fused


def ops_of(call: Callable[[], object]) -> set[str]:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
        call()
    return {event.name for event in seen.events()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("way", ["alone", "relu", "residual and relu"])
@pytest.mark.parametrize("momentum", [0.1, None])
def test_batch_norm_is_pytorchs(dtype: torch.dtype, way: str, momentum: float | None) -> None:
    torch.manual_seed(0)
    plain, fused = norms(20, momentum=momentum)
    x, grad = images(6, 20, 5, 7, dtype=dtype), torch.randn(6, 20, 5, 7).to(dtype)
    residual = images(6, 20, 5, 7, dtype=dtype) if "residual" in way else None
    found = []
    for norm in (plain, fused):
        leaves = [t.clone().requires_grad_() for t in (x, residual) if t is not None]
        for _ in range(2):  # the running statistics follow
            y = norm(leaves[0]) if way == "alone" else rectified(norm, *leaves)
            y.backward(grad)
        assert y.is_contiguous(memory_format=torch.channels_last)
        tensors = [y, *(t.grad for t in leaves), norm.weight.grad, norm.bias.grad, norm.running_mean, norm.running_var]
        found.append([t.detach().float() for t in tensors])
        assert norm.num_batches_tracked == 2
    tolerance = 1e-5 if dtype == torch.float32 else 0.05
    for ours, theirs in zip(*reversed(found), strict=True):
        assert (ours - theirs).norm() <= tolerance * theirs.norm()
    assert torch.allclose(fused.running_var, plain.running_var, rtol=1e-5)


def test_batch_norm_runs_in_one_op_where_it_can() -> None:
    def is_ours(norm: nn.Module, x: Tensor, residual: Tensor | None = None) -> bool:
        return "exml::_frozen_bn_act_forward" in ops_of(lambda: rectified(norm, x, residual))

    plain, fused = norms(4)
    x = images(3, 4, 6, 6)
    assert is_ours(fused, x) and is_ours(fused, x, x) and not is_ours(plain, x)
    assert not is_ours(fused, x.contiguous())
    assert rectified(fused, x, x.double()).dtype == torch.float64
    assert not is_ours(copy.deepcopy(fused).eval(), x) and not is_ours(copy.deepcopy(fused).double(), x.double())
    seen: list[Tensor] = []
    fused.register_forward_hook(lambda _layer, _args, y: seen.append(y))
    assert torch.equal(rectified(fused, x), F.relu(seen[0])) and (seen[0] < 0).any()  # a hook sees the BatchNorm's own
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        norms(4)[1](images(1, 4, 1, 1))
    assert norms(4)[1](images(2, 4, 3, 3) * float("nan")).isnan().all()
    for other in (nn.BatchNorm1d(3), nn.BatchNorm2d(3, affine=False), fused, nn.SyncBatchNorm(3)):
        assert not FusedBatchNorm2d.adopt(other)
    expected, same = (nn.BatchNorm2d(4, track_running_stats=False) for _ in range(2))
    assert FusedBatchNorm2d.adopt(same) and torch.equal(same(x), expected(x))


def test_batch_norm_has_the_gradients_of_its_formula() -> None:
    """Against finite differences, by a double copy of PyTorch's layer."""
    plain, fused = norms(3)
    x = images(2, 3, 4, 4).requires_grad_()
    direction = torch.randn_like(x)
    rectified(fused, x, x).mul(direction).sum().backward()
    double = copy.deepcopy(plain).double()
    z = x.detach().double().requires_grad_()
    (F.relu(double(z) + z) * direction.double()).sum().backward()
    torch.testing.assert_close(x.grad.double(), z.grad, rtol=1e-4, atol=1e-5)


def test_sequential_joins_a_batch_norm_and_its_relu() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.BatchNorm2d(8), nn.Flatten())
    model = model.to(memory_format=torch.channels_last)
    other = twin(copy.deepcopy(model))
    x = images(4, 3, 8, 8)
    assert isinstance(other, FusedSequential) and torch.allclose(other(x), model(x), atol=1e-5)
    assert "aten::relu" not in ops_of(lambda: other(x))
    seen: list[Tensor] = []
    other[2].register_forward_hook(lambda _layer, _args, y: seen.append(y))
    other(x)
    assert len(seen) == 1 and "aten::relu" in ops_of(lambda: other(x))
    model.register_forward_hook(lambda *_: None)
    assert not FusedSequential.adopt(model)


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learned_conv, "winograd_is_faster", lambda *_: True)
    monkeypatch.setattr(learned_conv, "lanes_are_faster", lambda *_: False)


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("padding", [0, 1, (2, 1)])
def test_convolution_by_winograd_learns_as_pytorchs(always: None, half: bool, padding: int | tuple[int, int]) -> None:
    torch.manual_seed(0)
    plain = nn.Conv2d(16, 40, 3, padding=padding)
    ours = copy.deepcopy(plain)
    assert LearnedConv2d.adopt(ours)
    found = []
    for conv in (plain, ours):
        x = images(3, 16, 9, 6).requires_grad_()
        torch.manual_seed(1)
        x.data.normal_()
        with torch.autocast("cpu", torch.bfloat16, half):
            y = conv(x)
        y.backward(torch.randn(y.shape).to(y))
        assert y.dtype == (torch.bfloat16 if half else torch.float32) and x.grad is not None
        found.append([t.float() for t in (y.detach(), x.grad, conv.weight.grad, conv.bias.grad)])
    for mine, theirs in zip(*reversed(found), strict=True):
        assert (mine - theirs).norm() <= (2e-2 if half else 1e-5) * theirs.norm()
    names = ops_of(lambda: ours(images(2, 16, 8, 8)))
    assert "exml::_frozen_conv2d_forward" in names and "aten::mkldnn_convolution" not in names


@pytest.mark.parametrize("stride", [2, (1, 3)])
@pytest.mark.parametrize("groups", [1, 2])
def test_a_strided_convolution_of_few_channels_has_no_stride(groups: int, stride: int | tuple[int, int]) -> None:
    torch.manual_seed(0)
    plain = nn.Conv2d(6, 4, 1, stride=stride, groups=groups)  # contiguous: PyTorch's kernel for it is right
    learned = placed(copy.deepcopy(plain), torch.device("cpu"))
    assert LearnedConv2d.adopt(learned)
    x = images(3, 6, 9, 8)
    found = []
    for conv, given in ((plain, x.contiguous()), (learned, x)):
        leaf = given.clone(memory_format=torch.preserve_format).requires_grad_()
        y = conv(leaf)
        y.backward(torch.ones_like(y).cumsum(3))
        found.append([y, leaf.grad, conv.weight.grad, conv.bias.grad])
    for ours, theirs in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(ours, theirs)
    assert set(learned._chosen.values()) == {"subsampled"}


def test_convolution_leaves_other_layers_to_pytorch(always: None) -> None:
    for conv, x in (
        (nn.Conv2d(16, 16, 3, stride=2), images(2, 16, 8, 8)),
        (nn.Conv2d(8, 16, 3), images(2, 8, 8, 8)),
        (nn.Conv2d(16, 16, 5), images(2, 16, 8, 8)),
        (nn.Conv2d(16, 16, 3), images(2, 16, 8, 8).contiguous()),
        (nn.Conv2d(16, 16, 3).double(), images(2, 16, 8, 8).double()),
    ):
        expected = conv(x)
        assert LearnedConv2d.adopt(conv)
        assert torch.equal(conv(x), expected) and "exml::_frozen_conv2d_forward" not in ops_of(lambda c=conv, x=x: c(x))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "make", [lambda: CifarResNet(8), lambda: SlimResNet18(width=16), lambda: Vgg11BnCifar(width=16)]
)
def test_twins_of_our_networks_learn_as_they_do(always: None, make: Callable[[], nn.Module], precision: str) -> None:
    torch.manual_seed(1)
    model = make().to(memory_format=torch.channels_last)
    plain, double = copy.deepcopy(model), copy.deepcopy(model).double()
    x = images(8, 3, 32, 32)
    for network in (plain, twin(model), double):
        inputs = x.double() if network is double else x
        with torch.autocast("cpu", torch.bfloat16, precision == "bfloat16" and network is not double):
            loss = F.cross_entropy(network(inputs).float(), torch.arange(8))
        loss.backward()

    def error(network: nn.Module) -> float:
        """Of the gradient; rounding moves values across the kinks of ReLUs."""
        pairs = list(zip(network.parameters(), double.parameters(), strict=True))
        wanted = torch.cat([q.grad.flatten() for _, q in pairs])
        return float((torch.cat([p.grad.flatten() for p, _ in pairs]) - wanted).norm() / wanted.norm())

    assert error(model) <= 1.5 * error(plain) + 0.01
    for (name, a), b in zip(model.named_buffers(), double.buffers(), strict=True):
        assert (a.double() - b).norm() <= (1e-4 if precision == "float32" else 0.05) * b.double().norm(), name
