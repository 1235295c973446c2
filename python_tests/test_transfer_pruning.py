"""Pruning: groups and importance against zeroed filters, sizes by hand, latency tables, resume, what is refused."""

from __future__ import annotations

import copy
import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from small_experts import quadrants
from small_training import SPEC, everything, same, unchanged
from torch import Tensor, nn

from exml_fast.continual import Expert
from exml_fast.data import InputSpec, NaturalFields
from exml_fast.models import create, resize_layers, widths_of
from exml_fast.training import Training, softened_kl, train_classifier
from exml_fast.transfer import Distillation
from exml_fast.transfer.pruning import LatencyTable, prune
from exml_fast.transfer.pruning.filters import Taylor, filter_groups
from exml_fast.transfer.pruning.latency import Layer, layers_of, multiply_adds

pytest.importorskip("torch_pruning")
COLOUR = InputSpec(3, (32, 32), (0.5,) * 3, (0.25,) * 3)
QUICK: dict[str, Any] = {"steps": 3, "batch_size": 16, "augmentation": {}, "precision": "float32"}


class Small(nn.Module):
    """A residual block between two convolutions, a depthwise convolution, and two linear layers."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(1, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
        self.inner = nn.Sequential(nn.Conv2d(width, 2 * width, 1), nn.BatchNorm2d(2 * width), nn.ReLU())
        self.depth = nn.Conv2d(2 * width, 2 * width, 3, 2, 1, groups=2 * width)
        self.outer = nn.Sequential(nn.Conv2d(2 * width, width, 1), nn.BatchNorm2d(width))
        self.pool = nn.AvgPool2d(2)
        self.head = nn.Sequential(nn.Linear(width * 16, 12), nn.ReLU(), nn.Linear(12, 4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = nn.functional.avg_pool2d(x, 2) + self.outer(self.depth(self.inner(x)))
        return self.head(self.pool(x).flatten(1))


class Products(LatencyTable):
    """A layer takes as long as it has pairs of channels."""

    def _of(self, layer: Any, outputs: int, inputs: int) -> float:
        return float(outputs * inputs)


@pytest.fixture(scope="module")
def taught() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Small()
    config = Training(steps=80, batch_size=32, lr=5e-3)
    return train_classifier(model, quadrants().train, SPEC, config=config).model


@pytest.fixture(scope="module")
def images() -> Tensor:
    return SPEC.prepare(quadrants().train.images[:48])


def example(spec: InputSpec) -> Tensor:
    return torch.zeros(1, *spec.shape)


def test_groups_are_the_filters_that_go_together(taught: nn.Module) -> None:
    groups, fixed = filter_groups(copy.deepcopy(taught), example(SPEC))
    assert not fixed and {group.channels for group in groups} == {8, 16, 12}
    stream = next(group for group in groups if group.channels == 8)
    assert len(stream.producers) == 2 and {type(member.module) for member in stream.consumers} == {nn.Conv2d, nn.Linear}
    inner = next(group for group in groups if group.channels == 16)
    assert {member.module.groups for member in inner.producers} == {1, 16}


def test_a_stream_whose_channels_are_shifted_stays() -> None:
    """The shortcuts of CIFAR's ResNets fill new channels with zeros on both sides."""
    groups, fixed = filter_groups(create("cifar_resnet", depth=8).eval(), example(COLOUR))
    assert [group.name for group in groups] == ["layer1.0.conv1", "layer2.0.conv1", "layer3.0.conv1"]
    assert list(fixed) == ["conv1"] and "not known" in fixed["conv1"]


def test_removing_filters_is_not_reading_them(taught: nn.Module, images: Tensor) -> None:
    for k in range(3):
        model, zeroed = copy.deepcopy(taught), copy.deepcopy(taught)
        group = filter_groups(model, example(SPEC))[0][k]
        names = {id(m): name for name, m in model.named_modules()}
        for consumer in group.consumers:
            each = len(consumer.channels) // group.channels
            unread = [each * c + k for c in (1, 2, 5) for k in range(each)]
            with torch.no_grad():
                zeroed.get_submodule(names[id(consumer.module)]).get_parameter("weight")[:, unread] = 0
        group.remove([5, 1, 2])
        torch.testing.assert_close(model(images), zeroed(images))


