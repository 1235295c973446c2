"""The Self-distilled Knowledge Delegator: a generator and a student, trained without data (Ye 2022, Alg. 1)."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from exml_fast.checkpoint import Checkpoint, fingerprint, load_state, random_state, set_random_state, state_of
from exml_fast.data import InputSpec
from exml_fast.engine.freezing import chosen_device, distinct_units, frozen, probe, unpacked
from exml_fast.engine.memory import require_memory
from exml_fast.engine.statistics import require_module
from exml_fast.engine.substitution import copied
from exml_fast.generators.exploration import Exploration, Imitation, TaughtFeatures
from exml_fast.generators.generator import Generator, recalibrate
from exml_fast.generators.networks import LATENT_SIZE
from exml_fast.models import final_linear, redraw
from exml_fast.profiling import Meter
from exml_fast.progress import ProgressOption, callback_of, reports_progress
from exml_fast.storage import PathLike
from exml_fast.training import Loop, Training, TrainingResult, final_features
from exml_fast.training.loop import forked, seeded
from exml_fast.training.precision import arranged, resolved
from exml_fast.validation import (
    Count,
    Flat,
    NonNegative,
    Positive,
    require,
    require_count,
    settings,
    to_dict,
    with_flat_changes,
)

__all__ = ["Delegation", "Delegator", "ExplorationLoss", "GeneratorNetwork", "delegate"]

STAGE, CHECKPOINT_FILE = "delegate", "delegate.pt"
# Student steps of a block, at most; whole rounds, so that the history is of whole rounds.
BLOCK_STEPS = 48
# Batches of new latents that the running statistics of the generator are averaged over at the end.
RECALIBRATION_BATCHES = 20
# Ye 2022, IV.A: SGD at 0.1 for the student, a tenth of it each 100 epochs, batches of 256. The paper gives neither the
# epochs in all nor the rounds of an epoch: Fang 2019, whose generator it takes, has 50 rounds, momentum and decay.
TRAINING = Training(
    steps=15000, batch_size=256, optimizer="sgd", lr=0.1, momentum=0.9, weight_decay=5e-4, schedule="step", decay=0.1,
    decay_every=5000, precision="auto",
)  # fmt: skip


@settings
class ExplorationLoss:
    """Weights of the exploration's loss (Ye 2022, Eq. 8); 0 switches a loss off (Table II).

    Attributes:
        lambda_exp: λ of the exploration loss (Eq. 3); the paper has 20 for Flowers-102 and 1 elsewhere.
        category: of the cross-entropy with the teacher's own labels (Eq. 4).
        diversity: of the entropy of the batch (Eq. 6).
        features: of the distance to the teacher's BatchNorm statistics (Eq. 7). None is 1 for a teacher with BatchNorm
            and 0, with a warning, for another.
        moment: what σ of Eq. 7 is: "var" as the paper's text says ("running mean and variance"), or "std".
    """

    lambda_exp: NonNegative = 1.0
    category: NonNegative = 1.0
    diversity: NonNegative = 1.0
    features: NonNegative | None = None
    moment: Literal["var", "std"] = "var"


@settings
class GeneratorNetwork:
    """A new generator (:func:`exml_fast.generators.create`); a generator that is given keeps its own.

    Attributes:
        architecture: "upsampling" (Table IV), "deconvolution" (Table V), or a registered name.
        latent_size, width, helper_bn: arguments of the network.
    """

    architecture: str = "upsampling"
    latent_size: Count = LATENT_SIZE
    width: Count = 64
    helper_bn: bool = True


@settings
class Delegator:
    """Settings of :func:`delegate`. All lengths (``steps``, ``decay_every``, ``warmup``) are in rounds.

    Attributes:
        training: of the student. A step is a round: ``imitations`` steps of the student and one exploration. The
            schedule is the generator's too. Augmentation and mixup, which the paper does not have, change the images of
            the imitations, for teacher and student alike.
        loss: of the exploration.
        network: of a new generator.
        imitations: student steps before an exploration.
        generator_lr: learning rate of the generator's Adam.
    """

    training: Flat[Training] = TRAINING
    loss: Flat[ExplorationLoss] = field(default_factory=ExplorationLoss)
    network: Flat[GeneratorNetwork] = field(default_factory=GeneratorNetwork)
    imitations: Count = 5
    generator_lr: Positive = 1e-3

    @property
    def round_steps(self) -> int:
        """Student steps of a round: the imitations and the exploration."""
        return self.imitations + 1

    def student_training(self) -> Training:
        """``training`` with lengths in steps of the student."""
        lengths = {name: getattr(self.training, name) for name in ("steps", "decay_every", "warmup")}
        return self.training.replace(**{name: length * self.round_steps for name, length in lengths.items()})

    def generator_training(self) -> Training:
        """The generator's: Adam with the student's schedule."""
        return self.student_training().replace(optimizer="adam", lr=self.generator_lr, weight_decay=0.0)

    def replace(self, **changes: Any) -> Delegator:
        """A copy with some fields changed, those of the groups by their own names; ValueError naming an unknown one."""
        return with_flat_changes(self, changes)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; ``Delegator(**value)`` is the inverse."""
        return to_dict(self)


