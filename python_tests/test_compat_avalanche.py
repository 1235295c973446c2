"""Benchmarks, strategies and expert models of the real Avalanche, on small images."""

from __future__ import annotations

import gc
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar
from weakref import WeakSet

import pytest
import torch
from small_learners import SPEC, Net, everything, made, net, same, split_of
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset
from torchvision.transforms import Compose, Normalize, RandomHorizontalFlip, ToTensor
from torchvision.transforms.functional import to_pil_image

import exml_fast as xf
from exml_fast.continual.class_incremental import Task, incremental, learner
from exml_fast.data import InputSpec, Split
from exml_fast.models import OWN, register

benchmarks = pytest.importorskip("avalanche.benchmarks", reason="needs the extra avalanche: make test-avalanche")
parts = pytest.importorskip("exml_fast.compat.avalanche")
avalanche_metrics = pytest.importorskip("avalanche.evaluation.metrics")
avalanche_models = pytest.importorskip("avalanche.models")
plugins = pytest.importorskip("avalanche.training.plugins")

# quiet() has no loggers on purpose.
pytestmark = pytest.mark.filterwarnings("ignore:No loggers specified")

ROOT = Path(__file__).resolve().parents[1]
# The order in which the classes come, two in each experience.
ORDER = [5, 0, 3, 1, 4, 2]
TRAIN, TEST = split_of(range(6), 12, seed=0), split_of(range(6), 6, seed=1)


class Items(Dataset[Any]):
    """A map-style data set as those of torchvision: image and label, and ``targets``."""

    def __init__(self, split: Split, as_pil: bool = False, transform: Any = None) -> None:
        self.split, self.targets, self.as_pil, self.transform = split, split.labels.tolist(), as_pil, transform

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image: Any = self.split.images[index]
        image = to_pil_image(image) if self.as_pil else image
        return (image if self.transform is None else self.transform(image)), self.targets[index]


def benchmark(as_pil: bool = False, **options: Any) -> Any:
    """Three experiences of two classes each."""
    options = {"task_labels": False, "fixed_class_order": ORDER} | options
    return benchmarks.nc_benchmark(Items(TRAIN, as_pil), Items(TEST, as_pil), 3, **options)


def by_class(split: Split, classes: list[int]) -> Split:
    """The images class by class, as ``nc_benchmark`` lists those of an experience."""
    return split.subset(torch.cat([torch.nonzero(split.labels == c)[:, 0] for c in classes]))


def own_tasks() -> list[Task]:
    """The same tasks without Avalanche."""
    groups = [sorted(ORDER[start : start + 2]) for start in (0, 2, 4)]
    return [Task(tuple(group), by_class(TRAIN, group)) for group in groups]


def quiet(*metrics: Any) -> Any:
    return plugins.EvaluationPlugin(*metrics, loggers=[])


def stream_accuracy(strategy: Any, stream: Any) -> float:
    found: dict[str, float] = strategy.eval(stream)
    (value,) = (value for name, value in found.items() if name.startswith("Top1_Acc_Stream/eval_phase"))
    return value


# Tasks.


def test_tasks_have_the_classes_labels_and_images_of_the_experiences() -> None:
    made_of = benchmark()
    found = parts.tasks_of(made_of)
    assert [task.classes for task in found] == [(0, 5), (1, 3), (2, 4)]
    for task, experience in zip(found, made_of.train_stream, strict=True):
        assert task.split.labels.tolist() == list(experience.dataset.targets)
        assert task.split.images.dtype == torch.uint8
        assert torch.equal(task.split.images, torch.stack([image for image, *_ in experience.dataset]))
    (last,) = parts.tasks_of(made_of.train_stream[2:])
    assert last.classes == (2, 4) and torch.equal(last.split.images, found[2].split.images)


def test_test_images_come_stream_by_stream() -> None:
    made_of = benchmark()
    whole, first = parts.split_of(made_of.test_stream), parts.split_of(made_of.test_stream[0])
    assert len(whole) == len(TEST) and set(first.labels.tolist()) == {0, 5}
    assert torch.equal(whole.images[: len(first)], first.images)
    assert torch.equal(first.images, by_class(TEST, [0, 5]).images)