def test_importance_is_the_squared_gradient_of_a_gate(taught: nn.Module, images: Tensor) -> None:
    """Gates are written into the forward pass here."""
    model = copy.deepcopy(taught)
    groups, _ = filter_groups(model, example(SPEC))
    drawn = torch.randn(48, 4, generator=torch.Generator().manual_seed(2))
    taylor, wanted = Taylor(), taught(images).detach() + 0.3 * drawn
    with taylor.watching([gate.module for group in groups for gate in group.gates]):
        for part in range(2):
            rows = slice(24 * part, 24 * part + 24)
            model.zero_grad()
            softened_kl(wanted[rows], model(images[rows]), 2.0).backward()
            taylor.count()
    for group in groups:
        total = torch.zeros(group.channels, dtype=torch.float64)
        for gate in group.gates:
            for part in range(2):
                rows = slice(24 * part, 24 * part + 24)
                z = torch.ones(group.channels, requires_grad=True)

                def gated(_m: nn.Module, _i: Any, output: Tensor, z: Tensor = z) -> Tensor:
                    return output * (z.view(1, -1, 1, 1) if output.dim() == 4 else z)

                handle = gate.module.register_forward_hook(gated)
                loss = softened_kl(wanted[rows], model(images[rows]), 2.0)
                handle.remove()
                total += torch.autograd.grad(loss, z)[0].double().square() / 2
        torch.testing.assert_close(taylor.of(group), total, rtol=1e-4, atol=1e-9)
    assert taylor.batches == 2


def test_sizes_are_those_by_hand(taught: nn.Module) -> None:
    layers = layers_of(taught, example(SPEC))
    assert [layer.widths for layer in layers] == [(8, 1), (16, 8), (16, 16), (8, 16), (12, 128), (4, 12)]
    products = 16 * 16 * 8 * 9 + 16 * 16 * 16 * 8 + 8 * 8 * 16 * 9 + 8 * 8 * 8 * 16 + 12 * 128 + 4 * 12
    assert multiply_adds(layers) == products
    less = {layers[2].module: (4, 4)}
    assert multiply_adds(layers, less) == products - 8 * 8 * 12 * 9


def test_a_table_measures_each_shape_once(taught: nn.Module, tmp_path: Path) -> None:
    table, layers = LatencyTable(threads=1, path=tmp_path / "table.json"), layers_of(taught, example(SPEC))
    whole = table.latency(layers)
    assert whole > 0 and len(table.milliseconds) == 6
    table.save()
    again = LatencyTable(threads=1, path=tmp_path / "table.json")
    assert again.latency(layers) == whole and len(again.milliseconds) == 6
    keys = list(table.milliseconds)
    again.milliseconds = dict.fromkeys(keys, 1.0)
    assert again.latency(layers) == 6.0


