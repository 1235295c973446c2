"""Zero-shot knowledge distillation: a student learns from impressions of its teacher alone (Nayak 2021, 4.1)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from exml_fast.data import Augmentation, DataSource, ImageSource, InputSpec, Split
from exml_fast.engine.freezing import device_of, frozen, unpacked
from exml_fast.engine.substitution import copied
from exml_fast.evaluation import accuracy
from exml_fast.inversion import Result
from exml_fast.progress import ProgressOption, callback_of, reports_progress
from exml_fast.storage import PathLike
from exml_fast.training import (
    Answers,
    Batch,
    Training,
    TrainingResult,
    network_input,
    softened_kl,
    train,
    unlabelled_batches,
)
from exml_fast.transfer.robustness import Attack, RampedAttack
from exml_fast.validation import require

__all__ = ["ZSKD", "transfer_set_sweep", "zskd"]

TEMPERATURE = 20.0
# "scaling, translation, rotation, flipping etc." (Nayak 2021, 4.1.2), their ranges ours; digits are not flipped.
# The papers give no optimiser but Adam at 0.001 (published code of Nayak 2021).
ZSKD = Training(augmentation=Augmentation(shift=3, rotation=15.0, scale=0.15))


@reports_progress
def zskd(
    teacher: Any,
    student: nn.Module,
    images: Result | Tensor | DataSource | ImageSource,
    *,
    spec: InputSpec | None = None,
    config: Training = ZSKD,
    temperature: float = TEMPERATURE,
    attack: Attack | None = None,
    seed: int = 0,
    progress: ProgressOption = None,
    checkpoint_dir: PathLike | None = None,
) -> TrainingResult:
    """Train a copy of ``student`` to answer as ``teacher`` does on impressions (Nayak 2021, Eq. 4).

    Teacher and student see the same augmented images, but for ``attack``. Real images instead of impressions give
    ordinary distillation (Student-KD in the paper's tables).

    Args:
        teacher: a network that returns logits (N, K), or an object with one as ``.model`` (an Expert).
        student: the same; its device is where everything runs.
        images: impressions, as :func:`exml_fast.invert` gives them, network input (N, C, H, W) or a
            data set; or an
            :class:`exml_fast.data.ImageSource`, which draws the images of every step anew.
        spec: of the network input; the impressions' own when None. A source needs it.
        config: how to train. With ``mixup`` or ``cutmix``, which are ours, teacher and student see mixtures.
        temperature: τ of the loss.
        attack: ours, for a student that is to be as robust as its teacher (after adversarially robust distillation,
            Goldblum 2020, which also has labels and clean images). The student sees each image moved within the
            attack's bound, from a random start, to where its answer is farthest (as a cross-entropy) from the
            teacher's for the image as it was, and learns that answer there. The bound grows over the first 30 % of
            the steps. Without an attack both see the same image.
        seed, progress, checkpoint_dir: as :func:`exml_fast.training.train`.

    Raises:
        ValueError: naming the argument: images of another shape than ``spec``, no specification, different numbers of
            logits, a temperature that is not positive.
    """
    progress = callback_of(progress)
    number = isinstance(temperature, int | float) and 0 < temperature < math.inf
    require(number, "temperature", "a positive number", temperature)
    require(isinstance(attack, Attack | None), "attack", "an Attack", attack)
    teacher, _, _ = unpacked(teacher)
    source = images if isinstance(images, ImageSource) else None
    if isinstance(images, ImageSource):
        require(spec is not None, "spec", "given where images are drawn", spec)
        images = images.draw(1, cast(InputSpec, spec), torch.Generator().manual_seed(seed))  # shows what it draws
    images, spec = network_input(images, spec)
    device, generator = device_of(student), torch.Generator().manual_seed(seed)
    student = copied(student)  # it may share parameters with the teacher, which is frozen below
    with frozen(teacher, device) as fixed:
        outputs = [_outputs(network, images[:1].to(device)) for network in (fixed, student)]
        require(outputs[0] == outputs[1], "student", f"a network of the teacher's {outputs[0]} outputs", outputs[1])
        answers = Answers(fixed, spec, config)
        perturb = None if attack is None else RampedAttack(attack, spec, config.steps, seed=seed)

        def loss(network: nn.Module, batch: Batch) -> Tensor:
            x = batch.images
            target = answers.of(batch)
            if perturb is not None:
                x = perturb(network, x, target.softmax(1))
            return softened_kl(target, network(x), temperature)

        if source is None:
            answers.remember(images)
        batches = unlabelled_batches(images if source is None else source, config, spec, generator, device)
        return train(
            student, batches, loss, config, parts={} if perturb is None else {"attack": perturb},
            identity=(
                images, *fixed.state_dict().values(), temperature, repr(attack), spec.to_dict(),
                None if source is None else source.describe(),
            ),
            seed=seed, stage="zskd", progress=progress, checkpoint_dir=checkpoint_dir,
        )  # fmt: skip


def _outputs(network: nn.Module, image: Tensor) -> int:
    with frozen(network) as fixed, torch.no_grad():
        return len(fixed(image)[0])


@reports_progress
def transfer_set_sweep(
    teacher: nn.Module,
    make_student: Callable[[int], nn.Module],
    sets: Mapping[str, Tensor],
    sizes: Sequence[int],
    test: Split,
    spec: InputSpec,
    *,
    config: Training,
    seed: int = 0,
    progress: ProgressOption = None,
) -> dict[str, list[float]]:
    """Test accuracy of students by the size of their transfer set (Nayak 2021, Figs. 3 and 4).

    Args:
        make_student: a fresh student from a seed.
        sets: network inputs (N, C, H, W) by name, as impressions of two kinds and real images. A size takes the first
            images, which :func:`exml_fast.invert` orders so that classes stay balanced.
        sizes: numbers of images; one above a set's own number is an error.
        config: the same number of steps for every size. The paper shows these figures without augmentation.

    Returns:
        Accuracy of each set, one number a size.
    """
    progress = callback_of(progress)
    for name, images in sets.items():
        if too_many := [size for size in sizes if not 0 < size <= len(images)]:
            raise ValueError(f"sizes {too_many} are not between 1 and the {len(images)} images of {name!r}")
    found: dict[str, list[float]] = {name: [] for name in sets}
    for name, images in sets.items():
        for size in sizes:
            result = zskd(
                teacher, make_student(seed), images[:size], spec=spec, config=config, seed=seed, progress=progress
            )
            found[name].append(accuracy(result.model, test, spec))
    return found