@pytest.mark.parametrize("kind", ["tensors", "PIL", "pixels", "normalized", "unnamed classes", "sets of classes"])
def test_a_learner_learns_the_same_bits_as_from_our_own_tasks(kind: str) -> None:
    normalized = None
    if kind == "tensors":
        data = [TensorDataset(split.images, split.labels) for split in (TRAIN, TEST)]
        made_of = benchmarks.nc_benchmark(*data, 3, task_labels=False, fixed_class_order=ORDER)
    elif kind == "PIL":
        made_of = benchmark(as_pil=True)
    elif kind == "pixels":
        # Random transforms of the training are left out.
        train = Compose([ToTensor(), RandomHorizontalFlip(1.0)])
        made_of = benchmark(as_pil=True, train_transform=train, eval_transform=ToTensor())
    elif kind == "normalized":
        transform, normalized = Compose([ToTensor(), Normalize(SPEC.mean, SPEC.std)]), SPEC
        made_of = benchmark(as_pil=True, train_transform=transform, eval_transform=transform)
    else:
        as_data = benchmarks.utils.as_classification_dataset
        groups = [
            [as_data(Items(by_class(split, list(task.classes)))) for task in own_tasks()] for split in (TRAIN, TEST)
        ]
        made_of = benchmarks.benchmark_from_datasets(train=groups[0], test=groups[1])
        if kind == "sets of classes":
            made_of = benchmarks.with_classes_timeline(made_of)
            assert made_of.train_stream[0].classes_in_this_experience == {0, 5}
    found = parts.tasks_of(made_of, normalized=normalized)
    test = parts.split_of(made_of.test_stream, normalized=normalized)
    ours, theirs = made("icarl"), made("icarl")
    wanted = incremental(ours, own_tasks(), TEST)
    result = incremental(theirs, found, test)
    assert same(everything(ours), everything(theirs))
    assert [task.accuracies for task in result.tasks] == [task.accuracies for task in wanted.tasks]
    assert result.last > 0.3


def test_what_is_no_class_incremental_benchmark_is_named() -> None:
    repeated = benchmark(task_labels=True, class_ids_from_zero_in_each_exp=True)
    with pytest.raises(ValueError, match=r"experience 1 has the classes \[0, 1\] of earlier experiences"):
        parts.tasks_of(repeated)
    instances = benchmarks.ni_benchmark(Items(TRAIN), Items(TEST), n_experiences=2)
    with pytest.raises(ValueError, match="benchmark must have each class in one experience only"):
        parts.tasks_of(instances)
    # Task labels alone do no harm: the class ids are distinct.
    assert [task.classes for task in parts.tasks_of(benchmark(task_labels=True))] == [(0, 5), (1, 3), (2, 4)]
    for source, got in ((7, "int"), (TRAIN, "Split")):
        with pytest.raises(ValueError, match=f"benchmark must be a benchmark with train_stream.*got '{got}'"):
            parts.tasks_of(source)
    experts = benchmarks.ExModelCLScenario(benchmark(), [net(6)] * 3)
    with pytest.raises(ValueError, match=r"experience must have a data set.*got ExModelExperience"):
        parts.split_of(experts.expert_models_stream)
    with pytest.raises(ValueError, match="source must be at least one experience, got 0"):
        parts.split_of([])


def test_wrong_classes_of_an_experience_are_named() -> None:
    experience = benchmark().train_stream[1]
    for classes, says in (
        ([1, 3, 9], r"experience 1: the task has no images of its classes \[9\]"),
        ([1], r"experience 1: the task has images of the classes \[3\], which are not among its own"),
    ):
        experience.classes_in_this_experience = classes
        with pytest.raises(ValueError, match=says):
            parts.task_of(experience)


