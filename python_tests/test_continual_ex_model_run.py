from __future__ import annotations

import copy
import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_experts import quadrants, real_images, trained
from torch import Tensor, nn

from exml_fast.continual.baselines import EnsembleAverage, MinEntropy, Oracle, ParameterAverage
from exml_fast.continual.ex_model import run as distillation
from exml_fast.continual.ex_model.run import (
    Augmentation,
    DistillationConfig,
    DistillationResult,
    ExModelDistillation,
    combined_targets,
    distillation_loss,
    normalize,
)
from exml_fast.continual.expert import Expert, train_expert
from exml_fast.continual.scenarios import MultiHead, experience_accuracies, stream_accuracy
from exml_fast.continual.stream import ExpertStream
from exml_fast.data import InputSpec
from exml_fast.training import forward

QUICK = DistillationConfig(iterations=150, batch_size=16, lr=0.05, buffer_size=60, augmentation=Augmentation(shift=2))

# normalize


@given(
    st.integers(1, 5), st.lists(st.booleans(), min_size=1, max_size=8), st.integers(0, 999),
    st.floats(0.01, 100), st.floats(-50, 50),
)  # fmt: skip
def test_normalize_removes_shift_and_scale(rows: int, known: list[bool], seed: int, scale: float, shift: float) -> None:
    logits = torch.randn(rows, len(known), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    mask = torch.tensor(known)
    for how in ("none", "mean", "standardize"):
        assert float(normalize(logits, mask, how)[:, ~mask].abs().sum()) == 0
    assert torch.equal(normalize(logits, mask, "none")[:, mask], logits[:, mask])
    mean, standard = normalize(logits, mask, "mean"), normalize(logits, mask, "standardize")
    torch.testing.assert_close(mean.sum(1), torch.zeros(rows, dtype=torch.float64), atol=1e-9, rtol=0)
    torch.testing.assert_close(normalize(logits * scale + shift, mask, "mean"), mean * scale, atol=1e-7, rtol=1e-7)
    torch.testing.assert_close(normalize(logits * scale + shift, mask, "standardize"), standard, atol=1e-6, rtol=1e-6)
    if mask.sum() > 1:
        torch.testing.assert_close(standard[:, mask].std(1, correction=0), torch.ones(rows, dtype=torch.float64))


def test_normalize_of_equal_logits_is_zero_and_unknown_names_raise() -> None:
    logits = torch.full((2, 3), 7.0)
    assert float(normalize(logits, torch.tensor([True, True, False]), "standardize").abs().sum()) == 0
    rows = torch.tensor([[True, False, False], [True, True, True]])
    assert normalize(torch.tensor([[1.0, 2, 3], [1, 2, 3]]), rows).tolist() == [[0, 0, 0], [-1, 0, 1]]
    with pytest.raises(ValueError, match="how must be one of"):
        normalize(logits, rows, "softmax")


# Eq. 8

PREVIOUS, CURRENT = torch.full((3, 4), 1.0), torch.full((3, 4), 3.0)


def test_targets_of_disjoint_experts() -> None:
    before, now = torch.tensor([True, True, False, False]), torch.tensor([False, False, True, False])
    labels = torch.tensor([0, 1, 2])
    target, mask = combined_targets(PREVIOUS, CURRENT, before, now, labels, "per_sample")
    assert target.tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 3, 0]]
    assert mask.tolist() == [[True, True, False, False]] * 2 + [[False, False, True, False]]
    target, mask = combined_targets(PREVIOUS, CURRENT, before, now, labels, "per_unit")
    assert target.tolist() == [[1, 1, 3, 0]] * 3 and mask.tolist() == [[True, True, True, False]] * 3


def test_targets_of_overlapping_experts() -> None:
    before, now = torch.tensor([True, True, False, False]), torch.tensor([False, True, True, False])
    labels = torch.tensor([0, 1, 2])
    target, mask = combined_targets(PREVIOUS, CURRENT, before, now, labels, "per_sample")
    assert target.tolist() == [[1, 1, 0, 0], [1, 2, 3, 0], [0, 3, 3, 0]]
    assert mask.sum(1).tolist() == [2, 3, 2]
    assert combined_targets(PREVIOUS, CURRENT, before, now, labels, "per_unit")[0].tolist() == [[1, 2, 3, 0]] * 3
    with pytest.raises(ValueError, match="combine must be"):
        combined_targets(PREVIOUS, CURRENT, before, now, labels, "per_class")


