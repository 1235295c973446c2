from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from exml_fast import FrozenTeacher, InputSpec
from exml_fast.engine.frozen_conv import FrozenConv2d
from exml_fast.engine.fusion import FrozenBatchNorm

SPEC = InputSpec(3, (16, 16), (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))


class OwnLinear(nn.Linear):
    """As timm's: a class of its own, whose forward torch.fx follows."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class Standardized(nn.Conv2d):
    """The weight is standardised in each call."""

    def forward(self, x: Tensor) -> Tensor:
        var, mean = torch.var_mean(self.weight, (1, 2, 3), keepdim=True)
        weight = (self.weight - mean) * torch.rsqrt(var + 1e-6)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class SamePadding(nn.Conv2d):
    """Pads by the size of its input, if it has to."""

    def forward(self, x: Tensor) -> Tensor:
        missing = (-(x.shape[-1] - self.kernel_size[0])) % self.stride[0]
        if missing > 0:
            x = F.pad(x, (missing // 2, missing - missing // 2) * 2)
        return F.conv2d(x, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class Small(nn.Module):
    def __init__(self, conv: type[nn.Conv2d] = nn.Conv2d, linear: type[nn.Linear] = nn.Linear) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(3, 16, 3, 2), nn.BatchNorm2d(16)
        self.conv2, self.bn2 = conv(16, 16, 2, groups=2, bias=False), nn.BatchNorm2d(16)
        self.head = linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.leaky_relu(self.bn2(self.conv2(x)), 0.1)
        return self.head(F.dropout(x.mean((2, 3)), 0.5, self.training))


def learned(network: nn.Module) -> nn.Module:
    """With running statistics that are not the first ones."""
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_(generator=torch.Generator().manual_seed(1))
            layer.running_var.uniform_(0.5, 2, generator=torch.Generator().manual_seed(2))
    return network.eval()


def require_the_same(teacher: FrozenTeacher, network: nn.Module, count: int = 5) -> None:
    x = torch.randn(count, *SPEC.shape, generator=torch.Generator().manual_seed(3)).requires_grad_()
    logits, expected = teacher(x)[0], network(x)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    found, wanted = (torch.autograd.grad(y.square().sum(), x)[0] for y in (logits, expected))
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3 * float(wanted.abs().max()))


@pytest.mark.parametrize("conv", [nn.Conv2d, Standardized])
def test_functional_layers_become_modules(conv: type[nn.Conv2d]) -> None:
    network = learned(Small(conv, OwnLinear))
    teacher = FrozenTeacher(network, SPEC, precision="float32")
    kinds = [type(module) for module in teacher.model.modules()]
    assert kinds.count(FrozenConv2d) == 2 and kinds.count(nn.Linear) == 1
    require_the_same(teacher, network)


@pytest.mark.parametrize("conv", [nn.Conv2d, Standardized, SamePadding])
def test_functional_layers_run_in_bfloat16(conv: type[nn.Conv2d], capfd: pytest.CaptureFixture[str]) -> None:
    network, x = learned(Small(conv, OwnLinear)), torch.randn(4, *SPEC.shape)
    teacher = FrozenTeacher(network, SPEC, precision="bfloat16")
    assert teacher.precision == "bfloat16" and "does not run" not in teacher.summary()
    torch.testing.assert_close(teacher(x)[0], network(x), rtol=0.1, atol=0.1)
    assert capfd.readouterr().err == ""


def test_a_network_that_asks_for_shapes_is_exported() -> None:
    network = learned(Small(SamePadding, OwnLinear))
    teacher = FrozenTeacher(network, SPEC, precision="float32")
    assert "torch.fx cannot follow Small" in teacher.summary()
    assert "1 with relu" in teacher.summary() and "1 with leaky_relu" in teacher.summary()
    assert sum(isinstance(module, FrozenConv2d) for module in teacher.model.modules()) == 2
    names = [module.name for module in teacher.model.modules() if isinstance(module, FrozenBatchNorm)]
    assert sorted(names) == ["bn1", "bn2"]
    for count in (1, 2, 5):
        require_the_same(teacher, network, count)
    layers = teacher(torch.randn(7, *SPEC.shape))[1]
    assert [layer.name for layer in layers] == ["bn1", "bn2"]
    torch.testing.assert_close(layers[0].target_mean, network.bn1.running_mean)


def test_other_activations_are_fused_after_an_export() -> None:
    class Other(Small):
        def __init__(self, activation: nn.Module) -> None:
            super().__init__(SamePadding)
            self.activation = activation

        def forward(self, x: Tensor) -> Tensor:
            y = self.activation(self.bn1(self.conv1(x)))
            return self.head((y + self.bn2(self.conv2(F.pad(y, (0, 1, 0, 1))))).mean((2, 3)))

    activations = {
        "relu": nn.ReLU(inplace=True), "relu6": nn.ReLU6(), "silu": nn.SiLU(inplace=True), "hardswish": nn.Hardswish(),
        "gelu": nn.GELU(), "gelu_tanh": nn.GELU(approximate="tanh"), "tanh": nn.Tanh(),
    }  # fmt: skip
    for name, activation in activations.items():
        network = learned(Other(activation))
        teacher = FrozenTeacher(network, SPEC, precision="float32")
        assert f"1 with {name}" in teacher.summary() and "1 with residual" in teacher.summary(), teacher.summary()
        require_the_same(teacher, network)


def test_failed_attempts_print_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    class OwnWeight(Small):
        def forward(self, x: Tensor) -> Tensor:
            return torch.matmul(self.bn1(self.conv1(x)).mean((2, 3)), self.head.weight.T)

    teacher = FrozenTeacher(learned(OwnWeight()), SPEC, precision="bfloat16")
    assert teacher.precision == "float32" and "does not run in bfloat16" in teacher.summary()
    assert capfd.readouterr().err == ""


class Padded(nn.Module):
    """Zeros around the images before a convolution, in several ways."""

    def __init__(self, pad: nn.Module, stride: int = 1) -> None:
        super().__init__()
        self.pad, self.conv, self.bn = pad, nn.Conv2d(3, 8, 3, stride, padding=(1, 0), bias=False), nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).mean((2, 3)))

    def features(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(self.pad(x))))


class Function(nn.Module):
    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__()
        self.args, self.kwargs = args, kwargs

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x, *self.args, **self.kwargs)


class Shared(Padded):
    """The padded images have a second use."""

    def features(self, x: Tensor) -> Tensor:
        padded = self.pad(x)
        return F.relu(self.bn(self.conv(padded))) + padded.mean()


class AsksForShapes(Padded):
    def features(self, x: Tensor) -> Tensor:
        if x.shape[2] < 2:
            raise ValueError("too small")
        return super().features(x)


@pytest.mark.parametrize("kind", [Padded, AsksForShapes])
@pytest.mark.parametrize("pad,padding", [
    (nn.ZeroPad2d((2, 2, 1, 1)), (2, 2)), (nn.ConstantPad2d(1, 0), (2, 1)), (Function((2, 2, 1, 1)), (2, 2)),
])  # fmt: skip
@pytest.mark.parametrize("stride", [1, 2])
def test_convolutions_pad_by_themselves(
    kind: type[Padded], pad: nn.Module, padding: tuple[int, int], stride: int
) -> None:
    network = learned(kind(pad, stride))
    teacher = FrozenTeacher(network, SPEC, precision="float32")
    (conv,) = (module for module in teacher.model.modules() if isinstance(module, FrozenConv2d))
    assert conv.shape.padding == padding and conv.shape.input[2:] == SPEC.size
    assert network.conv.padding == (1, 0)
    require_the_same(teacher, network)


@pytest.mark.parametrize("pad", [
    nn.ZeroPad2d((0, 1, 0, 1)), nn.ZeroPad2d(-1), nn.ConstantPad2d(1, 0.5), nn.ReflectionPad2d(1),
    Function((1, 1, 1, 1), mode="replicate"), Function((1, 1, 1, 1), value=2.0), Function((1, 1)), nn.Identity(),
])  # fmt: skip
@pytest.mark.parametrize("kind", [Padded, AsksForShapes])
def test_other_padding_stays(kind: type[Padded], pad: nn.Module) -> None:
    network = learned(kind(pad))
    teacher = FrozenTeacher(network, SPEC, precision="float32")
    (conv,) = (module for module in teacher.model.modules() if isinstance(module, FrozenConv2d))
    assert conv.shape.padding == (1, 0)
    require_the_same(teacher, network)


def test_padded_images_with_two_uses_stay() -> None:
    network = learned(Shared(nn.ZeroPad2d(1)))
    teacher = FrozenTeacher(network, SPEC, precision="float32")
    (conv,) = (module for module in teacher.model.modules() if isinstance(module, FrozenConv2d))
    assert conv.shape.padding == (1, 0)
    require_the_same(teacher, network)
