"""Each method's loss against a plain computation of its own, and what each keeps."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_learners import SPEC, batch_of, made, net, second_task, split_of, stages, tasks
from torch import Tensor

from exml_fast.continual.class_incremental import METHODS, Task, learner
from exml_fast.continual.class_incremental.delegator import consolidation
from exml_fast.continual.class_incremental.dual_distillation import double_distillation
from exml_fast.continual.class_incremental.losses import PAIRS
from exml_fast.continual.class_incremental.r_dfcil import angles
from exml_fast.data import Split
from exml_fast.training import Batch

FIRST, SECOND, THIRD = tasks()


def close(found: dict[str, Tensor], expected: dict[str, Any]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].item() == pytest.approx(torch.as_tensor(value).item(), rel=1e-4, abs=1e-6), name


def new_images() -> Batch:
    return batch_of(8, (2, 3, 3, 2, 2, 3, 2, 3))


# Labels, and answers of the network before.


@pytest.mark.parametrize(("method", "loss"), [("fine-tuning", "ce"), ("joint", "ce"), ("fine-tuning", "bce")])
def test_labels_alone(method: str, loss: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _, (stage,), _ = second_task(monkeypatch, method, classification=loss)
    batch = batch_of()
    logits = stage.model.eval()(batch.images)
    one_hot = F.one_hot(batch.labels, 4).float()  # type: ignore[arg-type]
    expected = F.cross_entropy(logits, one_hot)
    if loss == "bce":
        expected = 4 * F.binary_cross_entropy_with_logits(logits, one_hot)
    close(stage.terms(batch), {"loss": expected})


def test_joint_training_has_all_images(monkeypatch: pytest.MonkeyPatch) -> None:
    taught, (stage,), _ = second_task(monkeypatch, "joint")
    assert torch.equal(stage.batches.images, torch.cat([FIRST.split.images, SECOND.split.images]))
    assert stage.config.steps == 3 * 48 // 8 and taught.nbytes == 48 * 64
    assert sorted(stage.batches.labels.tolist()) == sorted([0, 1, 2, 3] * 12)


@pytest.mark.parametrize("method", ["lwf", "lwf-mc"])
def test_lwf(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _, (stage,), before = second_task(monkeypatch, method, lambda_old=0.3)
    batch = new_images()
    now, old = stage.model.eval()(batch.images), before(batch.images)
    assert batch.labels is not None
    if method == "lwf":
        new = F.cross_entropy(now[:, 2:], batch.labels - 2)
        p, q = (old / 2).softmax(1), (now[:, :2] / 2).softmax(1)
        kept = 4 * (p * (p / q).log()).sum(1).mean()
    else:
        wanted = F.one_hot(batch.labels - 2, 2).float()
        new = 2 * F.binary_cross_entropy_with_logits(now[:, 2:], wanted)
        kept = 2 * F.binary_cross_entropy_with_logits(now[:, :2], old.sigmoid())
    close(stage.terms(batch), {"loss": new + 0.3 * kept, "classification": new, "distillation": kept})


@pytest.mark.parametrize("pair", [*PAIRS])
@pytest.mark.parametrize("head", ["growing", "full"])
def test_icarl(pair: str, head: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a full head, the losses of labels cover the logits of later classes (Lardizzone 2020, 3.3)."""
    taught, (stage,), before = second_task(monkeypatch, "icarl", losses=pair, head=head, network=net(7))
    batch = batch_of()
    now, old = stage.model.eval()(batch.images), before(batch.images)[:, :2]
    assert now.shape[1] == (7 if head == "full" else 4) and batch.labels is not None
    new = PAIRS[pair].classification(now, batch.labels, 2)
    kept = PAIRS[pair].distillation(now, old)
    close(stage.terms(batch), {"loss": new + kept, "classification": new, "distillation": kept})
    exemplars = taught.memory()["0"]
    assert torch.equal(stage.batches.images[: len(exemplars)], exemplars) and stage.config.batch_size == 8


def test_a_fixed_representation_learns_new_rows_alone() -> None:
    taught = made("fixed-representation")
    taught.learn(FIRST)
    before = {name: t.clone() for name, t in taught.network.state_dict().items()}
    taught.learn(SECOND)
    now = taught.network.state_dict()
    for name, value in before.items():
        assert torch.equal(now[name][:2] if "last" in name else now[name], value), name


def test_the_new_rows_of_a_fixed_representation_compete_with_the_old(monkeypatch: pytest.MonkeyPatch) -> None:
    _, (stage,), before = second_task(monkeypatch, "fixed-representation")
    batch = next(stage.batches.block(0, 1))
    images = SPEC.prepare(torch.cat([SECOND.split.images, SECOND.split.images.flip(3)]))[batch.rows]
    features = before.features(images)
    logits = torch.cat([before.last(features), stage.model(features)], 1)
    close(stage.terms(batch), {"loss": F.cross_entropy(logits, batch.labels)})
    assert stage.config.augmentation.active is False and stage.config.steps == 3 * 48 // 8


