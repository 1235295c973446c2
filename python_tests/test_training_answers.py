"""The answers of a frozen teacher."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from exml_fast.data import Augmentation, InputSpec
from exml_fast.models import CifarResNet
from exml_fast.training import Answers, Batch, Training
from exml_fast.transfer import zskd

SPEC = InputSpec(3, (32, 32), (0.5,) * 3, (0.25,) * 3)
CONFIG = Training(steps=6, batch_size=8)


def network() -> nn.Module:
    torch.manual_seed(0)
    return CifarResNet(8).eval()


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_answers_are_the_teachers(precision: str) -> None:
    teacher, images = network(), torch.randn(8, 3, 32, 32)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    with torch.no_grad():
        expected = teacher(images)
    found = Answers(teacher, SPEC, CONFIG.replace(precision=precision))(images.requires_grad_())
    assert found.dtype == torch.float32 and not found.requires_grad
    assert (found - expected).norm() < (1e-4 if precision == "float32" else 0.03) * expected.norm()
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())


def test_answers_of_a_network_that_cannot_be_frozen() -> None:
    teacher, images = network(), torch.randn(4, 3, 32, 32)
    scripted = torch.jit.trace(teacher, images)
    assert torch.allclose(Answers(scripted, SPEC, CONFIG)(images), teacher(images), atol=1e-5)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of images that teachers are asked for."""
    counts: list[int] = []
    original = Answers.__call__

    def count(self: Answers, images: Tensor) -> Tensor:
        counts.append(len(images))
        return original(self, images)

    monkeypatch.setattr(Answers, "__call__", count)
    return counts


def test_answers_are_remembered_where_images_do_not_change(asked: list[int]) -> None:
    teacher, images = network(), torch.randn(20, 3, 32, 32)
    rows = torch.tensor([3, 19, 3])
    for config, remembers in (
        (CONFIG, True),
        (CONFIG.replace(steps=2), False),  # two steps of 8 read fewer than 20 images
        (CONFIG.replace(mixup=1.0), False),
        (CONFIG.replace(cutmix=1.0), False),
        (CONFIG.replace(augmentation=Augmentation(flip=0.5)), False),
    ):
        asked.clear()
        answers = Answers(teacher, SPEC, config)
        answers.remember(images)
        assert asked == ([8, 8, 4] if remembers else [])
        found = answers.of(Batch(images[rows], rows=rows))
        assert len(asked) == (3 if remembers else 1)
        torch.testing.assert_close(found, answers.of(Batch(images[rows])), rtol=1e-4, atol=1e-5)


def test_a_student_learns_the_same_from_remembered_answers(asked: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    teacher, images = network(), torch.randn(20, 3, 32, 32)
    first = zskd(teacher, network(), images, spec=SPEC, config=CONFIG)
    assert asked == [8, 8, 4]
    monkeypatch.setattr(Answers, "remember", lambda *_: None)
    second = zskd(teacher, network(), images, spec=SPEC, config=CONFIG)
    assert len(asked) == 3 + CONFIG.steps
    assert second.history["loss"] == pytest.approx(first.history["loss"], rel=1e-3)
