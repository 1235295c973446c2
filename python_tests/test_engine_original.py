from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from exml_fast import FrozenTeacher, InputSpec
from exml_fast.engine import EagerTeacher
from exml_fast.engine.original import Original

SPEC = InputSpec(3, (16, 16), (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.other = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.norm(self.conv(x))).mean((2, 3)))


class WithoutGradient(Small):
    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        with torch.no_grad():
            gate = y.sigmoid()
        return self.head((self.norm(y) * gate).mean((2, 3)))


class Unused(Small):
    def forward(self, x: Tensor) -> Tensor:
        self.other(self.conv(x))
        return super().forward(x)


class OneByOne(Small):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([super(OneByOne, self).forward(x[i : i + 1]) for i in range(len(x))])


class Chaotic(Small):
    """Rounding decides its logits."""

    def forward(self, x: Tensor) -> Tensor:
        return (super().forward(x) * 1e8).sin()


def gradient(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    x = x.detach().requires_grad_()
    return torch.autograd.grad(function(x).square().sum(), x)[0]


def test_no_grad_inside_of_a_network_is_kept() -> None:
    network, x = WithoutGradient().eval(), torch.randn(4, *SPEC.shape)
    teacher = FrozenTeacher(network, SPEC, precision="float32")
    assert "torch.fx does not give WithoutGradient: its gradient differs by" in teacher.summary()
    expected = gradient(network, x)
    torch.testing.assert_close(gradient(lambda x: teacher(x)[0], x), expected, rtol=1e-4, atol=1e-6)


def test_a_batch_norm_whose_output_is_unused_has_statistics() -> None:
    network, x = Unused().eval(), torch.randn(4, *SPEC.shape)
    teacher, eager = FrozenTeacher(network, SPEC, precision="float32"), EagerTeacher(network, SPEC)
    assert teacher.matched_calls == eager.matched_calls == 2
    for found, expected in zip(teacher(x)[1], eager(x)[1], strict=True):
        torch.testing.assert_close(found.mean, expected.mean, rtol=1e-4, atol=1e-5)


def test_calls_that_depend_on_the_number_of_images_are_all_there() -> None:
    network, x = OneByOne().eval(), torch.randn(5, *SPEC.shape)
    teacher, eager = FrozenTeacher(network, SPEC, precision="float32"), EagerTeacher(network, SPEC)
    logits, layers = teacher(x)
    torch.testing.assert_close(logits, network(x), rtol=1e-4, atol=1e-5)
    assert len(layers) == 5
    for found, expected in zip(layers, eager(x)[1], strict=True):
        torch.testing.assert_close(found.var, expected.var, rtol=1e-4, atol=1e-5)


def test_a_network_that_rounding_changes_is_not_refused() -> None:
    network = Chaotic().eval()
    original = Original(network, SPEC)
    assert original.difference(network) == ""
    nearly = Small().eval()
    nearly.load_state_dict(network.state_dict())
    assert original.difference(lambda x: (nearly(x) * (1 + 1e-7) * 1e8).sin()) == ""
    FrozenTeacher(network, SPEC, precision="float32")


def test_another_network_is_refused() -> None:
    network = Small().eval()
    original = Original(network, SPEC)
    assert "its logits differ by" in original.difference(lambda x: network(x) * 1.01)
    assert original.difference(lambda x: network(x) * 1.0001) == ""
    assert original.difference(lambda x: network(x) * 1.01, half=True) == ""
    detached = original.difference(lambda x: network(x.detach()), traced=True)
    assert detached == "its gradient differs by 100 %"
    fixed = original.difference(lambda x: network(torch.cat([x[:2]] * math.ceil(len(x) / 2))[: len(x)]), traced=True)
    assert fixed == "its logits differ for another number of images"
    assert original.difference(lambda x: network(x[:, :2])).startswith("Given groups=1")


@pytest.mark.parametrize("kind", ["forward_hook", "forward_pre_hook"])
def test_hooks_that_look_on_do_not_see_the_copy(kind: str) -> None:
    network, seen = Small().eval(), []
    for module in (network, network.norm, network.conv):
        getattr(module, f"register_{kind}")(lambda module, args, *rest: seen.append(type(args[0])))
    teacher = FrozenTeacher(network, SPEC)
    assert seen == [Tensor] * 3 or seen == [nn.Parameter] * 3  # one pass, to see whether they change anything
    seen.clear()
    teacher(torch.randn(2, *SPEC.shape))
    assert seen == [] and "1 with relu" in teacher.summary()
    network(torch.randn(2, *SPEC.shape))
    assert len(seen) == 3


def test_hooks_that_change_the_network_belong_to_it() -> None:
    network, x = Small().eval(), torch.randn(4, *SPEC.shape)
    network.norm.register_forward_hook(lambda module, args, output: output * 2)
    network.conv.register_full_backward_hook(lambda module, given, arrived: (given[0] * 3,))
    teacher = FrozenTeacher(network, SPEC, precision="float32")
    assert "its hooks change what it computes" in teacher.summary()
    torch.testing.assert_close(teacher(x)[0], network(x), rtol=1e-4, atol=1e-5)
    expected = gradient(network, x)
    torch.testing.assert_close(gradient(lambda x: teacher(x)[0], x), expected, rtol=1e-3, atol=1e-6)