def test_a_table_is_filled_with_the_fastest_times(taught: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    table, layers, asked = LatencyTable(threads=1), layers_of(taught, example(SPEC)), list[tuple[int, int]]()

    def measured(self: LatencyTable, layer: Layer, outputs: int, inputs: int) -> float:
        asked.append((outputs, inputs))
        return 2.0 + (len(asked) % 7 == 0)

    monkeypatch.setattr(LatencyTable, "_measured", measured)
    table.fill(layers, chunk=4, rounds=3)
    convolutions = [(8, 1), (4, 1), *((out, into) for out in (16, 12, 8, 4) for into in (8, 4))]
    convolutions += [(16, 16), (12, 12), (8, 8), (4, 4)]  # depthwise
    convolutions += [(out, into) for out in (8, 4) for into in (16, 12, 8, 4)]
    assert asked == convolutions * 3 and set(table.milliseconds.values()) == {2.0}
    table.latency(layers, {layers[1].module: (12, 4), layers[3].module: (4, 12)})
    assert asked == [*convolutions * 3, (12, 128), (4, 12)]  # only the linear layers were not in the table


def test_a_filled_table_leaves_out_what_groups_forbid() -> None:
    model = nn.Conv2d(8, 12, 1, groups=4)
    table = LatencyTable(threads=1)
    table.fill(layers_of(model, torch.zeros(1, 8, 8, 8)), chunk=2, rounds=1)
    assert [key.split()[4:6] for key in table.milliseconds] == [
        ["12", "8"],
        ["12", "4"],
        ["8", "8"],
        ["8", "4"],
        ["4", "8"],
        ["4", "4"],
    ]


def test_tables_share_a_file(taught: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = (LatencyTable(threads=1, batch_size=size, path=tmp_path / "table.json") for size in (1, 2))
    layers = layers_of(taught, example(SPEC))
    for table in (first, second):
        table.latency(layers)
        table.save()
    both = LatencyTable(threads=1, path=tmp_path / "table.json").milliseconds
    assert both == first.milliseconds | second.milliseconds and len(both) == 12
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "another")
    other = LatencyTable(threads=1, path=tmp_path / "table.json")
    other.latency(layers)
    assert len(other.milliseconds) == 18  # a CPU with other instructions measures anew


@pytest.mark.parametrize("target", ["filters", "flops", "latency"])
def test_the_share_that_is_asked_for_is_removed(target: Any, taught: nn.Module, images: Tensor) -> None:
    before = everything(taught)
    result = prune(
        taught, images, 0.3, target=target, spec=SPEC, chunk=2, filters=4, fine_tuning=None, table=Products(), **QUICK,
    )  # fmt: skip
    left = result.rounds[-1][target]
    assert left <= 0.7 and (len(result.rounds) == 1 or result.rounds[-2][target] > 0.7)
    assert unchanged(before, taught) and result.seconds.keys() == {"prune"} and not result.fixed
    layers = layers_of(result.model, example(SPEC))
    if target == "filters":
        assert left == sum(la.widths[0] for la in layers if isinstance(la.module, nn.Conv2d)) / 48
    elif target == "flops":
        assert left == multiply_adds(layers) / multiply_adds(layers_of(taught, example(SPEC)))
    # What is saved as widths builds the same network again.
    rebuilt = resize_layers(Small(), result.widths)
    rebuilt.load_state_dict(result.model.state_dict())
    torch.testing.assert_close(rebuilt.eval()(images), result.model(images))


def test_unimportant_filters_go_first(taught: nn.Module, images: Tensor) -> None:
    model = copy.deepcopy(taught)
    with torch.no_grad():
        model.inner[1].weight[[1, 3, 4, 9]] = 0  # type: ignore[index, union-attr]
        model.inner[1].bias[[1, 3, 4, 9]] = -1  # type: ignore[index, union-attr]
    config = {**QUICK, "lr": 1e-7}
    result = prune(model, images, 0.01, spec=SPEC, chunk=4, filters=4, fine_tuning=None, **config)
    assert list(result.rounds[0]["removed"].values()) == [4]
    left = result.model.inner[1].bias.detach()  # type: ignore[index, union-attr]
    assert len(left) == 12 and not bool((left < -0.9).any())


def test_fine_tuning_brings_the_answers_back(taught: nn.Module, images: Tensor) -> None:
    config = Distillation().replace(steps=40, batch_size=16, lr=0.01, augmentation={}, temperature=2.0)
    result = prune(taught, images, 0.4, spec=SPEC, chunk=2, filters=8, fine_tuning=config, **QUICK)
    agreement = (result.model(images).argmax(1) == taught(images).argmax(1)).float().mean()
    assert agreement > 0.9 and result.history["agreement"][-1] > 0.8 and result.seconds["fine-tune"] > 0


def test_an_interrupted_pruning_continues_bit_for_bit(taught: nn.Module, images: Tensor, tmp_path: Path) -> None:
    tuning = Distillation().replace(steps=60, batch_size=16, lr=0.01, augmentation={})

    def run(**more: Any) -> Any:
        return prune(taught, images, 0.3, spec=SPEC, chunk=2, filters=4, fine_tuning=tuning, seed=3, **QUICK, **more)

    expected = run()
    for stage in ("prune", "learn"):
        told = list[str]()

        def interrupt(at: str, *_: object, stage: str = stage, told: list[str] = told) -> None:
            told.append(at)
            if at == stage and told.count(at) == 1 + (stage == "prune"):
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run(checkpoint_dir=tmp_path / stage, progress=interrupt)
        found = run(checkpoint_dir=tmp_path / stage)
        assert same(expected.model.state_dict(), found.model.state_dict()) and found.rounds == expected.rounds
        assert not list((tmp_path / stage).iterdir())


def test_a_pruned_expert_travels(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = create("cifar_resnet", depth=8, num_classes=4)
    result = prune(model, NaturalFields(), 0.2, spec=COLOUR, fine_tuning=None, **{**QUICK, "steps": 1})
    name, arguments = result.architecture("cifar_resnet", {"depth": 8, "num_classes": 4})
    Expert.wrap(result.model, COLOUR, [0, 1, 2, 3], architecture=name, arguments=arguments).save(tmp_path / "small")
    loaded, x = Expert.load(tmp_path / "small").model, torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(loaded.eval()(x), result.model(x), rtol=1e-4, atol=1e-4)
    assert widths_of(loaded) == result.widths


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ratio": 0.0}, "ratio must be a number between 0 and 1"),
        ({"ratio": 1.0}, "ratio must be a number between 0 and 1"),
        ({"ratio": 0.95}, "ratio must be at most 0\\.[0-9]+, got 0.95: [0-9]+ % of the filters are left"),
        (
            {"target": "latency", "ratio": 0.99, "table": Products(threads=1)},
            "no more filters can be removed: [0-9]+ % of the latency are left",
        ),
        ({"average": 0.9}, "average must be 0"),
        (
            {"target": "latency", "table": LatencyTable("cuda", threads=1)},
            "table must be of latencies on 'cpu', got one of 'cuda'",
        ),
        ({"target": "memory"}, "target must be 'filters', 'flops' or 'latency'"),
        ({"images": torch.randn(4, 1, 16, 16)}, r"images must be \(N, 1, 32, 32\)"),
        ({"images": torch.full((4, 1, 32, 32), torch.nan)}, "images hold NaN"),
        ({"chunk": 0}, "chunk must be at least 1"),
        ({"colour": 3}, "colour"),
        ({"model": nn.Sequential(nn.Flatten(), nn.Linear(1024, 4))}, "model has no layer whose filters can be removed"),
    ],
)
def test_bad_input_is_named(changes: dict[str, Any], message: str, taught: nn.Module, images: Tensor) -> None:
    given: dict[str, Any] = {"model": taught, "images": images, "ratio": 0.3} | QUICK | changes
    with pytest.raises(ValueError, match=message):
        prune(
            given.pop("model"), given.pop("images"), given.pop("ratio"), spec=SPEC, fine_tuning=None,
            **{"filters": 200, **given},
        )  # fmt: skip


