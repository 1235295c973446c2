from __future__ import annotations

import pytest
import torch
from small_experts import quadrants, trained
from torch import nn

from exml_fast.continual.baselines import EnsembleAverage, MinEntropy, Oracle, ParameterAverage
from exml_fast.continual.expert import Card, Expert
from exml_fast.continual.scenarios import experience_accuracies, new_classes, stream_accuracy
from exml_fast.data import InputSpec

SPEC = InputSpec(1, (1, 1), (0.0,), (1.0,))


class Fixed(nn.Module):
    """Gives the same logits to every image."""

    def __init__(self, logits: list[float]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(logits))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight.expand(len(x), -1)


def fixed(logits: list[float], units: tuple[int, ...], classes: tuple[int, ...] | None = None) -> Expert:
    names = tuple(str(u) for u in units)
    return Expert(Fixed(logits), Card("lenet5", {}, units, classes or units, names, SPEC))


IMAGE = torch.zeros(2, 1, 1, 1)


def test_oracle_asks_the_expert_of_the_task_about_its_classes() -> None:
    oracle = Oracle([fixed([1.0, 0.0, 9.0], (0, 1, 2), (0, 1)), fixed([5.0], (7,))])
    assert oracle.predict(IMAGE, task=0).tolist() == [0, 0]
    assert oracle.predict(IMAGE, task=1).tolist() == [7, 7]
    for task in (None, 2, -1):
        with pytest.raises(ValueError, match="task must be an experience, 0 to 1"):
            oracle.predict(IMAGE, task)


def test_average_maps_logits_to_global_units() -> None:
    experts = [fixed([1.0, 4.0], (3, 0)), fixed([2.0, 9.0, 0.0], (0, 3, 5))]
    average = EnsembleAverage(experts)
    assert average.units == [0, 3, 5]
    torch.testing.assert_close(average.outputs(IMAGE)[0], torch.tensor([3.0, 5.0, 0.0]))
    assert average.predict(IMAGE).tolist() == [3, 3]
    probabilities = EnsembleAverage(experts, probabilities=True).outputs(IMAGE)[0]
    one, two = torch.softmax(torch.tensor([1.0, 4.0]), 0), torch.softmax(torch.tensor([2.0, 9.0, 0.0]), 0)
    torch.testing.assert_close(probabilities, torch.stack([(one[1] + two[0]) / 2, (one[0] + two[1]) / 2, two[2]]))


def test_min_entropy_believes_the_surest() -> None:
    unsure, sure = fixed([0.1, 0.0], (0, 1)), fixed([0.0, 9.0], (4, 6))
    assert MinEntropy([unsure, sure]).predict(IMAGE).tolist() == [6, 6]
    assert MinEntropy([sure, fixed([1000.0, 0.0], (0, 1))]).predict(IMAGE).tolist() == [0, 0]


def test_parameter_average_is_the_mean_of_the_weights() -> None:
    first, second = trained()
    average = ParameterAverage([first, second]).expert
    for name, weight in average.model.state_dict().items():
        mean = (first.model.state_dict()[name] + second.model.state_dict()[name]) / 2
        torch.testing.assert_close(weight, mean)
    assert average.classes == (0, 1, 2, 3)
    same = ParameterAverage([first, first])
    assert same.expert.fingerprint() == first.fingerprint()
    assert same.input_spec == first.input_spec


def test_parameter_average_refuses_different_networks_by_name() -> None:
    first, second = trained()
    for change, message in (
        ({"architecture": "timm/resnet18"}, "architecture of expert 1 is lenet5, of expert 2 timm/resnet18"),
        ({"arguments": {"num_classes": 4, "in_channels": 1, "batch_norm": True}}, "arguments of expert 1 .*batch_norm"),
        ({"units": (3, 2, 1, 0)}, r"units of expert 1 is \(0, 1, 2, 3\), of expert 2 \(3, 2, 1, 0\)"),
    ):  # fmt: skip
        card = Card(**{**{k: getattr(second.card, k) for k in second.card.__dataclass_fields__}, **change})
        with pytest.raises(ValueError, match=message):
            ParameterAverage([first, Expert(second.model, card)])


def test_baselines_on_the_quadrants() -> None:
    data, experiences = quadrants(), new_classes(quadrants(), 2)
    experts = list(trained())
    oracle = stream_accuracy(Oracle(experts), data, experiences)
    assert oracle >= 0.95
    for baseline in (EnsembleAverage(experts), MinEntropy(experts), ParameterAverage(experts)):
        assert 0 <= stream_accuracy(baseline, data, experiences) <= oracle
    assert experience_accuracies(Oracle(experts[:1]), data, experiences[:1]) == [oracle] or oracle < 1


def test_no_experts() -> None:
    for kind in (Oracle, EnsembleAverage, MinEntropy, ParameterAverage):
        with pytest.raises(ValueError, match="at least one expert"):
            kind([])