# Synthetic images.


def test_abd(monkeypatch: pytest.MonkeyPatch) -> None:
    """Smith 2021: local labels, features through the old classifier, and a balanced classifier on fixed features."""
    _, (stage,), before = second_task(monkeypatch, "abd", lambda_features=0.2, batch_size=4)
    batch, network = batch_of(), stage.model.eval()
    assert batch.labels is not None
    now = network(batch.images)
    new = F.cross_entropy(now[:4, 2:], batch.labels[:4] - 2) / 2  # half of the classes is new
    change = before.last(network.features(batch.images)) - before(batch.images)  # type: ignore[operator]
    features = (change**2).mean()
    classes = [-now.log_softmax(1)[batch.labels == c, c].sum() / 4 for c in range(4)]
    classification = sum(classes) / 2 * 2 / 2  # half of the classes is old: no weights
    close(
        stage.terms(batch),
        {"loss": new + 0.2 * features + classification, "new": new, "features": features,
         "classification": classification},
    )  # fmt: skip
    network.zero_grad()
    found = stage.loss(_whole(network), batch)
    found["classification"].backward()
    assert network.conv.weight.grad is None, "the features do not follow the balanced classifier"  # type: ignore[union-attr]


def _whole(network: Any) -> Any:
    from exml_fast.training import Rounded

    return Rounded(network, "float32")


