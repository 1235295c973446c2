"""Alg. 1 as a whole, its checkpoints and its errors."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from small_experts import QUICK, quadrants, real_images, stream, trained
from torch import Tensor, nn

from exml_fast.continual import (
    Background,
    DistillationConfig,
    ExModelDistillation,
    ExModelResult,
    Expert,
    Strategy,
    train_expert,
)
from exml_fast.continual.baselines import EnsembleAverage, MinEntropy, Oracle, ParameterAverage
from exml_fast.continual.ex_model.losses import SquaredError, distillation_loss
from exml_fast.continual.ex_model.strategies import AuxiliaryData, Replay
from exml_fast.continual.ex_model.targets import Teachers
from exml_fast.continual.scenarios import MultiHead, experience_accuracies, stream_accuracy
from exml_fast.continual.stream import ExpertStream
from exml_fast.data import InputSpec, NaturalFields, Split
from exml_fast.models import create
from exml_fast.training import forward

change = QUICK.replace


def weights(result: ExModelResult) -> dict[str, Tensor]:
    return result.model.state_dict()


@pytest.mark.parametrize(
    "values",
    [
        {}, {"normalize": "mean", "combine": "per_unit"}, {"optimizer": "adam", "lr": 0.003, "schedule": "onecycle"},
        {"targets": "fixed", "momentum": 0.9, "lr": 0.01}, {"loss": "kl", "normalize": "standardize"},
        {"targets": "stored", "momentum": 0.9, "lr": 0.01}, {"combine": "per_sample"},
        {"targets": "blended", "mixup": 0.5, "lambda_ce": 0.0, "loss": "kl"},
    ],
)  # fmt: skip
def test_the_ex_model_learns_all_classes(values: dict[str, Any]) -> None:
    data = quadrants()
    result = ExModelDistillation(real_images(), change(**values)).run(
        stream(), evaluate=lambda e: stream_accuracy(e, data)
    )
    assert result.evaluations[1] >= 0.9, result.evaluations
    assert 0.4 <= result.evaluations[0] <= 0.5
    assert result.expert.classes == result.expert.units == (0, 1, 2, 3)
    assert result.expert.card.class_names == tuple(data.class_names)
    assert len(result.buffer) == 60 and torch.bincount(result.buffer.labels).tolist() == [15] * 4
    config = result.expert.card.training["config"]
    for history in (each.history for each in result.learned):
        assert history["step"] == [100, 150] and len(history["loss"]) == 2
        term, ce = (history[name][1] for name in (config["loss"], "ce"))
        assert history["loss"][1] == pytest.approx(term + config["lambda_ce"] * ce)
    assert all(each.seconds["generate"] > 0 and each.seconds["distil"] > 0 for each in result.learned)
    assert result.seconds["distil"] == sum(each.seconds["distil"] for each in result.learned)
    assert result.history["expert"] == [1, 1, 2, 2] and result.history["step"] == [100, 150, 100, 150]


def test_the_result_is_an_expert_that_can_be_saved(tmp_path: Path) -> None:
    result = ExModelDistillation(real_images(), change(steps=2)).run(stream())
    result.expert.save(tmp_path)
    assert Expert.load(tmp_path).fingerprint() == result.expert.fingerprint()


def test_a_given_model_is_named_by_its_architecture(tmp_path: Path) -> None:
    config, first = change(steps=2, init_from_first=True), trained()[0]
    model = create("lenet5", num_classes=4, in_channels=1)
    given = {"architecture": "lenet5", "arguments": {"num_classes": 4}}
    named = ExModelDistillation(real_images(), config, model=model, units=[0, 1, 2, 3], **given)
    copies: list[str] = []
    result = named.run(list(trained()), evaluate=lambda expert: copies.append(expert.fingerprint()))
    assert copies[0] == first.fingerprint(), "init_from_first knows the architecture"
    result.expert.save(tmp_path)
    assert Expert.load(tmp_path).fingerprint() == result.expert.fingerprint()
    same = ExModelDistillation(real_images(), config, model=Expert(model.eval(), first.card)).run(stream())
    assert same.expert.fingerprint() == result.expert.fingerprint()
    assert same.expert.card == dataclasses.replace(result.expert.card, sha256="")
    for wrong, message in (
        ({"architecture": "lenet5"}, "must be given with model"),
        ({"model": model, "units": [0], "arguments": {}}, "architecture must be given with arguments"),
        ({"model": first, "architecture": "lenet5"}, "architecture must be None with an Expert"),
    ):
        with pytest.raises(ValueError, match=message):
            ExModelDistillation(real_images(), config, **wrong)
    with pytest.raises(ValueError, match="checkpoint_every must be a positive integer, got 0"):
        named.run(stream(), checkpoint_every=0)


def test_units_nobody_has_seen_are_left_alone() -> None:
    one = ExpertStream(trained()[:1])
    result = ExModelDistillation(real_images(), QUICK, seed=1).run(one)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        start = type(result.model)(4)
    head = weights(result)["classifier.4.weight"]
    assert torch.equal(head[2:], start.state_dict()["classifier.4.weight"][2:])
    assert not torch.equal(head[:2], start.state_dict()["classifier.4.weight"][:2])
    assert result.expert.classes == (0, 1)


def test_init_from_first_copies_and_does_not_train_on_it() -> None:
    one = ExpertStream(trained()[:1])
    result = ExModelDistillation(real_images(), change(init_from_first=True)).run(one)
    assert result.expert.fingerprint() == trained()[0].fingerprint()
    assert result.history["step"] == [] and len(result.buffer) == 60
    other = nn.Sequential(nn.Flatten(), nn.Linear(1024, 4))
    method = ExModelDistillation(real_images(), change(init_from_first=True, lr=0.001), model=other, units=[0, 1, 2, 3])
    assert method.run(one).history["step"] == [100, 150]


@pytest.mark.parametrize("reset", [True, False])
def test_reset_starts_each_expert_from_the_same_weights(monkeypatch: pytest.MonkeyPatch, reset: bool) -> None:
    begun: list[Tensor] = []

    def looking(network: nn.Module, *arguments: Any) -> Tensor:
        begun.append(next(network.parameters()).detach().clone())
        return forward(network, *arguments)

    monkeypatch.setattr("exml_fast.training.precision.forward", looking)
    ExModelDistillation(real_images(), change(reset=reset)).run(stream())
    assert len(begun) == 2 * 150 and torch.equal(begun[0], begun[150]) == reset
    assert not torch.equal(begun[0], begun[149])


def test_mixup_blends_the_images_that_both_see(monkeypatch: pytest.MonkeyPatch) -> None:
    class Plain(Strategy):
        """Black or white images."""

        def samples(self, expert: Expert, count: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
            labels = torch.arange(count) % 2
            return (labels == 1).float()[:, None, None, None].expand(count, 1, 32, 32).contiguous(), labels

        def describe(self) -> dict[str, Any]:
            return {"strategy": "plain"}

    seen: dict[str, list[Tensor]] = {"teacher": [], "student": []}
    answer = Teachers.__call__

    def asked(self: Any, images: Tensor, *arguments: Any) -> Any:
        seen["teacher"].append(images)
        return answer(self, images, *arguments)

    def learning(network: nn.Module, images: Tensor, *arguments: Any) -> Tensor:
        seen["student"].append(images)
        return forward(network, images, *arguments)

    monkeypatch.setattr(Teachers, "__call__", asked)
    monkeypatch.setattr("exml_fast.training.precision.forward", learning)
    config = change(targets="blended", mixup=1.0, lambda_ce=0.0, augmentation={"shift": 0}, steps=100)
    ExModelDistillation(Plain(), config).run(ExpertStream(trained()[:1]))
    teacher, student = (torch.cat(images) for images in seen.values())
    assert torch.equal(teacher, student) and len(student) == 1600
    shares = student.flatten(1)[:, 0]
    assert torch.equal(student, shares[:, None, None, None].expand_as(student))
    blended = shares[(shares > 0) & (shares < 1)]
    assert 0.4 < len(blended) / len(shares) < 0.6  # the others had a partner of their own colour
    quartiles = torch.histc(blended, 4, 0, 1) / len(blended)
    assert (quartiles - 0.25).abs().max() < 0.06  # Beta(1, 1)


def test_the_weight_of_the_cross_entropy_counts() -> None:
    def first(weight: float) -> Tensor:
        config = change(steps=1, lambda_ce=weight, lr=1.0)
        result = ExModelDistillation(real_images(), config).run(ExpertStream(trained()[:1]))
        return torch.cat([value.flatten() for value in result.model.parameters()])

    without, once, twice = first(0.0), first(1.0), first(2.0)
    assert (once - without).abs().max() > 1e-3
    torch.testing.assert_close(twice - without, 2 * (once - without), atol=1e-5, rtol=1e-4)


def test_with_task_labels_each_image_trains_its_own_head() -> None:
    result = ExModelDistillation(real_images(), change(task_labels=True)).run(stream())
    heads = MultiHead(result.expert, [[0, 1], [2, 3]])
    assert min(experience_accuracies(heads, quadrants(), [[0, 1], [2, 3]])) >= 0.95
    logits, target = torch.zeros(1, 4, requires_grad=True), torch.zeros(1, 4)
    mask = torch.tensor([[True, True, False, False]])
    _, ce = distillation_loss(
        logits, target, mask, torch.tensor([1]), torch.arange(4), SquaredError(), task_labels=True
    )
    assert float(ce) == pytest.approx(math.log(2))
    (gradient,) = torch.autograd.grad(ce, logits)
    assert gradient[0].tolist() == pytest.approx([0.5, -0.5, 0.0, 0.0])
    shared = ExpertStream([trained()[0], trained()[0]])
    with pytest.raises(ValueError, match=r"expert 2 shares the classes \[0, 1\] with an earlier one"):
        ExModelDistillation(real_images(), change(task_labels=True)).run(shared)


def test_experts_of_other_architectures_and_inputs() -> None:
    spec = InputSpec(3, (24, 24), (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    other = train_expert(
        quadrants(), [2, 3], architecture="cifar_resnet", spec=spec, epochs=15, arguments={"depth": 8}
    ).expert
    mixed = ExpertStream([trained()[0], other])
    result = ExModelDistillation(real_images(), QUICK).run(mixed)
    assert result.expert.input_spec == trained()[0].input_spec
    assert stream_accuracy(result.expert, quadrants()) >= 0.9
    for baseline in (EnsembleAverage(mixed), MinEntropy(mixed)):
        assert stream_accuracy(baseline, quadrants(), [[0, 1], [2, 3]]) > 0.3
    assert stream_accuracy(Oracle(mixed), quadrants(), [[0, 1], [2, 3]]) >= 0.9
    with pytest.raises(ValueError, match="parameters of different networks cannot be averaged: architecture"):
        ParameterAverage(mixed)
    wide = ExModelDistillation(real_images(), change(steps=20), model=other.model, units=[0, 1, 2, 3], spec=spec)
    assert wide.run(mixed).expert.input_spec == spec


def tiny_experts(architecture: str | None) -> list[Expert]:
    """Two experts whose networks are a user's own, of two classes each and four logits."""
    experts = []
    for classes in ([0, 1], [2, 3]):
        network = train_expert(quadrants(), classes, epochs=4, lr=0.02, architecture="tiny").model
        experts.append(Expert.wrap(network, quadrants().spec, classes, units=[0, 1, 2, 3], architecture=architecture))
    return experts