@pytest.mark.parametrize("target", ["filters", "flops"])
def test_the_largest_ratio_can_be_reached(target: Any, taught: nn.Module, images: Tensor) -> None:
    def run(ratio: float) -> Any:
        return prune(taught, images, ratio, target=target, spec=SPEC, fine_tuning=None, **{**QUICK, "filters": 200})

    with pytest.raises(ValueError, match="ratio must be at most") as error:
        run(0.99)
    largest = float(str(error.value).split("at most ")[1].split(",")[0])
    with pytest.raises(ValueError, match="ratio must be at most"):
        run(largest + 0.002)
    assert run(largest).rounds[-1][target] <= 1 - largest


def test_filters_alone_are_removed_when_filters_count() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3, padding="same"), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(4), nn.Flatten(),
        nn.Linear(2048, 96), nn.ReLU(), nn.Linear(96, 4),
    )  # fmt: skip
    result = prune(model, NaturalFields(), 0.25, spec=COLOUR, fine_tuning=None, **QUICK)
    assert result.widths["0"] == [24, 3] and result.widths["5"] == [96, 24 * 64]
    layers = layers_of(model, torch.zeros(1, 3, 32, 32))
    assert multiply_adds(layers) == 32 * 32 * 32 * 27 + 2048 * 96 + 96 * 4
    assert LatencyTable(threads=1).latency(layers) > 0


