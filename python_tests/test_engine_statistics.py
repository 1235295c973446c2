from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from exml_fast import BNStatistics, ops
from exml_fast.engine.freezing import frozen
from exml_fast.engine.statistics import StatisticsCapture, bn_layers


class Shared(nn.Module):
    """One BatchNorm that runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.bn(self.bn(input=x)) + x


def hook_count(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_a_layer_that_runs_twice_counts_twice() -> None:
    model, x = Shared().eval(), torch.randn(3, 2, 4, 4)
    model.bn.running_mean.fill_(1.0)
    with StatisticsCapture(model) as capture:
        model(x)
        assert len(capture) == 1 and len(capture.calls) == 2
        assert capture.calls[0].x is x
        assert torch.equal(capture.calls[1].x, model.bn(x))
        assert all(call.mean is model.bn.running_mean and call.var is model.bn.running_var for call in capture.calls)
    assert hook_count(model) == 0 and not capture.calls


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.BatchNorm1d(3), (4, 3)),
        (nn.BatchNorm1d(3), (4, 3, 5)),
        (nn.BatchNorm2d(3), (4, 3, 5, 5)),
        (nn.BatchNorm3d(3), (4, 3, 2, 2, 2)),
        (nn.SyncBatchNorm(3), (4, 3, 5, 5)),
        (FrozenBatchNorm2d(3), (4, 3, 5, 5)),
    ],
)
def test_every_kind_of_batch_norm_is_seen(layer: nn.Module, shape: tuple[int, ...]) -> None:
    model = nn.Sequential(layer).eval()
    with StatisticsCapture(model) as capture:
        model(torch.randn(shape))
        assert [tuple(call.x.shape) for call in capture.calls] == [shape]


def test_timm_layers_are_seen_before_their_activation() -> None:
    timm_layers = pytest.importorskip("timm.layers")
    for kind in (timm_layers.BatchNormAct2d, timm_layers.FrozenBatchNormAct2d):
        model, x = nn.Sequential(kind(3)).eval(), torch.randn(2, 3, 4, 4)
        with StatisticsCapture(model) as capture:
            model(x)
            assert capture.calls[0].x is x


def test_instance_norm_is_no_batch_norm() -> None:
    assert bn_layers(nn.Sequential(nn.InstanceNorm2d(3, track_running_stats=True), nn.GroupNorm(1, 3))) == []


def test_layers_without_running_statistics_are_named() -> None:
    model = nn.Sequential(nn.BatchNorm2d(2), nn.Sequential(nn.BatchNorm2d(2, track_running_stats=False)))
    with pytest.raises(ValueError, match=r"running statistics.*1\.0"):
        StatisticsCapture(model)


def test_hooks_go_on_an_exception() -> None:
    model = Shared()
    with pytest.raises(KeyboardInterrupt), StatisticsCapture(model):
        assert hook_count(model) == 1
        raise KeyboardInterrupt
    assert hook_count(model) == 0


def expected_distance(x: torch.Tensor, bn: nn.BatchNorm2d) -> torch.Tensor:
    var, mean = torch.var_mean(x, (0, 2, 3), correction=0)
    assert bn.running_mean is not None and bn.running_var is not None
    return torch.linalg.vector_norm(var - bn.running_var) + torch.linalg.vector_norm(mean - bn.running_mean)


def test_bn_statistics_of_the_last_pass() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 2, 1), nn.Sequential(nn.ReLU(), nn.BatchNorm2d(2))).double()
    before = copy.deepcopy(model.eval()[:2])
    with BNStatistics(model) as statistics:
        with pytest.raises(RuntimeError, match="call the model"):
            statistics.loss()
        for _ in range(2):
            x = torch.randn(4, 3, 5, 5, dtype=torch.float64, requires_grad=True)
            model(x)
        inner = before(x).relu()
        expected = [expected_distance(x, model[0]), expected_distance(inner, model[2][1])]
        assert list(statistics.losses) == ["0", "2.1"]
        assert torch.allclose(torch.stack([*statistics.losses.values()]), torch.stack(expected))
        gradients = torch.autograd.grad(statistics.loss(first=10.0), x, retain_graph=True)
        assert torch.allclose(*gradients, *torch.autograd.grad(10 * expected[0] + expected[1], x, retain_graph=True))
    assert hook_count(model) == 0
    model(torch.randn(4, 3, 5, 5, dtype=torch.float64))
    assert torch.allclose(statistics.loss(), sum(expected))  # type: ignore[arg-type]


def test_bn_statistics_of_a_layer_that_runs_twice() -> None:
    model, x = Shared().eval(), torch.randn(3, 2, 4, 4)
    model.bn.running_mean.fill_(1.0)
    with BNStatistics(model) as statistics:
        model(x)
    expected = expected_distance(x, model.bn), expected_distance(model.bn(x), model.bn)
    assert list(statistics.losses) == ["bn"]
    assert torch.allclose(statistics.losses["bn"], expected[0] + expected[1])
    assert torch.allclose(statistics.loss(first=3.0), 3 * expected[0] + expected[1])


def test_bn_statistics_of_a_batch_norm_itself_in_training() -> None:
    model, x = nn.BatchNorm2d(2), torch.randn(3, 2, 4, 4) + 1
    expected = expected_distance(x, model)
    with BNStatistics(model) as statistics:
        model(x)
        assert torch.allclose(statistics.loss(), expected)
        model(x)
        assert statistics.loss() < expected  # the first pass moved the running statistics
    assert model.training and hook_count(model) == 0


@pytest.mark.parametrize(("distance", "moment"), [("squared", "std"), ("gaussian_kl", "var")])
def test_bn_statistics_of_other_distances(distance: str, moment: str) -> None:
    model, x = nn.Sequential(nn.BatchNorm2d(2)).eval(), torch.randn(3, 2, 4, 4)
    with BNStatistics(model, distance, moment) as statistics:
        model(x)
    bn = model[0]
    assert torch.equal(statistics.loss(), ops.bn_match(x, bn.running_mean, bn.running_var, distance, moment))


def test_bn_statistics_sees_the_input_before_it_is_changed() -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bn = nn.BatchNorm2d(2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.bn(x) + x.mul_(3)

    model, x = InPlace().eval(), torch.randn(3, 2, 4, 4)
    expected = expected_distance(x, model.bn)
    with torch.no_grad(), BNStatistics(model) as statistics:
        model(x)
    assert torch.allclose(statistics.loss(), expected)


def test_bn_statistics_in_one_another() -> None:
    model, x = nn.Sequential(nn.BatchNorm2d(2), nn.Sequential(nn.BatchNorm2d(2))).eval(), torch.randn(3, 2, 4, 4)
    with BNStatistics(model) as outer:
        with BNStatistics(model, "squared") as inner, BNStatistics(model[1]) as part:
            model(x)
        assert inner.loss() != outer.loss() and list(part.losses) == ["0"]
        expected = inner.loss(), part.loss()
        model(2 * x)
        assert (inner.loss(), part.loss()) == expected
        assert torch.allclose(outer.losses["0"], expected_distance(2 * x, model[0]))
    assert hook_count(model) == 0


def test_a_bn_statistics_that_is_active_is_not_entered_again() -> None:
    model, x = nn.Sequential(nn.BatchNorm2d(2)).eval(), torch.randn(3, 2, 4, 4)
    statistics = BNStatistics(model)
    with statistics:
        with pytest.raises(RuntimeError, match="active already: make another one"), statistics:
            pass
        model(x)
        assert torch.allclose(statistics.loss(), expected_distance(x, model[0]))
    assert hook_count(model) == 0
    with statistics:
        model(2 * x)
    assert torch.allclose(statistics.loss(), expected_distance(2 * x, model[0]))


def test_bn_statistics_errors() -> None:
    with pytest.raises(ValueError, match="Linear has none"):
        BNStatistics(nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"running statistics.*0"):
        BNStatistics(nn.Sequential(nn.BatchNorm2d(2, track_running_stats=False)))
    model = nn.Sequential(nn.BatchNorm2d(2))
    with pytest.raises(ValueError, match="distance"), BNStatistics(model, "l3"):
        model(torch.randn(2, 2, 3, 3))
    assert hook_count(model) == 0


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_frozen_gives_the_model_back_as_it_was(error: type[BaseException]) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(), nn.Sequential(nn.BatchNorm1d(2)))
    model.train()
    model[2].eval()
    model[0].bias.requires_grad_(False)
    before = [m.training for m in model.modules()], [p.requires_grad for p in model.parameters()]
    with pytest.raises(error), torch.no_grad(), frozen(model):
        assert not any(m.training for m in model.modules())
        assert not any(p.requires_grad for p in model.parameters())
        assert torch.is_grad_enabled()
        raise error
    assert ([m.training for m in model.modules()], [p.requires_grad for p in model.parameters()]) == before