def test_an_ex_model_of_registered_networks(tiny: type[nn.Module], tmp_path: Path) -> None:
    experts = tiny_experts("tiny")
    result = ExModelDistillation(real_images(), change(init_from_first=True)).run(ExpertStream(experts))
    assert isinstance(result.model, tiny) and stream_accuracy(result.expert, quadrants()) >= 0.9
    result.expert.save(tmp_path)
    assert Expert.load(tmp_path).fingerprint() == result.expert.fingerprint()
    assert ParameterAverage(experts).expert.card.architecture == "tiny"
    own = [train_expert(quadrants(), c, epochs=1, head="own", architecture="tiny").expert for c in ([0, 1], [2, 3])]
    assert ExModelDistillation(real_images(), change(steps=2)).run(ExpertStream(own)).expert.units == (0, 1, 2, 3)


def test_an_ex_model_of_networks_without_a_factory(tiny: type[nn.Module], tmp_path: Path) -> None:
    experts = tiny_experts(None)
    method = ExModelDistillation(real_images(), change(lr=0.02), seed=3)
    result = method.run(ExpertStream(experts))
    assert isinstance(result.model, tiny) and stream_accuracy(result.expert, quadrants()) >= 0.9
    assert not torch.equal(result.model.body.weight, experts[0].model.body.weight)
    again = method.run(ExpertStream(experts))
    assert all(torch.equal(a, b) for a, b in zip(weights(result).values(), weights(again).values(), strict=True))
    copied = ExModelDistillation(real_images(), change(steps=2, init_from_first=True)).run(ExpertStream(experts[:1]))
    assert torch.equal(copied.model.body.weight, experts[0].model.body.weight)
    with pytest.raises(ValueError, match=r"cannot be saved.*models\.register"):
        result.expert.save(tmp_path)
    assert ParameterAverage(experts).expert.card.architecture == "Tiny"
    wider = Expert.wrap(tiny(4, width=9), quadrants().spec, [2, 3], units=[0, 1, 2, 3])
    with pytest.raises(ValueError, match="the weights of experts 1 and 2 differ in names or shapes"):
        ParameterAverage([experts[0], wider])