# Eq. 9, 10


@pytest.mark.parametrize("config", [DistillationConfig(), DistillationConfig(mse="sum"), DistillationConfig(loss="kl")])
def test_masked_units_get_no_gradient_from_the_distillation_term(config: DistillationConfig) -> None:
    logits = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    target = torch.randn(5, 4, dtype=torch.float64)
    mask = torch.tensor([True, True, False, False]).expand(5, 4)
    seen, labels = torch.tensor([0, 1]), torch.tensor([0, 1, 0, 1, 1])
    term, ce = distillation_loss(logits, target, mask, labels, seen, config)
    assert term.item() >= 0 and ce.item() > 0
    (term + ce).backward()
    assert logits.grad is not None and float(logits.grad[:, 2:].abs().max()) < 1e-12
    assert float(logits.grad[:, :2].abs().max()) > 0


def test_loss_values() -> None:
    logits, target = torch.tensor([[1.0, 2.0, 9.0]]), torch.tensor([[0.0, 4.0, 0.0]])
    mask, labels, seen = torch.tensor([[True, True, False]]), torch.tensor([1]), torch.tensor([0, 1])
    term, ce = distillation_loss(logits, target, mask, labels, seen, DistillationConfig())
    assert float(term) == pytest.approx(2.5)
    assert float(ce) == pytest.approx(nn.functional.cross_entropy(logits[:, :2], labels).item())
    assert float(distillation_loss(logits, target, mask, labels, seen, DistillationConfig(mse="sum"))[0]) == 5
    kl = DistillationConfig(loss="kl", temperature=2.0)
    p, q = torch.softmax(target[:, :2] / 2, 1), torch.log_softmax(logits[:, :2] / 2, 1)
    expected = 4 * nn.functional.kl_div(q, p, reduction="batchmean").item()
    assert float(distillation_loss(logits, target, mask, labels, seen, kl)[0]) == pytest.approx(expected, rel=1e-5)
    assert float(distillation_loss(logits, logits, mask, labels, seen, kl)[0]) == pytest.approx(0, abs=1e-6)


# Configuration


def test_defaults_are_the_papers() -> None:
    config = DistillationConfig()
    assert (config.iterations, config.batch_size, config.lr, config.temperature) == (30000, 32, 0.01, 2.0)
    assert (config.lambda_ce, config.buffer_size, config.optimizer, config.momentum) == (1.0, 5000, "sgd", 0.0)
    assert DistillationConfig.from_dict(json.loads(json.dumps(QUICK.to_dict()))) == QUICK


def test_onecycle_rises_and_falls() -> None:
    config = DistillationConfig(iterations=100, lr=1.0, schedule="onecycle")
    rates = [config.rate(step) for step in range(100)]
    assert rates[0] == pytest.approx(1 / 25) and max(rates) == pytest.approx(1.0) == rates[30]
    assert rates[-1] == pytest.approx(1e-4)
    assert rates[:31] == sorted(rates[:31]) and rates[30:] == sorted(rates[30:], reverse=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optimizer": "lbfgs"}, "optimizer must be one of"),
        ({"arithmetic": "float16"}, "arithmetic must be one of"),
        ({"normalize": "softmax"}, "normalize must be one of"),
        ({"combine": "x"}, "combine must be one of"),
        ({"iterations": 0}, "iterations must be a positive integer"),
        ({"batch_size": 1.5}, "batch_size must be a positive integer"),
        ({"lr": 0.0}, "lr must be positive"),
        ({"temperature": float("nan")}, "temperature must be positive"),
        ({"lambda_ce": -1.0}, "lambda_ce must not be negative"),
        ({"mixup": -0.1, "lambda_ce": 0.0}, "mixup must not be negative"),
        ({"mixup": 1.0}, "mixup needs lambda_ce=0: a blend has no label, got 1.0"),
        ({"mixup": 1.0, "lambda_ce": 0.0, "targets": "fixed"}, "mixup needs targets='live'"),
        ({"mixup": 1.0, "lambda_ce": 0.0, "combine": "per_sample"}, "mixup needs combine='per_unit'"),
        ({"mixup": 1.0, "lambda_ce": 0.0, "task_labels": True}, "mixup needs task_labels=False"),
        ({"align": True, "task_labels": True}, "align must be False with task_labels"),
        ({"debias": 2.0}, "debias must be between 0 and 1, got 2.0"),
        ({"debias": 0.5}, "debias needs background_share, random images of no class, got 0"),
        ({"augmentation": {"shift": -1}}, "shift must be an integer from 0"),
        ({"augmentation": {"rotation": 200}}, "rotation must be between"),
        ({"augmentation": {"flip": 2}}, "flip must be a probability"),
    ],
)
def test_bad_settings_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DistillationConfig.from_dict(change)