def test_data_sets_without_images_are_named() -> None:
    def tasks_with(**options: Any) -> None:
        as_pil = options.pop("as_pil", False)
        parts.tasks_of(benchmark(as_pil, train_transform=options["transform"], eval_transform=options["transform"]))

    with pytest.raises(ValueError, match=r"experience 0: an image must be a PIL image, an array or a tensor.*\(64,\)"):
        tasks_with(transform=lambda image: image.flatten())
    transform = Compose([ToTensor(), Normalize(SPEC.mean, SPEC.std)])
    with pytest.raises(ValueError, match=r"experience 0: floating-point images must be in \[0, 1\].*give normalized"):
        tasks_with(as_pil=True, transform=transform)
    normalized = benchmark(as_pil=True, train_transform=transform, eval_transform=transform)
    with pytest.raises(ValueError, match=r"normalized must be the InputSpec .* got InputSpec\(.* in experience 0"):
        parts.tasks_of(normalized, normalized=InputSpec(1, (8, 8), (0.0,), (5.0,)))
    sizes = [Items(TRAIN, True, ToTensor()), Items(Split(TRAIN.images[..., :4], TRAIN.labels + 6), True, ToTensor())]
    differing = benchmarks.nc_benchmark(sizes, sizes, 2, task_labels=False, one_dataset_per_exp=True, shuffle=False)
    with pytest.raises(ValueError, match=r"source must be experiences with images of one shape and dtype"):
        parts.split_of(differing.test_stream)


