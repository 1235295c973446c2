from __future__ import annotations

import json
from typing import Any

import pytest
from small_experts import QUICK
from torch import Tensor, nn

from exml_fast.continual import DistillationConfig, Divergence
from exml_fast.continual.ex_model.losses import Loss
from exml_fast.continual.ex_model.postprocessing import Align, Debias, Renormalise, Situation, Step


def test_defaults_are_the_papers() -> None:
    config, training = DistillationConfig(), DistillationConfig().training
    assert (training.steps, training.batch_size, training.lr) == (30000, 32, 0.01)
    assert (training.optimizer, training.momentum, training.schedule) == ("sgd", 0.0, "constant")
    assert training.augmentation.shift == 4 and Divergence().temperature == 2
    assert (config.lambda_ce, config.buffer_size) == (1.0, 5000)
    assert DistillationConfig.from_dict(json.loads(json.dumps(QUICK.to_dict()))) == QUICK


def test_onecycle_rises_and_falls() -> None:
    config = DistillationConfig.from_dict({"steps": 100, "lr": 1.0, "schedule": "onecycle"}).training
    rates = [config.rate(step) for step in range(100)]
    assert rates[0] == pytest.approx(1 / 25) and max(rates) == pytest.approx(1.0) == rates[30]
    assert rates[-1] == pytest.approx(1e-4)
    assert rates[:31] == sorted(rates[:31]) and rates[30:] == sorted(rates[30:], reverse=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optimizer": "lbfgs"}, "optimizer must be one of 'adam' or 'sgd', got 'lbfgs'"),
        ({"precision": "float16"}, "precision must be one of"),
        ({"normalize": "softmax"}, "normalize must be one of"),
        ({"combine": "x"}, "combine must be one of"),
        ({"targets": "kept"}, "targets must be one of"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"batch_size": 1.5}, "batch_size must be an integer, got 1.5"),
        ({"lr": 0.0}, "lr must be positive"),
        ({"lr": True}, "lr must be a number"),
        ({"temperature": float("nan"), "loss": "kl"}, "temperature must be a finite number"),
        ({"temperature": 2.0}, "temperature needs loss 'kl', got 'mse'"),
        ({"reduction": "sum", "loss": "kl"}, "reduction needs loss 'mse', got 'kl'"),
        ({"lambda_ce": -1.0}, "lambda_ce must be at least 0"),
        ({"targets": "blended", "mixup": -0.1, "lambda_ce": 0.0}, "mixup must be positive"),
        ({"targets": "blended"}, "lambda_ce must be 0 with blended targets, for a blend has no label, got 1.0"),
        ({"mixup": 1.0, "lambda_ce": 0.0, "targets": "fixed"}, "mixup needs targets 'blended', got 'fixed'"),
        ({"targets": "blended", "combine": "per_sample"}, "combine needs targets 'live' or 'fixed', got 'blended'"),
        ({"targets": "blended", "task_labels": True}, "task_labels needs targets 'live' or .*, got 'blended'"),
        ({"targets": "stored", "combine": "per_sample"}, "combine needs targets 'live' or 'fixed', got 'stored'"),
        ({"views": 2}, "views needs targets 'stored' or 'experts', got 'live'"),
        ({"views": 0, "targets": "stored"}, "views must be at least 1, got 0"),
        ({"align": True, "task_labels": True}, "align must be False with task_labels"),
        ({"align": 1}, "align must be true or false, got 1"),
        ({"debias": 2.0}, "debias: share must be at most 1, got 2.0"),
        ({"step": 3}, "unknown field 'step'.*did you mean 'steps'"),
        ({"augmentation": {"shift": -1}}, "shift must be at least 0"),
        ({"augmentation": {"rotation": 200}}, "rotation must be at most 180"),
        ({"augmentation": {"flip": 2}}, "flip must be at most 1"),
    ],
)
def test_bad_settings_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DistillationConfig.from_dict(change)


def test_another_kind_of_targets_drops_the_fields_of_the_first() -> None:
    kept = DistillationConfig.from_dict({"targets": "stored", "views": 3, "normalize": "mean", "lr": 0.5})
    live = kept.replace(targets="live", combine="per_sample")
    assert (live.targets.name, live.targets.normalize, live.targets.combine) == ("live", "mean", "per_sample")
    assert live.training.lr == 0.5 and live.targets.views == 1
    with pytest.raises(ValueError, match="views needs targets"):
        kept.replace(targets="live", views=2)


def test_replace_keeps_parts_that_a_flat_table_cannot_hold() -> None:
    class Absolute(Loss):
        name = "absolute"

        def __call__(self, logits: Tensor, target: Tensor, mask: Tensor) -> Tensor:
            return ((logits - target) * mask).abs().mean()

    class Nothing(Step):
        def __call__(self, model: nn.Module, situation: Situation) -> None:
            """Change nothing."""

    loss, nothing = Absolute(), Nothing()
    config = DistillationConfig(loss=loss, postprocessing=(Debias(0.5), nothing, Align()))
    other = config.replace(steps=3, normalize="mean", debias=0.25)
    assert other.loss is loss and other.postprocessing == (Debias(0.25), nothing, Align())
    assert (other.training.steps, other.targets.normalize) == (3, "mean")
    assert other.replace(align=False).postprocessing == (Debias(0.25), nothing)
    assert config.replace(postprocessing=[Align()]).replace(renormalise=True).postprocessing == (Renormalise(), Align())
    assert config.replace(training=other.training, loss="kl").loss == Divergence()
    assert json.loads(json.dumps(config.identity())) == config.identity() != other.identity()
    with pytest.raises(ValueError, match="loss must be one of mse, kl in a flat table, got 'Absolute'"):
        config.to_dict()
    with pytest.raises(ValueError, match=r"postprocessing must be renormalise, align, debias, in this order, .*Debias"):
        DistillationConfig(postprocessing=(Debias(0.5), Align())).to_dict()
    with pytest.raises(ValueError, match="unknown field 'postprocessing'"):
        DistillationConfig.from_dict({"postprocessing": []})
    with pytest.raises(ValueError, match="temperature needs loss 'kl', got 'absolute'"):
        config.replace(temperature=2.0)


def test_only_what_differs_from_the_defaults_identifies_a_run() -> None:
    assert DistillationConfig().identity() == {"targets": "live", "loss": "mse"}
    assert DistillationConfig.from_dict({"loss": "kl", "align": True, "lr": 0.5}).identity() == {
        "targets": "live", "loss": "kl", "align": True, "lr": 0.5,
    }  # fmt: skip