# Alg. 1


def stream() -> ExpertStream:
    return ExpertStream(trained())


def weights(result: DistillationResult) -> dict[str, Tensor]:
    return result.model.state_dict()


def change(**values: Any) -> DistillationConfig:
    return DistillationConfig.from_dict({**QUICK.to_dict(), **values})


@pytest.mark.parametrize(
    "values",
    [
        {}, {"normalize": "mean", "combine": "per_unit"}, {"optimizer": "adam", "lr": 0.003, "schedule": "onecycle"},
        {"targets": "fixed", "momentum": 0.9, "lr": 0.01}, {"loss": "kl", "normalize": "standardize"},
        {"targets": "stored", "momentum": 0.9, "lr": 0.01}, {"combine": "per_sample"},
        {"mixup": 0.5, "lambda_ce": 0.0, "loss": "kl"},
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
    for history in result.history:
        assert history["step"] == [100, 150] and len(history["loss"]) == 2
        term, ce = (history[name][1] for name in (config["loss"], "ce"))
        assert history["loss"][1] == pytest.approx(term + config["lambda_ce"] * ce)
    assert all(s["generate"] > 0 and s["distil"] > 0 for s in result.seconds)


def test_the_result_is_an_expert_that_can_be_saved(tmp_path: Path) -> None:
    result = ExModelDistillation(real_images(), change(iterations=2)).run(stream())
    result.expert.save(tmp_path)
    assert Expert.load(tmp_path).fingerprint() == result.expert.fingerprint()


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
    assert result.history[0]["step"] == [] and len(result.buffer) == 60
    other = nn.Sequential(nn.Flatten(), nn.Linear(1024, 4))
    method = ExModelDistillation(real_images(), change(init_from_first=True, lr=0.001), model=other, units=[0, 1, 2, 3])
    assert method.run(one).history[0]["step"] == [100, 150]


@pytest.mark.parametrize("reset", [True, False])
def test_reset_starts_each_expert_from_the_same_weights(monkeypatch: pytest.MonkeyPatch, reset: bool) -> None:
    begun: list[Tensor] = []

    def looking(network: nn.Module, *arguments: Any) -> Tensor:
        begun.append(next(network.parameters()).detach().clone())
        return forward(network, *arguments)

    monkeypatch.setattr(distillation, "forward", looking)
    ExModelDistillation(real_images(), change(reset=reset)).run(stream())
    assert len(begun) == 2 * 150 and torch.equal(begun[0], begun[150]) == reset
    assert not torch.equal(begun[0], begun[149])


def test_mixup_blends_the_images_that_both_see(monkeypatch: pytest.MonkeyPatch) -> None:
    class Plain:
        """Black or white images."""

        def samples(self, expert: Expert, count: int, *_: Any) -> tuple[Tensor, Tensor]:
            labels = torch.arange(count) % 2
            return (labels == 1).float()[:, None, None, None].expand(count, 1, 32, 32).contiguous(), labels

        def describe(self) -> dict[str, Any]:
            return {"strategy": "plain"}

    seen: dict[str, list[Tensor]] = {"teacher": [], "student": []}
    answer = distillation._Teachers.__call__

    def asked(self: Any, images: Tensor, *arguments: Any) -> Any:
        seen["teacher"].append(images)
        return answer(self, images, *arguments)

    def learning(network: nn.Module, images: Tensor, *arguments: Any) -> Tensor:
        seen["student"].append(images)
        return forward(network, images, *arguments)

    monkeypatch.setattr(distillation._Teachers, "__call__", asked)
    monkeypatch.setattr(distillation, "forward", learning)
    config = change(mixup=1.0, lambda_ce=0.0, augmentation={"shift": 0}, iterations=100)
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
        config = change(iterations=1, lambda_ce=weight, lr=1.0)
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
        logits, target, mask, torch.tensor([1]), torch.arange(4), DistillationConfig(task_labels=True)
    )
    assert float(ce) == pytest.approx(math.log(2))
    (gradient,) = torch.autograd.grad(ce, logits)
    assert gradient[0].tolist() == pytest.approx([0.5, -0.5, 0.0, 0.0])
    shared = ExpertStream([trained()[0], trained()[0]])
    with pytest.raises(ValueError, match=r"expert 2 shares the classes \[0, 1\] with an earlier one"):
        ExModelDistillation(real_images(), change(task_labels=True)).run(shared)


def test_experts_of_other_architectures_and_inputs() -> None:
    spec = InputSpec(3, (24, 24), (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    other = train_expert(quadrants(), [2, 3], architecture="cifar_resnet", spec=spec, epochs=15, arguments={"depth": 8})
    mixed = ExpertStream([trained()[0], other])
    result = ExModelDistillation(real_images(), QUICK).run(mixed)
    assert result.expert.input_spec == trained()[0].input_spec
    assert stream_accuracy(result.expert, quadrants()) >= 0.9
    for baseline in (EnsembleAverage(mixed), MinEntropy(mixed)):
        assert stream_accuracy(baseline, quadrants(), [[0, 1], [2, 3]]) > 0.3
    assert stream_accuracy(Oracle(mixed), quadrants(), [[0, 1], [2, 3]]) >= 0.9
    with pytest.raises(ValueError, match="parameters of different networks cannot be averaged: architecture"):
        ParameterAverage(mixed)
    wide = ExModelDistillation(real_images(), change(iterations=20), model=other.model, units=[0, 1, 2, 3], spec=spec)
    assert wide.run(mixed).expert.input_spec == spec


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

    class Watching:
        competes = True

        def __init__(self) -> None:
            self.seen: list[Expert] = []

        def samples(self, *args: Any, rival: Expert | None) -> tuple[Tensor, Tensor]:
            self.seen += [expert for expert in (args[0], rival) if expert is not None]
            return real_images().samples(*args)

        def describe(self) -> dict[str, Any]:
            return {"strategy": "watching"}

    strategy = Watching()
    result = ExModelDistillation(strategy, change(iterations=5)).run(stream())
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
    one, two, other = (
        ExModelDistillation(real_images(), change(iterations=20), seed=s).run(stream()) for s in (1, 1, 2)
    )
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
@pytest.mark.parametrize("other", [{"optimizer": "sgd"}, {"optimizer": "adam", "mixup": 1.0, "lambda_ce": 0.0}])
def test_an_interrupted_run_ends_bit_for_bit_as_if_it_had_not_been(
    tmp_path: Path, at: int, other: dict[str, Any]
) -> None:
    config = change(iterations=250, momentum=0.9, lr=0.003, schedule="onecycle", **other)
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
        ExModelDistillation(real_images(), change(iterations=300, batch_size=4)).run(
            stream(), progress=crash, checkpoint_dir=tmp_path, checkpoint_every=100
        )
    steps: list[int] = []
    resumed = ExModelDistillation(real_images(), change(iterations=300, batch_size=4)).run(
        stream(), progress=lambda stage, step, *_: steps.append(step), checkpoint_dir=tmp_path
    )
    assert steps[0] == 200
    straight = ExModelDistillation(real_images(), change(iterations=300, batch_size=4)).run(stream())
    assert straight.expert.fingerprint() == resumed.expert.fingerprint()


def test_a_checkpoint_of_a_version_with_fewer_settings_goes_on(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        ExModelDistillation(real_images(), QUICK).run(stream(), Interrupt(3), tmp_path)
    (file,) = tmp_path.glob("*.pt")
    state = torch.load(file, weights_only=True)
    del state["identity"]["config"]["mixup"]
    torch.save(state, file)
    resumed = ExModelDistillation(real_images(), QUICK).run(stream(), checkpoint_dir=tmp_path)
    assert resumed.expert.fingerprint() == ExModelDistillation(real_images(), QUICK).run(stream()).expert.fingerprint()


def test_aligned_rows_have_one_norm() -> None:
    """Zhao 2020, by class: the centred logits of each class change by one factor, in a copy."""
    plain, aligned = (ExModelDistillation(real_images(), change(align=flag)).run(stream()) for flag in (False, True))
    assert aligned.history == plain.history  # it goes on learning as it was
    old, new = weights(plain), weights(aligned)
    weight, bias = "classifier.4.weight", "classifier.4.bias"
    assert [name for name, value in old.items() if not torch.equal(value, new[name])] == [weight, bias]
    centred = {name: old[name] - old[name].mean(0) for name in (weight, bias)}
    norms = centred[weight].norm(dim=1)
    assert norms.max() / norms.min() > 1.01  # something to align
    torch.testing.assert_close(new[weight], centred[weight] * (norms.mean() / norms)[:, None])
    torch.testing.assert_close(new[bias], centred[bias] * (norms.mean() / norms))
    assert stream_accuracy(aligned.expert, quadrants()) >= 0.9


def test_only_the_classes_seen_are_aligned() -> None:
    plain, given = [], []
    for align, states in ((False, plain), (True, given)):
        ExModelDistillation(real_images(), change(align=align, iterations=20)).run(
            stream(), evaluate=lambda e, states=states: states.append(copy.deepcopy(e.model.state_dict()))
        )
    weight = "classifier.4.weight"
    first, before = given[0][weight], plain[0][weight]
    assert torch.equal(first[2:], before[2:]) and not torch.equal(first[:2], before[:2])
    torch.testing.assert_close(first[:2].norm(dim=1), before[:2].sub(before[:2].mean(0)).norm(dim=1))
    norms = given[1][weight].norm(dim=1)
    torch.testing.assert_close(norms, norms.mean().expand(4))


class Gated(nn.Module):
    """Whose last linear layer does not give the logits."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.gate = nn.Linear(1024, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        z = self.first(x.flatten(1))
        return z * self.gate(z).sigmoid()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Gated(), "that gives the logits, got one before others"),
        (
            nn.Sequential(nn.Conv2d(1, 4, 32), nn.Flatten()),
            "need a final linear layer: .* executes no nn.Linear",
        ),
        (
            nn.Sequential(nn.Flatten(), nn.utils.parametrizations.weight_norm(nn.Linear(1024, 4))),
            "with its own weight, got a parametrised one",
        ),
    ],
)
def test_aligning_needs_a_linear_layer_that_gives_the_logits(model: nn.Module, message: str) -> None:
    method = ExModelDistillation(real_images(), change(align=True), model=model, units=[0, 1, 2, 3])
    with pytest.raises(ValueError, match=message):
        method.run(stream())


def test_a_checkpoint_of_another_run_is_refused_by_name(tmp_path: Path) -> None:
    config = change(iterations=2)
    ExModelDistillation(real_images(), config).run(stream(), checkpoint_dir=tmp_path)
    for name, method, experts in (
        ("config", ExModelDistillation(real_images(), change(iterations=3)), stream()),
        ("seed", ExModelDistillation(real_images(), config, seed=1), stream()),
        ("experts", ExModelDistillation(real_images(), config), ExpertStream(trained()[::-1])),
    ):
        with pytest.raises(ValueError, match=f"of another run: {name} was"):
            method.run(experts, checkpoint_dir=tmp_path)


def test_bfloat16_learns_the_same() -> None:
    """Convolutions and linear layers round; weights and loss do not, and what is learned is as good."""
    runs = [
        ExModelDistillation(real_images(), dataclasses.replace(QUICK, arithmetic=arithmetic)).run(
            ExpertStream(list(trained()))
        )
        for arithmetic in ("float32", "bfloat16")
    ]
    plain, rounded = (run.history[0]["mse"][0] for run in runs)
    assert rounded != plain and rounded == pytest.approx(plain, rel=0.05)
    assert {p.dtype for p in runs[1].model.parameters()} == {torch.float32}
    accuracies = [stream_accuracy(run.expert, quadrants()) for run in runs]
    assert accuracies[1] > accuracies[0] - 0.1, accuracies
