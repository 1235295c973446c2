"""Zero-shot knowledge distillation: a student learns from impressions of its teacher alone (Nayak 2021, 4.1)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from exml_fast import ops
from exml_fast.checks import is_number
from exml_fast.data import Augmentation, InputSpec, Split
from exml_fast.engine.freezing import frozen
from exml_fast.engine.substitution import twin
from exml_fast.inversion import Result
from exml_fast.progress import Progress
from exml_fast.training import Rounded, blended
from exml_fast.transfer.robustness import Attack, ramped
from exml_fast.transfer.training import Training, accuracy, network_input, train

__all__ = ["IMPRESSION_AUGMENTATION", "distillation_loss", "transfer_set_sweep", "zskd"]

TEMPERATURE = 20.0
# "scaling, translation, rotation, flipping etc." (Nayak 2021, 4.1.2), their ranges ours; digits are not flipped.
IMPRESSION_AUGMENTATION = Augmentation(shift=3, rotation=15.0, scale=0.15)


def distillation_loss(student: Tensor, teacher: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """τ² · KL(softmax(teacher/τ) ‖ softmax(student/τ)), mean over the rows of logits (N, K) (Nayak 2021, Eq. 4).

    The factor keeps the gradient's size as τ grows (Hinton 2015). ``teacher`` is a constant.
    """
    log_target = (teacher.detach() / temperature).log_softmax(1)
    target = log_target.exp()
    entropy = -(target * log_target).sum(1).mean()
    return temperature**2 * (ops.soft_cross_entropy(student, target, temperature) - entropy)


@dataclass(frozen=True)
class Distilled:
    """A student, in evaluation mode, and its loss at every step (steps,) float64."""

    student: nn.Module
    history: Tensor


def zskd(
    teacher: nn.Module,
    student: nn.Module,
    impressions: Result | Tensor,
    spec: InputSpec | None = None,
    *,
    config: Training | None = None,
    temperature: float = TEMPERATURE,
    mixup: float = 0.0,
    attack: Attack | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Distilled:
    """Train ``student`` to answer as ``teacher`` does on impressions (Nayak 2021, Eq. 4).

    Teacher and student see the same augmented images, but for ``attack``. Real images instead of impressions give
    ordinary distillation (Student-KD in the paper's tables).

    Args:
        teacher: returns logits (N, K); left as it was.
        student: the same, changed in place; on its own device, to which the teacher is taken.
        impressions: what :func:`exml_fast.invert` gives, or network input (N, C, H, W).
        spec: of the network input; the impressions' own when None.
        config: how to train; by default 5000 steps with :data:`IMPRESSION_AUGMENTATION`.
        temperature: τ of the loss.
        mixup: ours: a of the shares Beta(a, a) with which each augmented image is blended with another before both see
            it; 0 for none.
        attack: ours, for a student that is to be robust as its teacher is (after adversarially robust distillation,
            Goldblum 2020, which has labels and clean images beside): the student sees each image moved within the
            attack's bound, from a random start, to where its answer is farthest (as a cross-entropy) from the
            teacher's for the image as it was, and learns that answer there. The bound grows over the first 30 % of
            the steps. None shows both the same image.

    Raises:
        ValueError: naming the argument: images of another shape than ``spec``, no specification, logits of another
            number, a temperature that is not positive, a negative ``mixup``.
    """
    if not is_number(mixup) or mixup < 0:
        raise ValueError(f"mixup must not be negative, got {mixup!r}")
    if not is_number(temperature) or not temperature > 0:
        raise ValueError(f"temperature must be a positive number, got {temperature!r}")
    if not isinstance(attack, Attack | None):
        raise ValueError(f"attack must be an Attack, got {attack!r}")
    if student is teacher:
        raise ValueError("student must be another network than the teacher, which is left as it was")
    config = config or Training(augmentation=IMPRESSION_AUGMENTATION)
    images, spec = network_input(impressions, spec)
    device = next(student.parameters()).device
    with frozen(teacher, device) as fixed, torch.no_grad():
        outputs = [len(fixed(images[:1].to(device))[0])]
        student.eval()
        outputs.append(len(student(images[:1].to(device))[0]))
    if outputs[0] != outputs[1]:
        raise ValueError(f"student must have the teacher's {outputs[0]} outputs, got {outputs[1]}")
    with frozen(teacher, device) as fixed:
        answers, shares = Rounded(twin(fixed), config.arithmetic), torch.Generator().manual_seed(seed)
        perturb = None if attack is None else ramped(attack, spec, config.steps, seed=seed)

        def loss(network: nn.Module, x: Tensor, _index: Tensor) -> Tensor:
            if mixup:
                x = blended(x, mixup, shares)
            with torch.no_grad():
                target = answers(x)
            if perturb is not None:
                x = perturb(network, x, target.softmax(1))
            return distillation_loss(network(x), target, temperature)

        history = train(student, images, loss, config, spec, seed=seed, progress=progress, stage="distill")
    return Distilled(student, history)


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
    progress: Progress | None = None,
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
    for name, images in sets.items():
        if too_many := [size for size in sizes if not 0 < size <= len(images)]:
            raise ValueError(f"sizes {too_many} are not between 1 and the {len(images)} images of {name!r}")
    found: dict[str, list[float]] = {name: [] for name in sets}
    for name, images in sets.items():
        for size in sizes:
            student = make_student(seed)
            zskd(teacher, student, images[:size], spec, config=config, seed=seed, progress=progress)
            found[name].append(accuracy(student, test, spec))
    return found