def test_an_ex_model_of_a_network_with_parameters_and_a_head_of_its_own(tiny: type[nn.Module]) -> None:
    spec = quadrants().spec

    # A fixture gives the base class, which mypy does not see.
    class Scaled(tiny):  # type: ignore[misc, valid-type]
        def __init__(self) -> None:
            super().__init__(2)
            self.scale = nn.Parameter(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = super().forward(x) * self.scale.mean()
            return logits

    own_heads = [Expert.wrap(Scaled(), spec, [0, 1]), Expert.wrap(Scaled(), spec, [2, 3])]
    before = own_heads[0].fingerprint()
    result = ExModelDistillation(real_images(), change(steps=1, lr=1e-9)).run(ExpertStream(own_heads))
    assert isinstance(result.model, Scaled) and result.expert.units == (0, 1, 2, 3)
    assert result.model.scale.flatten().sort().values.allclose(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert not torch.equal(result.model.body.weight, own_heads[0].model.body.weight)
    assert own_heads[0].fingerprint() == before


def test_a_head_that_cannot_be_replaced_is_named() -> None:
    """Neither without a factory, nor with one that does not take the number of classes."""

    def convolutional() -> nn.Module:
        return nn.Sequential(nn.Conv2d(1, 2, 32), nn.Flatten())

    spec = quadrants().spec
    own_heads = [Expert.wrap(convolutional(), spec, classes) for classes in ([0, 1], [2, 3])]
    needs = r"needs logits for the classes \[0, 1, 2, 3\].*no nn.Linear.*register\('Sequential', factory\)"
    with pytest.raises(ValueError, match=needs):
        ExModelDistillation(real_images(), QUICK).run(ExpertStream(own_heads))


def test_other_unit_orders_own_models_and_heads() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(1024, 6))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    config = change(lr=0.001)
    result = ExModelDistillation(real_images(), config, model=model, units=[9, 3, 2, 1, 0, 7]).run(stream())
    assert stream_accuracy(result.expert, quadrants()) >= 0.9
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    with pytest.raises(ValueError, match=r"expert 2 was trained on classes \[2, 3\]"):
        ExModelDistillation(real_images(), config, model=model, units=[0, 1]).run(stream())
    with pytest.raises(ValueError, match="units must be given with model"):
        ExModelDistillation(real_images(), config, model=model)


def test_strategies_get_networks_as_they_are() -> None:
    """Not by our ops for training, from which the engine could fuse and freeze nothing."""

    class Watching(Strategy):
        competes = True

        def __init__(self) -> None:
            self.seen: list[Expert] = []

        def samples(self, *args: Any, rival: Expert | None = None, **_: Any) -> tuple[Tensor, Tensor]:
            self.seen += [expert for expert in (args[0], rival) if expert is not None]
            return real_images().samples(*args)

        def describe(self) -> dict[str, Any]:
            return {"strategy": "watching"}

    strategy = Watching()
    result = ExModelDistillation(strategy, change(steps=5)).run(stream())
    assert len(strategy.seen) == 3
    for expert in strategy.seen:
        assert type(expert.model) is type(trained()[0].model)
        assert {type(m) for m in expert.model.modules()} == {type(m) for m in trained()[0].model.modules()}
    rival = strategy.seen[2].model.state_dict()
    assert any(not torch.equal(value, rival[name]) for name, value in weights(result).items())


def test_a_run_is_reproducible_and_leaves_the_random_state_and_experts_alone() -> None:
    before, prints = torch.get_rng_state(), stream().fingerprints()
    x = torch.randn(3, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    logits = trained()[0].logits(x)
    one, two, other = (ExModelDistillation(real_images(), change(steps=20), seed=s).run(stream()) for s in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before) and stream().fingerprints() == prints
    assert torch.equal(trained()[0].logits(x), logits), "to the last bit: its tensors lie as they did"
    assert one.expert.fingerprint() == two.expert.fingerprint() != other.expert.fingerprint()


def test_diverging_runs_say_so() -> None:
    with pytest.raises(RuntimeError, match=r"expert 1/2: distil: the loss is .* lower lr"):
        ExModelDistillation(real_images(), change(lr=1e6)).run(stream())


# Checkpoints


class Interrupt:
    """Progress that presses Ctrl-C at its ``at``-th call."""

    def __init__(self, at: int) -> None:
        self.at, self.calls = at, 0

    def __call__(self, stage: str, step: int, total: int, terms: dict[str, float]) -> None:
        self.calls += 1
        if self.calls == self.at:
            raise KeyboardInterrupt


class WithDropout(nn.Module):
    """Uses the global random state and has buffers, as larger networks do."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(1024), nn.Dropout(0.3), nn.Linear(1024, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


@pytest.mark.parametrize("at", [1, 2, 3, 4, 6, 8, 9])
@pytest.mark.parametrize("other", [{"optimizer": "sgd"}, {"optimizer": "adam", "targets": "blended", "lambda_ce": 0.0}])
def test_an_interrupted_run_ends_bit_for_bit_as_if_it_had_not_been(
    tmp_path: Path, at: int, other: dict[str, Any]
) -> None:
    config = change(steps=250, momentum=0.9, lr=0.003, schedule="onecycle", **other)
    torch.manual_seed(0)
    model = WithDropout()

    def method() -> ExModelDistillation:
        return ExModelDistillation(real_images(), config, model=model, units=[0, 1, 2, 3], seed=7)

    def score(expert: Expert) -> float:
        return stream_accuracy(expert, quadrants())

    straight = method().run(stream(), evaluate=score)
    interrupt = Interrupt(at)
    with pytest.raises(KeyboardInterrupt):
        method().run(stream(), progress=interrupt, checkpoint_dir=tmp_path, evaluate=score)
    rest = Interrupt(-1)
    resumed = method().run(stream(), progress=rest, checkpoint_dir=tmp_path, evaluate=score)
    assert rest.calls < 10 or at == 1  # a whole run makes 10 calls: nothing was done twice
    for name, weight in weights(straight).items():
        assert torch.equal(weight, weights(resumed)[name]), name
    assert straight.history == resumed.history and straight.evaluations == resumed.evaluations
    assert torch.equal(straight.buffer.images, resumed.buffer.images)
    again = method().run(stream(), checkpoint_dir=tmp_path, evaluate=score)
    assert again.expert.fingerprint() == straight.expert.fingerprint() and again.history == straight.history


def test_checkpoints_are_written_within_an_expert(tmp_path: Path) -> None:
    def crash(stage: str, step: int, total: int, terms: dict[str, float]) -> None:
        if step == 200:
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        ExModelDistillation(real_images(), change(steps=300, batch_size=4)).run(
            stream(), progress=crash, checkpoint_dir=tmp_path, checkpoint_every=100
        )
    steps: list[int] = []
    resumed = ExModelDistillation(real_images(), change(steps=300, batch_size=4)).run(
        stream(), progress=lambda stage, step, *_: steps.append(step), checkpoint_dir=tmp_path
    )
    assert steps[0] == 200
    straight = ExModelDistillation(real_images(), change(steps=300, batch_size=4)).run(stream())
    assert straight.expert.fingerprint() == resumed.expert.fingerprint()


def test_a_checkpoint_of_a_version_with_fewer_settings_goes_on(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        ExModelDistillation(real_images(), QUICK).run(stream(), progress=Interrupt(3), checkpoint_dir=tmp_path)
    (file,) = tmp_path.glob("*.pt")
    state = torch.load(file, weights_only=True)
    assert "momentum" not in state["identity"]["config"], "only fields that differ from their defaults"
    resumed = ExModelDistillation(real_images(), QUICK).run(stream(), checkpoint_dir=tmp_path)
    assert resumed.expert.fingerprint() == ExModelDistillation(real_images(), QUICK).run(stream()).expert.fingerprint()


def test_a_checkpoint_of_another_run_is_refused_by_name(tmp_path: Path) -> None:
    config, data = change(steps=2), quadrants()
    brighter = dataclasses.replace(data, train=Split(data.train.images + 1, data.train.labels))
    ExModelDistillation(real_images(), config).run(stream(), checkpoint_dir=tmp_path)
    for name, method, experts in (
        (r"config\.steps", ExModelDistillation(real_images(), change(steps=3)), stream()),
        ("seed", ExModelDistillation(real_images(), config, seed=1), stream()),
        ("experts", ExModelDistillation(real_images(), config), ExpertStream(trained()[::-1])),
        ("strategy", ExModelDistillation(Replay(brighter), config), stream()),
    ):
        with pytest.raises(ValueError, match=rf"belongs to another run: {name}\S* was"):
            method.run(experts, checkpoint_dir=tmp_path)
    auxiliary = [AuxiliaryData(torch.full((2, 1, 4, 4), value)).describe() for value in (0.0, 1.0)]
    assert auxiliary[0] != auxiliary[1]


@pytest.mark.parametrize("width", [8, 9])
def test_a_checkpoint_of_another_network_is_refused(tmp_path: Path, width: int) -> None:
    def run(width: int, seed: int) -> None:
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Flatten(), nn.Linear(1024, width), nn.Linear(width, 4))
        method = ExModelDistillation(real_images(), change(steps=2, lr=0.001), model=model, units=[0, 1, 2, 3])
        method.run(stream(), checkpoint_dir=tmp_path)

    run(8, 0)
    run(8, 0)
    with pytest.raises(ValueError, match="belongs to another run: initial weights was"):
        run(width, 1)


def test_no_gradients_are_left_after_an_expert() -> None:
    left: list[bool] = []
    ExModelDistillation(real_images(), change(steps=2)).run(
        stream(), evaluate=lambda expert: left.extend(p.grad is not None for p in expert.model.parameters())
    )
    assert left and not any(left)


def test_bfloat16_learns_the_same() -> None:
    """Convolutions and linear layers round; weights and loss do not, and what is learned is as good."""
    runs = [
        ExModelDistillation(real_images(), change(precision=precision)).run(ExpertStream(list(trained())))
        for precision in ("float32", "bfloat16")
    ]
    plain, rounded = (run.history["mse"][0] for run in runs)
    assert rounded != plain and rounded == pytest.approx(plain, rel=0.05)
    assert {p.dtype for p in runs[1].model.parameters()} == {torch.float32}
    accuracies = [stream_accuracy(run.expert, quadrants()) for run in runs]
    assert accuracies[1] > accuracies[0] - 0.1, accuracies


def test_settings_that_do_not_go_together_are_refused_at_once() -> None:
    fields = NaturalFields()
    for values, background, message in (
        ({"debias": 0.5}, None, "debias needs a background"),
        ({}, Background(fields, 0.5), "targets must be 'stored' or 'experts' with a background, got 'live'"),
        ({"targets": "stored", "task_labels": True}, Background(fields, 0.5), "task_labels must be False with a back"),
    ):
        with pytest.raises(ValueError, match=message):
            ExModelDistillation(real_images(), DistillationConfig.from_dict(values), background=background)
    for share in (0.0, 1.0, True, "half"):
        with pytest.raises(ValueError, match=r"share must be (positive|less than 1|a number), got"):
            Background(fields, share)  # type: ignore[arg-type]  # wrong on purpose
