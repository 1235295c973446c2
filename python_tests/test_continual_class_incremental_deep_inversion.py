"""Yin 2020, Eq. 11, its oracles, and BatchNorm layers that stay as they are."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from small_learners import SPEC, batch_of, made, net, second_task, split_of, tasks
from torch import nn

from exml_fast.continual.class_incremental import Task, learner
from exml_fast.continual.class_incremental.deep_inversion import freeze_batch_norm, kl_with_zeros
from exml_fast.data import InputSpec


def test_the_loss_is_equation_11(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first half of the batch is of new classes, the others are synthetic images of old ones."""
    _, (stage,), before = second_task(monkeypatch, "deep-inversion", lambda_new_images=0.5, batch_size=4)
    batch = batch_of()
    found, old = stage.terms(batch), before(batch.images).softmax(1).detach()
    now = stage.model.eval()(batch.images).detach()
    p, among_old = now.softmax(1), now[:4, :2].softmax(1)
    synthetic = sum(float((old[n] * (old[n] / p[n, :2]).log()).sum()) for n in range(4, 8)) / 4
    new = float(-p[range(4), batch.labels[:4]].log().mean())  # type: ignore[index]
    kept = sum(float((old[n] * (old[n] / among_old[n]).log()).sum()) for n in range(4)) / 4
    assert found["synthetic"].item() == pytest.approx(synthetic, rel=1e-4)
    assert found["new"].item() == pytest.approx(new, rel=1e-4)
    assert found["kept"].item() == pytest.approx(kept, rel=1e-4)
    assert found["loss"].item() == pytest.approx(synthetic + new + 0.5 * kept, rel=1e-4)
    assert stage.config.clip == 0.1


def test_a_step_has_as_many_synthetic_as_new_images(monkeypatch: pytest.MonkeyPatch) -> None:
    _, (stage,), _ = second_task(monkeypatch, "deep-inversion", batch_size=6, augmentation={})
    for batch in stage.batches.block(0, 4):
        assert len(batch.images) == 12 and batch.labels[:6].min() >= 2 and batch.labels[6:].max() <= 1
        new = {tuple(x.flatten().tolist()) for x in SPEC.prepare(tasks()[1].split.images)}
        assert all(tuple(x.flatten().tolist()) in new for x in batch.images[:6])


def test_the_divergence_gives_new_classes_no_probability() -> None:
    answers, logits = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.0, 30.0]])
    assert float(kl_with_zeros(answers, logits)) > 20
    logits[:, 2] = -1e9
    assert float(kl_with_zeros(answers, logits)) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("method", ["deep-inversion", "oracle-distill"])
@pytest.mark.parametrize("freeze", [True, False])
def test_batch_norm_stays_after_the_first_task(method: str, freeze: bool) -> None:
    taught = made(method, freeze_bn=freeze)
    first, second, _ = tasks()
    taught.learn(first)
    before = {name: t.clone() for name, t in taught.network.state_dict().items()}
    taught.learn(second)
    now = taught.network.state_dict()
    kept = [torch.equal(before[f"norm.{name}"], now[f"norm.{name}"]) for name in ("running_mean", "weight", "bias")]
    assert all(kept) if freeze else not any(kept)
    assert not torch.equal(before["conv.weight"], now["conv.weight"])
    assert all(parameter.requires_grad for parameter in taught.network.parameters())


def test_frozen_batch_norm_gets_no_gradient() -> None:
    network = net().train()
    freeze_batch_norm(network)
    network(torch.randn(4, *SPEC.shape)).sum().backward()
    assert network.norm.weight.grad is None and network.conv.weight.grad is not None and not network.norm.training


def test_the_gradient_is_clipped_after_the_first_task() -> None:
    """With a rate of 1 and no momentum, a step is the gradient."""
    plain = {"schedule": "constant", "lr": 1.0, "momentum": 0.0, "weight_decay": 0.0, "epochs": 1, "batch_size": 24}
    taught = made("deep-inversion", clip_after_first=0.01, **plain)
    first, second, _ = tasks()
    taught.learn(first)
    before = {name: t.detach().clone() for name, t in taught.network.named_parameters()}
    taught.learn(second)
    moved = [
        (t.detach() - before[name]).flatten() for name, t in taught.network.named_parameters() if "last" not in name
    ]
    assert 0 < float(torch.cat(moved).norm()) <= 0.01 * 1.001


def test_the_oracles_learn_from_real_images(monkeypatch: pytest.MonkeyPatch) -> None:
    for method in ("oracle-distill", "oracle-classify"):
        with monkeypatch.context() as patch:
            taught, (stage,), before = second_task(patch, method, total=8, batch_size=4)
            batch = batch_of()
            found, old = stage.terms(batch), before(batch.images[4:]).softmax(1)
            now = stage.model.eval()(batch.images)
            new = F.cross_entropy(now[:4], batch.labels[:4])  # type: ignore[index]
            kept = F.cross_entropy(now[4:], batch.labels[4:])  # type: ignore[index]
            if method == "oracle-distill":
                kept = (old * (old.log() - now[4:].log_softmax(1)[:, :2])).sum(1).mean()
            torch.testing.assert_close(found, {"loss": new + kept, "new": new, "old": kept})
            assert taught.nbytes == 8 * 64 and sorted(taught.memory()) == ["0", "1", "2", "3"]
            images = stage.batches.sources[1].images
            assert all(any(torch.equal(a, b) for b in tasks()[0].split.images) for a in images) and len(images) == 8


def test_few_images_are_named_before_anything_is_learned() -> None:
    taught = made("deep-inversion", images=2)
    first, second, third = tasks()
    taught.learn(first)
    taught.learn(second)
    with pytest.raises(ValueError, match="images must be at least the number of old classes, 4, got 2"):
        taught.learn(third)
    with pytest.raises(ValueError, match="total must be at least the number of classes, 2, got 1"):
        made("oracle-distill", total=1).learn(first)
    with pytest.raises(ValueError, match="recipe"):
        made("deep-inversion", recipe="none")


def test_a_network_without_batch_norm_needs_a_recipe_without_it() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 2))
    first, second = (Task(group, split_of(group)) for group in ((0, 1), (2, 3)))
    for method in ("deep-inversion", "r-dfcil", "synthetic-exemplars", "skd-inverted"):
        with pytest.raises(ValueError, match="runs no BatchNorm layer"):
            made(method, network=network)
    with pytest.raises(ValueError, match="multiples of 4"):
        learner("skd", nn.Sequential(nn.Flatten(), nn.Linear(100, 2)), InputSpec(1, (10, 10), (0.5,), (0.2,)))
    taught = made("deep-inversion", network=network, recipe="data_impressions/nayak")
    taught.learn(first)
    taught.learn(second)
    assert taught.classes == [0, 1, 2, 3]
