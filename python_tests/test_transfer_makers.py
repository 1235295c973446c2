from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small_training import SMALL as SPEC
from small_training import network
from torch import Tensor, nn

from exml_fast import Distillation, InputSpec, distill, recipes
from exml_fast.data import Augmentation, load
from exml_fast.generators import Fast

RECIPE = recipes.new("r", steps=4, batch_size=8, lr=0.1, bn=0.1)
FAST = Fast(steps=2, batch_size=4, width=3, latent_size=4, warmup=2)
SHORT = Distillation().replace(steps=20, batch_size=4, lr=0.05, generate_every=5, per_round=6, rounds=3, mixup=0.5)


def taught(images: Any = None, **options: Any) -> Any:
    return distill(network(1), network(0), images, spec=SPEC, config=SHORT, **options)


def test_a_meta_generator_makes_all_images() -> None:
    result = taught(FAST, units=[7, 5, 3, 1], classes=[3, 7])
    assert [(r["step"], r["images"]) for r in result.rounds] == [(0, 6), (5, 6), (10, 6)]
    assert set(result.rounds[0]) == {"step", "images", "seconds", "student", "teacher"}
    assert len(result.images) == 18 and set(result.labels.tolist()) == {3, 7}
    pixels = SPEC.denormalize(result.images)
    assert pixels.min() >= 0 and pixels.max() <= 1


@pytest.mark.parametrize(
    "made",
    [
        {"images": FAST},
        {"images": FAST.replace(meta="reptile", bn_memory="set", adversarial=0.0)},
        {"recipe": RECIPE.replace(bn_memory="set")},
        {"recipe": [RECIPE.replace(bn_memory=0.9), RECIPE]},
    ],
)
@pytest.mark.parametrize("at", [5, 10])
def test_an_interrupted_transfer_continues_bit_for_bit(tmp_path: Path, made: dict[str, Any], at: int) -> None:
    def interrupt(stage: str, step: int, *_: object) -> None:
        if (stage, step) == ("learn", at):
            raise KeyboardInterrupt

    expected = taught(**made)
    with pytest.raises(KeyboardInterrupt):
        taught(**made, checkpoint_dir=tmp_path, progress=interrupt)
    with pytest.raises(ValueError, match="another run"):
        taught(FAST.replace(ce=0.7), checkpoint_dir=tmp_path)
    found = taught(**made, checkpoint_dir=tmp_path)
    assert torch.equal(found.images, expected.images) and found.history == expected.history


def test_rounds_with_a_memory_are_one_set() -> None:
    once, whole = (taught(recipe=RECIPE.replace(bn_memory=memory)).images for memory in (0.0, "set"))
    assert torch.equal(once[:6], whole[:6]) and not torch.equal(once[6:12], whole[6:12])


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="recipe must be None with images of Fast, got 'deep_dream'"):
        taught(FAST, recipe="deep_dream")
    with pytest.raises(ValueError, match="rounds is 0 and there are no images"):
        taught(FAST, rounds=0)
    with pytest.raises(ValueError, match="classes must be at least one of the teacher's 4 classes"):
        taught(FAST, classes=[0, 4])
    with pytest.raises(ValueError, match="runs no BatchNorm layer"):
        distill(nn.Sequential(nn.Flatten(), nn.Linear(64, 4)), network(0), FAST, spec=SPEC, config=SHORT)


def test_a_student_learns_digits_from_a_meta_generator(digits_teacher: tuple[nn.Module, InputSpec]) -> None:
    teacher, spec = digits_teacher
    data = load("digits")
    x, y = spec.prepare(data.test.images), data.test.labels
    torch.manual_seed(3)
    layers = [nn.Conv2d(1, 12, 5, 2, 2), nn.BatchNorm2d(12), nn.ReLU(), nn.AdaptiveAvgPool2d(5), nn.Flatten()]
    student = nn.Sequential(*layers, nn.Linear(300, 10))

    def accuracy(model: nn.Module) -> float:
        with torch.no_grad():
            found: Tensor = model(x).argmax(1) == y
            return float(found.double().mean())

    before = accuracy(student.eval())
    result = distill(
        teacher, student, Fast(batch_size=64, width=8, warmup=4), spec=spec, evaluate=accuracy, steps=200,
        batch_size=64, lr=0.1, schedule="cosine", augmentation=Augmentation(2), generate_every=20, per_round=64,
    )  # fmt: skip
    assert result.evaluations[-1][1] > max(0.5, before + 0.3)
    assert accuracy(student.eval()) == before