def test_pil_images_of_several_sizes_are_resized() -> None:
    class Sizes(Items):
        def __getitem__(self, index: int) -> tuple[Any, int]:
            image, label = super().__getitem__(index)
            return image.resize((8 + index // 6 % 3, 8)), label

    made_of = benchmarks.nc_benchmark(Sizes(TRAIN, True), Sizes(TEST, True), 3, task_labels=False)
    assert parts.tasks_of(made_of, size=8)[0].split.images.shape[1:] == (1, 8, 8)
    with pytest.raises(ValueError, match="experience 0: all images must be alike"):
        parts.tasks_of(made_of)


# The strategy.


@pytest.mark.parametrize("method", ["icarl", "lwf-mc"])
def test_the_strategy_teaches_and_tests_as_our_own_protocol(method: str) -> None:
    made_of, ours, theirs = benchmark(), made(method), made(method)
    wanted = incremental(ours, own_tasks(), TEST)
    evaluator = quiet(avalanche_metrics.accuracy_metrics(experience=True, stream=True))
    strategy = parts.LearnerStrategy(learner=theirs, evaluator=evaluator, eval_mb_size=5)
    for number, experience in enumerate(made_of.train_stream):
        strategy.train(experience)
        accuracy = stream_accuracy(strategy, made_of.test_stream[: number + 1])
        assert accuracy == pytest.approx(wanted.tasks[number].accuracy)
    assert same(everything(ours), everything(theirs)) and strategy.learner is theirs
    assert len(strategy.learned) == 3 and strategy.learned[-1].history.keys() == wanted.tasks[-1].learned.history.keys()
    found = strategy.eval(made_of.test_stream)
    by_experience = [value for name, value in found.items() if "Exp/eval_phase" in name]
    assert by_experience == pytest.approx(wanted.tasks[-1].accuracies)


def test_all_experiences_at_once_and_metrics_of_avalanche() -> None:
    made_of = benchmark()
    evaluator = quiet(
        avalanche_metrics.accuracy_metrics(stream=True), avalanche_metrics.loss_metrics(stream=True),
        avalanche_metrics.forgetting_metrics(experience=True, stream=True),
        avalanche_metrics.confusion_matrix_metrics(num_classes=6, save_image=False, stream=True),
    )  # fmt: skip
    strategy = parts.LearnerStrategy(learner=made("fine-tuning"), evaluator=evaluator)
    strategy.train(made_of.train_stream[:2])
    strategy.eval(made_of.test_stream)
    strategy.train(made_of.train_stream[2])
    found = strategy.eval(made_of.test_stream)
    accuracy = found["Top1_Acc_Stream/eval_phase/test_stream/Task000"]
    assert found["Loss_Stream/eval_phase/test_stream/Task000"] == pytest.approx(1 - accuracy)
    matrix = found["ConfusionMatrix_Stream/eval_phase/test_stream"]
    assert int(matrix.sum()) == len(TEST) and float(matrix.diagonal().sum()) / len(TEST) == pytest.approx(accuracy)
    assert found["StreamForgetting/eval_phase/test_stream"] > 0  # fine-tuning forgets


def test_the_strategy_undoes_a_normalisation() -> None:
    transform = Compose([ToTensor(), Normalize((0.2,), (0.5,))])
    made_of = benchmark(as_pil=True, train_transform=transform, eval_transform=transform)
    ours, theirs = made("icarl"), made("icarl")
    wanted = incremental(ours, own_tasks(), TEST)
    evaluator = quiet(avalanche_metrics.accuracy_metrics(stream=True))
    normalized = InputSpec(1, (8, 8), (0.2,), (0.5,))
    strategy = parts.LearnerStrategy(learner=theirs, normalized=normalized, evaluator=evaluator)
    strategy.train(made_of.train_stream)
    assert same(everything(ours), everything(theirs))
    assert stream_accuracy(strategy, made_of.test_stream) == pytest.approx(wanted.last)


def test_progress_and_checkpoints_reach_the_learner(tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stop(stage: str, step: int, total: int, terms: dict[str, float]) -> None:
        if stage.startswith("task 2") and step == total:
            raise Stop

    made_of, ours, theirs = benchmark(), made("icarl"), made("icarl")
    incremental(ours, own_tasks(), TEST)
    strategy = parts.LearnerStrategy(learner=theirs, evaluator=quiet())
    with pytest.raises(Stop):
        strategy.train(made_of.train_stream, progress=stop, checkpoint_dir=tmp_path)
    assert theirs.number == 1 and (tmp_path / "task_02").is_dir()
    strategy.train(made_of.train_stream[1:], checkpoint_dir=tmp_path)
    assert same(everything(ours), everything(theirs))


def test_what_a_strategy_refuses() -> None:
    with pytest.raises(ValueError, match="learner must be a class-incremental learner, got 'Net'"):
        parts.LearnerStrategy(learner=net())
    made_of = benchmark()
    strategy = parts.LearnerStrategy(learner=made("icarl"), evaluator=quiet())
    with pytest.raises(ValueError, match="learner must be asked after its first task, got 'no task yet'"):
        strategy.eval(made_of.test_stream)
    strategy.train(made_of.train_stream[0])
    with pytest.raises(ValueError, match=r"task has the classes \[0, 5\], which earlier tasks had"):
        strategy.train(made_of.train_stream[0])


def test_a_strategy_of_avalanche_runs_beside_ours() -> None:
    training = pytest.importorskip("avalanche.training")
    pixels = benchmark(as_pil=True, train_transform=ToTensor(), eval_transform=ToTensor())
    network = net(6)
    naive = training.Naive(
        model=network, optimizer=torch.optim.SGD(network.parameters(), 0.05), train_mb_size=8, train_epochs=2,
        eval_mb_size=16, evaluator=quiet(avalanche_metrics.accuracy_metrics(stream=True)),
    )  # fmt: skip
    ours = parts.LearnerStrategy(
        learner=made("joint"), evaluator=quiet(avalanche_metrics.accuracy_metrics(stream=True))
    )
    found = list[dict[str, float]]()
    for strategy in (naive, ours):
        strategy.train(pixels.train_stream)
        found.append(strategy.eval(pixels.test_stream))
    name = "Top1_Acc_Stream/eval_phase/test_stream/Task000"
    assert all(0.2 < metrics[name] <= 1 for metrics in found)


# Experts.


def lines() -> xf.data.ImageData:
    return xf.data.ImageData("lines", TRAIN, TEST, [str(c) for c in range(6)], SPEC)


def nets(outputs: int = 6) -> list[Net]:
    return [net(outputs, seed) for seed in range(3)]


def test_experts_of_a_benchmark() -> None:
    networks = nets()
    networks[1].train()
    source = benchmarks.ExModelCLScenario(benchmark(), networks)
    stream = parts.expert_stream(source, SPEC)
    assert isinstance(stream, xf.ExpertStream) and stream.experiences == [[0, 5], [1, 3], [2, 4]]
    images = torch.randn(3, *SPEC.shape)
    for expert, network in zip(stream, networks, strict=True):
        assert expert.units == tuple(range(6)) and expert.input_spec == SPEC and not expert.model.training
        assert expert.model is not network and torch.equal(expert.logits(images), network.eval()(images))
    assert all(p.requires_grad for network in networks for p in network.parameters())
    (second,) = parts.experts_of(list(source.expert_models_stream)[1:2], SPEC, class_names="abcdef")
    assert second.classes == (1, 3) and second.card.class_names == tuple("abcdef")


def test_an_ex_model_learns_from_avalanche_s_experts() -> None:
    made_of, networks = benchmark(), nets()
    for network, task in zip(networks, own_tasks(), strict=True):
        optimizer, images = torch.optim.Adam(network.parameters(), 0.01), SPEC.prepare(task.split.images)
        for _ in range(60):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(images), task.split.labels).backward()
            optimizer.step()
    source = benchmarks.ExModelCLScenario(made_of, networks)
    stream = parts.expert_stream(source, SPEC)
    test = parts.split_of(source.original_benchmark.test_stream)
    for expert in stream:
        assert xf.evaluation.accuracy(expert.model, test.of_classes(expert.classes), SPEC, expert.units) > 0.9
    method = xf.continual.method(
        "replay", data=lines(), steps=200, batch_size=16, buffer_size=60, augmentation={}, lr=0.05
    )
    result = method.run(stream)
    assert result.expert.classes == tuple(range(6))
    assert xf.evaluation.accuracy(result.expert.model, test, SPEC, result.expert.units) > 0.4


def test_slim_resnet18_and_lenet5_of_avalanche_are_saved(tmp_path: Path) -> None:
    spec = InputSpec(3, (32, 32), (0.5,) * 3, (0.25,) * 3)
    networks = [avalanche_models.SlimResNet18(6) for _ in range(3)]
    source = benchmarks.ExModelCLScenario(benchmark(), networks)
    stream = parts.expert_stream(source, spec, tmp_path / "resnets", architecture="slim_resnet18")
    assert sorted(path.name for path in (tmp_path / "resnets").iterdir()) == ["expert_01", "expert_02", "expert_03"]
    images = torch.randn(2, *spec.shape)
    for expert, network in zip(stream, networks, strict=True):
        assert isinstance(expert.model, xf.models.SlimResNet18)
        assert torch.allclose(expert.logits(images), network.eval()(images), atol=1e-5)
    register("avalanche-lenet5", lambda num_classes, in_channels: avalanche_models.LeNet5(num_classes, in_channels))
    try:
        grey = InputSpec(1, (32, 32), (0.5,), (0.25,))
        source = benchmarks.ExModelCLScenario(benchmark(), [avalanche_models.LeNet5(6, 1) for _ in range(3)])
        options = {"num_classes": 6, "in_channels": 1}
        stream = parts.expert_stream(
            source, grey, tmp_path / "lenets", architecture="avalanche-lenet5", arguments=options
        )
        assert isinstance(stream[2].model, avalanche_models.LeNet5) and stream.experiences[2] == [2, 4]
    finally:
        OWN.pop("avalanche-lenet5")


def test_the_input_of_avalanche_s_own_benchmarks_is_known() -> None:
    kind = type("ExMLMNIST", (benchmarks.ExModelCLScenario,), {})
    source = kind(benchmark(), [avalanche_models.LeNet5(6, 1)] * 3)
    assert [expert.input_spec for expert in parts.experts_of(source)] == [parts.EXML_SPECS["ExMLMNIST"]] * 3
    assert all(hasattr(benchmarks, name) for name in parts.EXML_SPECS)
    networks = nets()
    for network in networks:
        # A network may carry its specification, but nn.Module declares no such attribute. The ignore is unused where
        # Avalanche is not installed.
        network.input_spec = SPEC  # type: ignore[assignment, unused-ignore]
    (first, *_) = parts.experts_of(benchmarks.ExModelCLScenario(benchmark(), networks))
    assert first.input_spec == SPEC


class Counted(Net):
    """Notes how many networks of its kind hold weights whenever one computes."""

    living: ClassVar[WeakSet[Counted]] = WeakSet()
    counts: ClassVar[list[int]] = []

    def __new__(cls, *arguments: Any, **options: Any) -> Counted:
        made = super().__new__(cls)
        cls.living.add(made)
        return made

    def __init__(self, num_classes: int = 6) -> None:
        super().__init__(num_classes)

    def forward(self, x: Tensor) -> Tensor:
        self.counts.append(self.count())
        return super().forward(x)

    @classmethod
    def count(cls) -> int:
        return sum(not network.last.weight.is_meta for network in cls.living)


class OneByOne:
    """Experiences whose networks are read when they are asked for."""

    def __iter__(self) -> Iterator[Any]:
        for number, classes in enumerate(([0, 5], [1, 3], [2, 4])):
            yield benchmarks.scenarios.ExModelExperience(Counted(), number, None, classes)


def test_one_expert_is_in_memory_at_a_time(tmp_path: Path) -> None:
    register("counted", Counted)
    try:
        stream = benchmarks.CLStream("expert_models", OneByOne())
        found = parts.expert_stream(stream, SPEC, tmp_path, architecture="counted")
        # The network of Avalanche and our copy of it; Avalanche keeps an experience until it has made the next one.
        assert len(found) == 3 and max(Counted.counts) == 2
        gc.collect()
        assert Counted.count() == 0
        everyone = parts.expert_stream(benchmarks.CLScenario([stream]), SPEC, architecture="counted")
        gc.collect()
        assert len(everyone) == Counted.count() == 3
    finally:
        OWN.pop("counted")


def documented(page: str) -> list[str]:
    """The Python blocks of a page that need Avalanche."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / page).read_text(), re.DOTALL)
    return [block for block in blocks if "benchmark" in block]


def test_the_blocks_of_the_documentation_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"xf": xf, "learner": learner, "incremental": incremental, "network": net(), "spec": SPEC}
    names["benchmark"] = benchmark(as_pil=True, train_transform=ToTensor(), eval_transform=ToTensor())
    for code in documented("class_incremental.md"):
        exec(code.replace("total=200, epochs=10", "total=20, epochs=1, batch_size=8, augmentation={}"), names)
    assert len(names["result"].tasks) == 3 and names["metrics"]

    (code,) = documented("ex_model.md")
    networks = [avalanche_models.SlimResNet18(6) for _ in range(3)]
    names |= {"benchmark": benchmarks.ExModelCLScenario(names["benchmark"], networks)}
    names |= {"spec": InputSpec(3, (32, 32), (0.5,) * 3, (0.25,) * 3)}
    exec(code.replace('"natural-fields"', '"replay", steps=1, batch_size=2, data=data'), names | {"data": lines()})
    assert sorted(path.name for path in (tmp_path / "experts").iterdir()) == ["expert_01", "expert_02", "expert_03"]


def test_what_is_no_benchmark_of_experts_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"benchmark must be a benchmark with expert_models_stream.*got 'NCScenario'"):
        parts.experts_of(benchmark())
    with pytest.raises(ValueError, match="expert 1 must have a network as expert_model, got NoneType"):
        parts.expert_stream(benchmark().train_stream, SPEC)
    source = benchmarks.ExModelCLScenario(benchmark(), nets())
    with pytest.raises(ValueError, match="spec must be given, because expert 1 does not tell its input"):
        parts.expert_stream(source)
    with pytest.raises(ValueError, match="cannot read an input specification from int"):
        parts.experts_of(source, 3)
    with pytest.raises(ValueError, match="Net rejects images of shape"):
        parts.expert_stream(source, InputSpec(3, (8, 8), (0.5,) * 3, (0.5,) * 3))
    small = benchmarks.ExModelCLScenario(benchmark(), nets(2))
    with pytest.raises(
        ValueError, match=r"expert 1 has the classes \[5\].* its 2 logits are those of \[0, 1\]: give units"
    ):
        parts.expert_stream(small, SPEC)
    assert next(parts.experts_of(small, SPEC, units=[5, 0])).units == (5, 0)
    with pytest.raises(ValueError, match="units must be 6 distinct class ids"):
        parts.expert_stream(source, SPEC, units=[1, 2])
    with pytest.raises(ValueError, match="the expert cannot be saved"):
        parts.expert_stream(source, SPEC, tmp_path)
    unnamed = [benchmarks.scenarios.ExModelExperience(nn.Identity(), 0, None, None)]
    with pytest.raises(ValueError, match="expert 1 must have classes_in_this_experience, the ids of its classes"):
        parts.expert_stream(unnamed, SPEC)
