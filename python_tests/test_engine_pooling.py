from __future__ import annotations

import pytest
import torch
import torch.nn.utils.prune
from torch import nn

from exml_fast.engine.activation import FrozenTanh
from exml_fast.engine.pooling import AveragePool2d
from exml_fast.engine.substitution import twin


def test_which_modules_it_stands_for() -> None:
    for pool in (nn.AvgPool2d(2), nn.AvgPool2d((2, 3)), nn.AvgPool2d(3, 3), nn.AvgPool2d(2, count_include_pad=False)):
        same = AveragePool2d.of(pool)
        x = torch.randn(2, 3, 7, 8)
        assert same is not None
        torch.testing.assert_close(same(x), pool(x))
    others = (nn.AvgPool2d(3, 2), nn.AvgPool2d(2, padding=1), nn.AvgPool2d(2, ceil_mode=True), nn.MaxPool2d(2))
    assert all(AveragePool2d.of(pool) is None for pool in (*others, nn.AvgPool2d(2, divisor_override=3)))


@pytest.mark.compiled
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(3, 5), (2, 6, 7), (2, 6, 5, 4), (0, 3), (4,)])
def test_tanh_is_the_library_s(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    ours = FrozenTanh.of(nn.Tanh())
    assert ours is not None
    x = (3 * torch.randn(shape)).to(dtype).requires_grad_()
    same = x.detach().clone().requires_grad_()
    y, expected = ours(x), torch.tanh(same)
    tolerance = 1e-2 if dtype == torch.bfloat16 else 1e-6
    torch.testing.assert_close(y, expected, rtol=tolerance, atol=tolerance)
    g = torch.randn_like(expected)
    (grad,), (wanted,) = torch.autograd.grad(y, x, g), torch.autograd.grad(expected, same, g)
    torch.testing.assert_close(grad, wanted, rtol=tolerance, atol=tolerance)
    hooked = nn.Tanh()
    hooked.register_forward_hook(lambda *_: None)
    assert FrozenTanh.of(hooked) is None and FrozenTanh.of(nn.ReLU()) is None


@pytest.mark.compiled
def test_a_twin_is_trained_with_its_original() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Tanh(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(18, 4)
    )
    same, x = twin(model), torch.randn(5, 1, 8, 8)
    kinds = [type(m) for m in same]
    assert FrozenTanh in kinds and AveragePool2d in kinds and type(model[2]) is nn.Tanh
    assert all(a is b for a, b in zip(model.parameters(), same.parameters(), strict=True))
    optimiser = torch.optim.SGD(model.parameters(), 0.1)
    before = model.eval()(x).detach()
    same.train()(x).square().sum().backward()
    optimiser.step()
    torch.testing.assert_close(model.eval()(x), same.eval()(x), rtol=1e-5, atol=1e-6)
    assert not torch.allclose(model(x), before) and int(model[1].num_batches_tracked) == 1


def test_no_twin_of_modules_that_may_bind_their_buffers_anew() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls = self.calls + 1
            return x

    model = nn.Sequential(Counting(), nn.Tanh())
    assert twin(model) is model


def test_no_twin_of_what_cannot_be_copied() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Tanh())
    torch.nn.utils.prune.l1_unstructured(model[0], "weight", 0.5)
    model(torch.zeros(1, 2))
    assert twin(model) is model