@dataclass(repr=False)
class Delegation(TrainingResult):
    """What :func:`delegate` returns: ``model`` is the student S, ``history`` has means over whole rounds.

    ``history``: "step" in rounds; "loss", the sum that is differentiated; "imitation" (Eq. 2); and of the explorations
    "explore" (Eq. 8), "category" (Eq. 4), "diversity" (Eq. 6) and "features" (Eq. 7), unweighted.
    """

    generator: Generator
    """In evaluation mode, with running statistics averaged over new latents."""
    evaluations: list[tuple[int, Any]]
    """Round and what ``evaluate`` returned."""


@reports_progress
def delegate(
    teacher: Any,
    student: nn.Module | None = None,
    *,
    generator: Generator | None = None,
    config: Delegator | None = None,
    spec: Any = None,
    units: Sequence[int] | None = None,
    seed: int = 0,
    device: torch.device | str | None = None,
    evaluate: Callable[[nn.Module], Any] | None = None,
    evaluate_every: int | None = None,
    progress: ProgressOption = None,
    checkpoint_dir: PathLike | None = None,
    **overrides: Any,
) -> Delegation:
    """Train a generator that holds what ``teacher`` knows, and a student beside it, without data (Ye 2022, Alg. 1).

    A round has five imitations, in which the student learns the direction of the teacher's features (Eq. 2), and one
    exploration, in which the generator moves its images to where the student fails (Eq. 8). In the exploration the
    student goes on imitating, from the same backward pass: the paper says that it "is kept updated throughout the whole
    imitate and explore phases" and that it mimics the teacher; line 13 of Alg. 1, read literally, would have it unlearn
    what it imitates.

    Args:
        teacher: a classifier with a final linear layer, or an object with one as ``.model`` (an Expert).
        student: a network with the same final linear layer; a copy of it learns. When None, the teacher's architecture
            with new weights. Its final layer gets the teacher's weights, which stay (IV.B).
        generator: of the task before, which a copy of starts from (Alg. 1, line 4); a new one when None.
        config: :class:`Delegator`'s defaults when None. ``overrides`` are fields of it, as ``steps=2000``.
        spec: the input; read from the teacher or the generator when None.
        units: ``units[j]`` is the class id of logit j; those of an Expert, or 0 to K − 1, when None.
        seed: decides everything random.
        device: where to run; where the teacher is when None.
        evaluate: called with the student in evaluation mode every ``evaluate_every`` rounds, and at the end. Its random
            draws, and those of ``progress``, change nothing.
        progress: ``progress("delegate", round, rounds, terms)`` after each block of rounds.
        checkpoint_dir: a folder where the state is saved once a minute and on Ctrl-C (which is raised on). A call with
            the same arguments continues from there and ends with the same bits; the file is removed at the end.

    Raises:
        ValueError: naming the argument, before any step: a teacher without a final linear layer, a student or a
            generator that does not fit the teacher, a weight ``features`` for a teacher without BatchNorm, an unknown
            setting, a checkpoint of another run.
        RuntimeError: if a loss is not finite.
    """
    progress = callback_of(progress)
    config = (config or Delegator()).replace(**overrides)
    if evaluate_every is not None:
        require_count("evaluate_every", evaluate_every)
    if generator is not None:
        require(isinstance(generator, Generator), "generator", "a Generator", type(generator).__name__)
    spec = InputSpec.of(generator.spec if spec is None and not _has_spec(teacher) and generator else spec or teacher)
    teacher, units, _ = unpacked(teacher, units)
    require_module(teacher)
    device = chosen_device(device, teacher)
    training, turns = config.student_training(), config.round_steps
    with seeded(seed, device), Meter(device) as meter:
        example = torch.zeros(2, *spec.shape, device=device)
        outputs = _outputs(teacher, spec, device)
        taught = _student(teacher, student, example, device)
        require_memory(taught, spec, training.batch_size, device)
        units = distinct_units(units, outputs)
        made = _generator(generator, config.network, spec, units, seed).to(device)
        precision = resolved(training.precision, device)
        knowledge = TaughtFeatures(teacher, spec, device, precision, training.batch_size)
        losses = Imitation(knowledge, config.loss, _feature_weight(config.loss, knowledge, teacher), turns)
        latents = torch.Generator().manual_seed(seed)
        network = arranged(made.network.train(), precision)
        source = Exploration(
            network, made.latent_size, training, config.generator_training(), turns, spec, latents, device, precision
        )

        def report(stage: str, step: int, steps: int, terms: dict[str, float]) -> None:
            if progress is not None:
                progress(stage, step // turns, steps // turns, terms)

        loop = Loop(taught, losses, training, stage=STAGE, progress=report)
        parts: dict[str, Any] = {"loop": loop, "generator": source, "teacher": knowledge}
        identity = [spec.to_dict(), config.to_dict(), seed]
        evaluations: list[tuple[int, Any]] = []
        checkpoint = Checkpoint(None, "")
        if checkpoint_dir is not None:
            networks = (teacher, taught, network)
            tensors = [tensor for each in networks for tensor in each.state_dict().values()]
            checkpoint = Checkpoint(Path(checkpoint_dir) / CHECKPOINT_FILE, fingerprint(tensors, identity))
        if (state := checkpoint.load()) is not None:
            load_state(parts, state["parts"])
            set_random_state(state["random"], device)
            evaluations += [tuple(entry) for entry in state["evaluations"]]

        def look() -> None:
            at, last = loop.step // turns, loop.step == training.steps
            due = last or bool(evaluate_every and at and at % evaluate_every == 0)
            if evaluate is not None and due and (not evaluations or evaluations[-1][0] != at):
                with forked(device):
                    evaluations.append((at, evaluate(loop.current())))
            checkpoint.keep(
                lambda: dict(parts=state_of(parts), random=random_state(device), evaluations=list(evaluations))
            )

        every = None if evaluate_every is None else evaluate_every * turns
        with checkpoint, final_features(loop.network.model, example) as losses.student_features:
            loop.run(source, between=look, every=every, block_steps=turns * max(1, BLOCK_STEPS // turns))
            look()
        recalibrate(network, made.latent_size, latents, RECALIBRATION_BATCHES, training.batch_size)
        checkpoint.remove()
    history = loop.history | {"step": [step // turns for step in loop.history["step"]]}
    last = {name: values[-1] for name, values in history.items() if name != "step"}
    note = {"method": "self-distilled knowledge delegator", "settings": config.to_dict(), "seed": seed, "losses": last}
    model = loop.finished().requires_grad_(True)
    return Delegation(
        model, history, {STAGE: loop.seconds}, meter.peak_mb, made.noted(network, units, note), evaluations
    )


def _has_spec(teacher: Any) -> bool:
    try:
        InputSpec.of(teacher)
    except ValueError:
        return False
    return True


def _outputs(teacher: nn.Module, spec: InputSpec, device: torch.device) -> int:
    """Number of the teacher's logits; ValueError unless it takes the images."""
    with frozen(teacher, device), torch.no_grad():
        return int(probe(teacher, torch.zeros(2, *spec.shape, device=device), spec).shape[1])


def _student(teacher: nn.Module, student: nn.Module | None, example: torch.Tensor, device: torch.device) -> nn.Module:
    """A copy of the student on ``device`` with the teacher's final layer, which needs no gradient."""
    if student is not None:
        require(isinstance(student, nn.Module), "student", "a torch.nn.Module", type(student).__name__)
    given = teacher if student is None else student
    taught = copied(given)
    if taught is given:
        raise ValueError(f"{type(given).__name__} cannot be copied, so it would be changed in place")
    taught = taught.to(device).requires_grad_(True)
    if student is None:
        redraw(taught, "student must be given: ")
    source = copied(teacher).to(device)
    old, new = final_linear(source, example), final_linear(taught, example)
    for name in ("in_features", "out_features"):
        if getattr(old, name) != getattr(new, name):
            raise ValueError(
                f"student must have the teacher's final linear layer, {old.in_features} to {old.out_features}, "
                f"got {new.in_features} to {new.out_features}"
            )
    if (old.bias is None) != (new.bias is None):
        raise ValueError("student must have the teacher's final linear layer, but one of both has no bias")
    new.load_state_dict(old.state_dict())
    new.requires_grad_(False)
    return taught


def _generator(
    generator: Generator | None, network: GeneratorNetwork, spec: InputSpec, units: tuple[int, ...], seed: int
) -> Generator:
    """A copy of the generator that is given, or a new one; ValueError unless it fits the teacher."""
    if generator is None:
        made = to_dict(network)
        return Generator.create(made.pop("architecture"), spec, classes=units, seed=seed, **made)
    require(generator.spec == spec, "generator", f"a generator of images of {spec}", generator.spec)
    if unknown := sorted(set(generator.classes) - set(units)):
        raise ValueError(
            f"generator holds the knowledge of {len(generator.classes)} classes, of which the teacher lacks "
            f"{unknown[:8]}: the teacher has {len(units)} classes"
        )
    return generator


def _feature_weight(loss: ExplorationLoss, knowledge: TaughtFeatures, teacher: nn.Module) -> float:
    if knowledge.matches_statistics:
        return 1.0 if loss.features is None else loss.features
    name = type(teacher).__name__
    if loss.features:
        raise ValueError(
            f"features must be 0 for a teacher without BatchNorm, got {loss.features}: {name} keeps no statistics that "
            "images could match (Eq. 7)"
        )
    if loss.features is None:
        warnings.warn(
            f"{name} has no BatchNorm, so the generator is trained without the feature term (Ye 2022, Eq. 7), which "
            "matters most on large images; features=0 silences this warning",
            stacklevel=3,
        )
    return 0.0