def test_grouped_convolutions_stay() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3, groups=4), nn.ReLU(), nn.Conv2d(16, 32, 3, groups=16),
        nn.ReLU(), nn.Conv2d(32, 16, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4),
    )  # fmt: skip
    groups, fixed = filter_groups(model.eval(), torch.zeros(1, 3, 32, 32))
    assert [group.name for group in groups] == ["6"]
    assert all("is a grouped convolution" in reason for reason in fixed.values()) and "0" in fixed


class Shuffled(nn.Module):
    """Channels are cut in half and exchanged."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(4, 4, 1), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.first(x).chunk(2, 1)
        x = torch.cat([left, self.second(right)], 1)
        x = x.view(len(x), 2, 4, *x.shape[2:]).transpose(1, 2).flatten(1, 2)
        return self.head(x.mean((2, 3)))


def test_networks_that_cannot_be_followed_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    _, fixed = filter_groups(Shuffled().eval(), torch.zeros(1, 3, 8, 8))
    assert fixed

    def fails(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("by zero")

    package = importlib.import_module("torch_pruning")
    monkeypatch.setattr(package.DependencyGraph, "build_dependency", fails)
    with pytest.raises(ValueError, match="model, a Shuffled, has layers that torch-pruning cannot follow"):
        filter_groups(Shuffled().eval(), torch.zeros(1, 3, 8, 8))


def test_a_checkpoint_of_another_table_is_refused(taught: nn.Module, images: Tensor, tmp_path: Path) -> None:
    def interrupt(stage: str, *_: object) -> None:
        raise KeyboardInterrupt

    def run(target: Any, batch_size: int, **options: Any) -> Any:
        return prune(
            taught, images, 0.3, target=target, table=Products(batch_size=batch_size, threads=1), spec=SPEC,
            fine_tuning=None, checkpoint_dir=tmp_path / target, **QUICK, **options,
        )  # fmt: skip

    for target in ("latency", "filters"):
        with pytest.raises(KeyboardInterrupt):
            run(target, 1, progress=interrupt)
    with pytest.raises(ValueError, match="to another run"):
        run("latency", 2)
    assert run("filters", 2).rounds  # which no table decides


class WithAuxiliaryHead(Small):
    """A second head that only runs in training mode, as GoogLeNet has."""

    def __init__(self) -> None:
        super().__init__()
        self.auxiliary = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        extra = self.auxiliary(self.first(x).mean((2, 3))).sum() if self.training else 0.0
        return super().forward(x) + 0.0 * extra


def test_heads_of_training_are_refused(images: Tensor) -> None:
    model = WithAuxiliaryHead().train()
    with pytest.raises(ValueError, match="'auxiliary', which runs in training mode alone"):
        prune(model, images, 0.3, spec=SPEC, fine_tuning=None, **QUICK)


def test_nan_is_no_importance(taught: nn.Module, images: Tensor) -> None:
    with pytest.raises(RuntimeError, match=r"loss is|is not finite"):
        prune(taught, images, 0.3, spec=SPEC, fine_tuning=None, **{**QUICK, "lr": 1e30})


@pytest.mark.parametrize(
    ("widths", "message"),
    [
        ({"nowhere": [3]}, "names 'nowhere'"),
        ({"conv1": [3]}, "names 'conv1'"),
        ({"bn1": [0]}, "integers of at least 1"),
        ({"linear": [4, True]}, "integers of at least 1"),
    ],
)
def test_wrong_widths_are_named(widths: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create("slimmed", architecture="cifar_resnet", arguments={"depth": 8}, widths=widths)