def test_r_dfcil(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gao 2022, Eqs. 4 to 9."""
    settings: dict[str, Any] = {"lambda_labels": 0.5, "lambda_answers": 0.15, "lambda_relations": 0.25, "batch_size": 4}
    _, (represent, refine), before = second_task(monkeypatch, "r-dfcil", **settings)
    batch, network = batch_of(), represent.model.eval()
    assert batch.labels is not None and represent.beside is not None
    now, old = network(batch.images), before(batch.images)
    alpha, beta = math.log2(2 / 2 + 1), math.sqrt(2 / 2)
    labels = F.cross_entropy(now[:4, 2:], batch.labels[:4] - 2)
    answers = (now[4:, :2] - old[4:]).abs().mean()
    projected = [
        represent.beside["now"](network.features(batch.images[:4])),  # type: ignore[operator,index]
        represent.beside["before"](before.features(batch.images[:4])),  # type: ignore[index]
    ]
    relations = torch.stack([
        (_angle(projected[0], i, j, k) - _angle(projected[1], i, j, k)).abs()
        for i in range(4) for j in range(4) for k in range(4)
    ]).mean()  # fmt: skip
    total = 0.5 * (1 + 1 / alpha) / beta * labels + alpha * beta * (0.15 * answers + 0.25 * relations)
    close(represent.terms(batch), {"loss": total, "labels": labels, "answers": answers, "relations": relations})
    assert (represent.name, refine.name) == ("represent", "refine") and refine.config.lr == 0.1
    assert refine.config.steps == round(0.2 * represent.config.steps)
    assert [name for name, p in refine.model.named_parameters() if p.requires_grad] == ["last.weight", "last.bias"]
    now = refine.model.eval()(batch.images)
    labels, answers = F.cross_entropy(now, batch.labels), (now[4:, :2] - old[4:]).abs().mean()
    close(refine.terms(batch), {"loss": 0.5 * labels + 0.15 * answers, "labels": labels, "answers": answers})


def _angle(features: Tensor, i: int, j: int, k: int) -> Tensor:
    """Cosine of the angle at image i between the ways to images j and k; 0 where a way has no length."""
    one, other = features[j] - features[i], features[k] - features[i]
    length = one.norm() * other.norm()
    return one @ other / length if length > 0 else length


def test_angles_do_not_change_with_place_size_and_rotation() -> None:
    features = torch.randn(5, 3, dtype=torch.float64)
    rotation = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64)).Q
    torch.testing.assert_close(angles(features), angles(2 * features @ rotation + 1))
    assert angles(features)[1, 2, 3] == pytest.approx(float(_angle(features, 1, 2, 3)))


def test_dual_distillation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nayak 2021, 4.3: two teachers; the combined network begins as the old one (Zhang 2020, Eqs. 2 and 3)."""
    settings: dict[str, Any] = {"lr_new": 0.3, "lr_combined": 0.02, "batch_size": 4}
    _, (alone, both), before = second_task(monkeypatch, "dual-distillation", **settings)
    assert (alone.name, both.name, alone.config.lr, both.config.lr) == ("new classes", "learn", 0.3, 0.02)
    batch = batch_of()
    assert batch.labels is not None
    of_new = Batch(batch.images[:4], batch.labels[:4] - 2)
    logits = alone.model.eval()(of_new.images)
    assert logits.shape == (4, 2) and set(alone.batches.labels.tolist()) == {0, 1}
    close(alone.terms(of_new), {"loss": F.cross_entropy(logits, of_new.labels)})
    old, new, now = before(batch.images), alone.model(batch.images), both.model.eval()(batch.images)
    torch.testing.assert_close(now[:, :2], old, msg="the combined network begins as the old one")
    squares = [
        (now[n, c] - (old[n, c] - old[n].mean() if c < 2 else new[n, c - 2] - new[n].mean())) ** 2
        for n in range(8) for c in range(4)
    ]  # fmt: skip
    close(both.terms(batch), {"loss": torch.stack(squares).mean()})
    torch.testing.assert_close(double_distillation(now, old + 3, new - 5), double_distillation(now, old, new))


@pytest.mark.parametrize("method", ["skd", "skd-without-generator", "skd-without-weighting", "skd-inverted"])
def test_the_delegated_learner(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ye 2022, Eqs. 9 to 12."""
    weighted = method != "skd-without-weighting"
    taught, (stage,), before = second_task(monkeypatch, method, beta=3.0, tasks=7, batch_size=4)
    batch = batch_of() if method in ("skd", "skd-inverted") else batch_of(4)
    assert batch.labels is not None
    network = stage.model.eval()
    now, pseudo = network(batch.images), before(batch.images[4:]).argmax(1)
    classification = F.cross_entropy(now, torch.cat([batch.labels[:4], pseudo]))
    a, b = before.features(batch.images), network.features(batch.images)  # type: ignore[operator]
    features = 1 - ((a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))).mean()
    gamma = 3.0 / (7 * 2) if weighted else 1.0
    close(
        stage.terms(batch),
        {"loss": gamma * classification + features, "classification": classification, "features": features},
    )
    taken = next(stage.batches.block(0, 1))
    assert len(taken.images) == len(batch.images)
    assert taught.base == 2 and (taught.generator is None) == (method != "skd")  # type: ignore[attr-defined]


def test_the_weight_falls_with_the_classes_learned_after_the_first_task(monkeypatch: pytest.MonkeyPatch) -> None:
    taught, _, _ = second_task(monkeypatch, "skd-without-generator", beta=3.0, tasks=7)
    (stage,) = stages(monkeypatch, taught, THIRD, None)
    assert taught.weight(stage.lesson) == 3.0 / (7 * 3)  # type: ignore[attr-defined]


def test_consolidation_is_one_minus_the_cosine() -> None:
    a = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    assert float(consolidation(a, torch.tensor([[5.0, 0.0], [0.0, 2.0]]))) == pytest.approx(0.5)


def test_a_generator_is_kept_and_trained_on() -> None:
    taught = made("skd")
    for task in tasks():
        learned = taught.learn(task)
    generator = taught.generator  # type: ignore[attr-defined]
    size = sum(t.nbytes for t in generator.network.state_dict().values())
    assert learned.nbytes == learned.working_bytes == size > 0 and "generator" in learned.seconds


# What is kept.


def test_exemplars_are_herded_and_shared_by_all_classes() -> None:
    taught, count = made("icarl", total=13), 0
    for task in tasks():
        learned = taught.learn(task)
        count += len(task.classes)
        kept = taught.memory()
        assert [len(kept[str(c)]) for c in range(count)] == [13 // count] * count
        assert learned.nbytes == 13 // count * count * 64
    again = made("icarl", total=13)
    again.learn(FIRST)
    first = again.memory()["1"]
    features = F.normalize(again.features(SPEC.prepare(FIRST.split.images[FIRST.split.labels == 2])), dim=1)
    best = (features - features.mean(0)).norm(dim=1).argmin()
    assert torch.equal(first[0], FIRST.split.images[FIRST.split.labels == 2][best])
    for task in tasks()[1:]:
        again.learn(task)
    assert torch.equal(again.memory()["1"], first[: 13 // 5]), "the most important ones stay"


def test_the_nearest_mean_answers() -> None:
    taught = made("icarl")
    for task in tasks():
        taught.learn(task)
    images = SPEC.prepare(split_of([7, 2, 30, 4, 5], 4, 8).images)
    means = []
    for unit in range(5):
        features = F.normalize(taught.features(SPEC.prepare(taught.memory()[str(unit)])), dim=1)
        means.append(F.normalize(features.mean(0), dim=0))
    nearest = torch.cdist(F.normalize(taught.features(images), dim=1), torch.stack(means)).argmin(1)
    assert torch.equal(taught.predict(images), torch.tensor(taught.classes)[nearest])


@pytest.mark.parametrize("method", ["synthetic-exemplars", "inverted-herded-images", "synthetic-exemplars-adaptive"])
def test_inverted_exemplars_are_bytes_of_each_class(method: str) -> None:
    taught = made(method, total=8)
    learned = taught.learn(FIRST)
    kept = taught.memory()
    assert [len(kept[str(c)]) for c in range(2)] == [4, 4] and kept["0"].dtype == torch.uint8
    assert "exemplars" in learned.seconds and learned.nbytes == 8 * 64
    real = any(torch.equal(a, b) for a in kept["0"] for b in FIRST.split.images)
    assert not real


def test_exemplars_that_cannot_be_made_are_named_before_anything_is_learned() -> None:
    told: list[Any] = []
    cases: list[tuple[dict[str, Any], Task, str]] = [
        ({"total": 1}, FIRST, "total must be at least the number of classes, 2, got 1"),
        ({"collage": "resized"}, Task((1,), split_of([1], 3)), r"at least four images of each class.*got \[1\]"),
    ]
    for settings, task, message in cases:
        taught = made("icarl", **settings)
        with pytest.raises(ValueError, match=message):
            taught.learn(task, progress=lambda *a: told.append(a))
    assert not told
    for settings, message in (
        ({"collage": "resized", "inversion": "deep_inversion"}, "collage must be None with inversion"),
        ({"inversion": "dreams"}, "dreams"),
        ({"classifier": "forest"}, "classifier must be one of"),
    ):
        with pytest.raises(ValueError, match=message):
            made("icarl", **settings)


def test_the_analytic_learner_is_ridge_regression_of_all_images(monkeypatch: pytest.MonkeyPatch) -> None:
    taught = made("analytic", width=16, ridge=1e-2)
    for task in tasks():
        taught.learn(task)
    images = torch.cat([task.split.images for task in tasks()])
    labels = torch.cat([task.split.labels for task in tasks()])
    images, labels = torch.cat([images, images.flip(3)]), labels.repeat(2)
    units = torch.tensor([taught.classes.index(label) for label in labels.tolist()])

    def expanded(x: Tensor) -> Tensor:
        random = torch.randn(6, 16, generator=torch.Generator().manual_seed(taught.seed))
        return (F.normalize(taught.features(SPEC.prepare(x)), dim=1) @ random).clamp(min=0).double()

    x, y = expanded(images), F.one_hot(units, 5).double()
    w = torch.linalg.solve(x.T @ x + 1e-2 * len(x) * torch.eye(16).double(), x.T @ y)
    asked = split_of([7, 2, 30, 4, 5], 6, 8).images
    expected = torch.tensor(taught.classes)[(expanded(asked) @ w).argmax(1)]
    assert torch.equal(taught.predict(SPEC.prepare(asked)), expected)
    assert taught.nbytes == 4 * (16 * 16 + 16 * 5)


# The table of methods.


def test_the_table_names_learners_and_settings() -> None:
    for name, method in METHODS.items():
        made(name)
        assert method.source and name == name.lower()
    real = {name for name, method in METHODS.items() if method.real}
    assert {"joint", "icarl", "icarl-svm", "inverted-herded-images", "oracle-distill"} <= real
    assert not real & {"lwf", "skd", "abd", "r-dfcil", "analytic", "deep-inversion", "synthetic-exemplars"}


def test_overrides_go_before_the_methods_settings() -> None:
    taught = learner("icarl-random", net(), SPEC, total=5, epochs=2, lr=0.3)
    config: Any = taught.config
    assert (config.exemplars.selection, config.exemplars.total, config.epochs) == ("random", 5, 2)
    assert config.training.lr == 0.3 and learner("skd", net(), SPEC, tasks=9).config.tasks == 9  # type: ignore[attr-defined]
    assert learner("skd", net(), SPEC, tasks=0).config.tasks == 1  # type: ignore[attr-defined]
    with pytest.raises(
        ValueError, match=r"method must be one of [0-9]+ names, got 'icarll' \(did you mean 'icarl'\?\)"
    ):
        learner("icarll", net(), SPEC)
    with pytest.raises(ValueError, match="unknown field 'totl'"):
        learner("icarl", net(), SPEC, totl=3)


def test_synthetic_images_are_as_many_of_each_class_and_counted_in_bytes() -> None:
    taught = made("deep-inversion", images=10)
    taught.learn(FIRST)
    taught.learn(SECOND)
    learned = taught.learn(THIRD)
    assert learned.working_bytes == 10 * 64 and learned.nbytes == 0 and "synthesis" in learned.seconds
    assert taught.samples is not None and set(taught.samples.labels.tolist()) == {0, 1, 2, 3}
    assert isinstance(taught.samples, Split)
