"""Training with Lightning: the callback and the data module."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_networks import BN, SPEC, network
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import exml_fast as xf

lightning = pytest.importorskip("lightning.pytorch")
parts = pytest.importorskip("exml_fast.compat.lightning")


class Painter(lightning.LightningModule):  # type: ignore[misc, unused-ignore]
    """Optimises images so that a frozen teacher classifies them, as DeepInversion does."""

    def __init__(self, as_dict: bool = False) -> None:
        super().__init__()
        self.teacher = network().eval().requires_grad_(False)
        self.images = nn.Parameter(torch.zeros(5, *SPEC.shape))
        self.as_dict, self.losses = as_dict, list[float]()

    def training_step(self, batch: Tensor, index: int) -> Any:
        loss = F.cross_entropy(self.teacher(self.images), torch.arange(5))
        self.losses.append(float(loss))
        return {"loss": loss} if self.as_dict else loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([self.images], lr=0.1)


def trainer(folder: Path, callbacks: Any = (), **options: Any) -> Any:
    return lightning.Trainer(
        default_root_dir=folder, accelerator="cpu", callbacks=list(callbacks), logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, **options,
    )  # fmt: skip


def dummy(count: int) -> DataLoader[Any]:
    return DataLoader(TensorDataset(torch.zeros(count, 1)))


@pytest.mark.parametrize("as_dict", [False, True])
def test_the_callback_adds_the_distance_to_the_loss(tmp_path: Path, as_dict: bool) -> None:
    module = Painter(as_dict)
    running = trainer(tmp_path, [parts.MatchStatistics("teacher", weight=0.5)], max_steps=3)
    running.fit(module, dummy(3))
    images = torch.zeros(5, *SPEC.shape, requires_grad=True)
    for _ in range(3):
        with xf.BNStatistics(module.teacher) as statistics:
            loss = F.cross_entropy(module.teacher(images), torch.arange(5)) + 0.5 * statistics.loss()
        (gradient,) = torch.autograd.grad(loss, images)
        images = (images - 0.1 * gradient).detach().requires_grad_()
    assert torch.allclose(module.images, images, atol=1e-6)
    assert float(running.callback_metrics["bn_distance"]) > 0


def test_nothing_stays_on_the_module(tmp_path: Path) -> None:
    module, step = Painter(), Painter.training_step
    trainer(tmp_path, [parts.MatchStatistics("teacher")], max_steps=1).fit(module, dummy(1))
    assert "training_step" not in vars(module) and module.training_step.__func__ is step
    assert not any(m._forward_pre_hooks for m in module.modules())

    class Broken(Painter):
        def training_step(self, batch: Tensor, index: int) -> Any:
            raise ZeroDivisionError

    broken = Broken()
    with pytest.raises(ZeroDivisionError):
        trainer(tmp_path, [parts.MatchStatistics("teacher")], max_steps=1).fit(broken, dummy(1))
    assert "training_step" not in vars(broken) and not any(m._forward_pre_hooks for m in broken.modules())
    with pytest.raises(ValueError, match="network must be the name of a network of the module, got 'pupil'"):
        trainer(tmp_path, [parts.MatchStatistics("pupil")], max_steps=1).fit(Painter(), dummy(1))


class Pupil(lightning.LightningModule):  # type: ignore[misc, unused-ignore]
    def __init__(self) -> None:
        super().__init__()
        self.network = network(1)
        self.seen = list[Any]()

    def training_step(self, batch: Any, index: int) -> Tensor:
        images, labels = batch
        self.seen.append(labels)
        return F.cross_entropy(self.network(images), labels)

    def validation_step(self, batch: Any, index: int) -> None:
        images, labels = batch
        self.log("validation", F.cross_entropy(self.network(images), labels))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.01)


def test_a_student_learns_from_synthetic_images(tmp_path: Path) -> None:
    teacher = network()
    result = xf.invert(teacher, recipe=BN.replace(steps=200, lr=0.1), spec=SPEC, per_class=8)
    data = parts.SyntheticImages(result, batch_size=8, validation=0.2, seed=3)
    assert (len(data.train), len(data.held_out)) == (32, 8)
    pupil = Pupil()
    running = trainer(tmp_path, max_epochs=30)
    running.fit(pupil, data)
    assert float(running.callback_metrics["validation"]) < 1.0 and len(torch.cat(pupil.seen)) == 30 * 32
    again = parts.SyntheticImages(result, batch_size=8, validation=0.2, seed=3)
    assert [labels.tolist() for _, labels in again.train_dataloader()] == [seen.tolist() for seen in pupil.seen[:4]]


def test_soft_labels_other_data_sets_and_bad_input(tmp_path: Path) -> None:
    result = xf.invert(network(), recipe=BN.replace(steps=1), spec=SPEC, per_class=2)
    soft = next(iter(parts.SyntheticImages(result, batch_size=10, temperature=2.0).train_dataloader()))[1]
    assert soft.shape == (10, 5) and torch.allclose(soft.sum(1), torch.ones(10))
    assert parts.SyntheticImages(result).val_dataloader() == []
    other = parts.SyntheticImages(TensorDataset(result.images, result.labels), batch_size=3)
    trainer(tmp_path, max_epochs=1).fit(Pupil(), other)
    for options, says in (
        ({"validation": 1.0}, r"validation must be a share in \[0, 1\), got 1.0"),
        ({"batch_size": 0}, "batch_size must be a positive integer"),
    ):
        with pytest.raises(ValueError, match=says):
            parts.SyntheticImages(result, **options)
    with pytest.raises(ValueError, match="temperature must be None for images other than a Result"):
        parts.SyntheticImages(TensorDataset(result.images, result.labels), temperature=1.0)
