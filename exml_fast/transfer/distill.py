"""Teach a student what a teacher knows, on images that exist or are made meanwhile (Yin 2020, 4.1 and A.1)."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from exml_fast.checkpoint import Checkpoint, fingerprint, load_state, random_state, set_random_state, state_of
from exml_fast.data import Augmentation, DataSource, ImageSource, InputSpec, Shards
from exml_fast.data.foreign import network_statistics
from exml_fast.engine.freezing import chosen_device, distinct_units, frozen, probe, unpacked
from exml_fast.engine.memory import require_memory
from exml_fast.generators import Fast, FastSynthesis
from exml_fast.inversion import Recipe, Result, Synthesizer, recipes
from exml_fast.inversion.invert import class_ids
from exml_fast.profiling import Meter
from exml_fast.progress import Progress, ProgressOption, callback_of, reports_progress, show_images
from exml_fast.ranks import Ranks
from exml_fast.storage import PathLike
from exml_fast.training import (
    Answers,
    Batch,
    FeatureDistance,
    Loop,
    Training,
    TrainingResult,
    arranged,
    mixed_cross_entropy,
    network_input,
    softened_kl,
)
from exml_fast.training.loop import forked, seeded
from exml_fast.training.precision import resolved
from exml_fast.transfer.makers import Adapted, Drawn, Inverted, Maker
from exml_fast.transfer.pool import Generation, Pool, require_room
from exml_fast.transfer.shard_batches import ShardBatches
from exml_fast.validation import Flat, NonNegative, Positive, require_count, settings, to_dict, with_flat_changes

__all__ = ["DistillResult", "Distillation", "distill"]

CHECKPOINT_FILE = "distill.pt"
# Yin 2020, A.1 (CIFAR-10): 250 epochs of 195 steps, learning rate 0.1, a tenth of it each 100. Momentum, weight decay
# and augmentation are the usual ones for CIFAR-10; the paper gives none.
TRAINING = Training(
    steps=48750, batch_size=256, optimizer="sgd", lr=0.1, momentum=0.9, weight_decay=1e-4, schedule="step", decay=0.1,
    decay_every=19500, augmentation=Augmentation(shift=4, flip=0.5),
)  # fmt: skip


@settings
class Distillation:
    """Settings of :func:`distill`.

    Attributes:
        training: of the student.
        generation: rounds of new images, and the pool.
        temperature: τ of the divergence (Eq. 1); 3 is that of sec. 4.4.
        lambda_ce: weight of a cross-entropy with the images' labels; the paper has none.
        lambda_features: weight of the distance of the layers that teacher and student share
            (:class:`exml_fast.training.FeatureDistance`); the paper has none.
    """

    training: Flat[Training] = TRAINING
    generation: Flat[Generation] = field(default_factory=Generation)
    temperature: Positive = 3.0
    lambda_ce: NonNegative = 0.0
    lambda_features: NonNegative = 0.0

    def replace(self, **changes: Any) -> Distillation:
        """A copy with some fields changed; those of ``training`` and ``generation`` are named directly.

        ValueError naming a field that does not exist.
        """
        return with_flat_changes(self, changes)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; ``Distillation(**value)`` is the inverse."""
        return to_dict(self)


@dataclass(repr=False)
class DistillResult(TrainingResult):
    """What :func:`distill` returns: ``history`` of "loss", "kl", "ce", "agreement"; ``seconds`` "generate", "learn".

    "agreement" is the share of images for which student and teacher name the same class. "features" is in ``history``
    where ``lambda_features`` is positive.
    """

    images: Tensor
    """(N, C, H, W) float32, CPU: the pool at the end, normalised; of Shards the first 256 images."""
    labels: Tensor
    """(N,) int64 class ids."""
    spec: InputSpec
    rounds: list[dict[str, float]]
    """One entry a round of new images: "step", "images", "seconds", and the share of (at most 1024 of) the new images
    that the student, as it then was, assigns to their class ("student"; Yin 2020, Fig. 4 left). With a recipe also
    "recipe" (index of the recipe used) and the teacher's share ("teacher"). A source's images are of the class that
    the teacher names."""
    evaluations: list[tuple[int, Any]]
    """Step and what ``evaluate`` returned."""


@reports_progress
def distill(
    teacher: Any,
    student: nn.Module,
    images: Result | Tensor | DataSource | ImageSource | Fast | Shards | None = None,
    *,
    recipe: str | Recipe | Sequence[str | Recipe] | None = None,
    config: Distillation | None = None,
    spec: Any = None,
    classes: Sequence[int] | None = None,
    units: Sequence[int] | None = None,
    statistics: str | Tensor | DataSource = "running",
    layers: Sequence[str] = (),
    seed: int = 0,
    device: torch.device | str | None = None,
    evaluate: Callable[[nn.Module], Any] | None = None,
    evaluate_every: int | None = None,
    progress: ProgressOption = None,
    checkpoint_dir: PathLike | None = None,
    pool_dir: PathLike | None = None,
    ranks: Ranks | None = None,
    **overrides: Any,
) -> DistillResult:
    """Teach a copy of ``student`` what ``teacher`` knows, on synthetic images alone.

    With ``recipe`` or a source of images, images are made while the student learns: every ``generate_every`` steps
    ``per_round`` new ones, from which the next step learns at once, and which join the pool of all earlier ones (Yin
    2020, A.1). With an adaptive recipe they compete with the student as it then is (sec. 3.3). The images of a source
    are drawn, not optimised: they fill the pool before the first step, and later ones replace some of them.

    Args:
        teacher: a classifier that returns logits (N, K), or an object with one as ``.model`` (an Expert).
        student: a classifier of the same input with K logits.
        images: to learn from, a Result, or normalised images (N, C, H, W), a data set or a DataLoader
            (:func:`exml_fast.data.network_images`) that the teacher labels; with ``recipe`` the
            first of the pool. Or :class:`exml_fast.data.Shards`, which stay on disk and are read a few at a time, each
            image once an epoch. Or an :class:`exml_fast.data.ImageSource`, from which all images are drawn; or
            :class:`exml_fast.generators.Fast`, with which a meta-generator makes all images (Fang 2022).
        recipe: of the images that are made, a name or a Recipe; of several each round takes one, all equally probable
            (App. D mixes multi-resolution and full resolution so).
        config: how the student is taught; :class:`Distillation`'s defaults when None. ``overrides`` are fields of it,
            as ``steps=2000``.
        spec: the input; read from the teacher or the Result when None.
        classes: ids of the classes to make images of; all that the teacher knows when None.
        units, statistics, layers: as :class:`exml_fast.inversion.Synthesizer`.
        seed: decides everything random.
        device: where to run; where the teacher is when None.
        evaluate: called with the student in evaluation mode every ``evaluate_every`` steps, and at the end. Its random
            draws, and those of ``progress``, change nothing.
        progress: ``progress("learn", step, steps, terms)`` every block of steps, ``progress("invert", ...)`` between.
        checkpoint_dir: a folder where the state is saved once a minute and on Ctrl-C (which is raised on). A call with
            the same arguments continues from there and ends with the same bits; the file is removed at the end.
        pool_dir: a folder that holds the pool in a file, mapped into memory. Use it if the pool is larger than memory;
            results do not change. The file stays: the returned images are in it.
        ranks: processes of torch.distributed that train one student together (``Ranks.current()``); all make this call
            with the same arguments. Each learns from its share of every batch, and gradients are averaged. Rank 0
            writes checkpoints, in a folder that all ranks can read, evaluates and reports.

    Raises:
        ValueError: naming the argument, before any step: neither images nor a recipe, a recipe beside a source, images
            or a student that do not fit the teacher, an unknown setting, a checkpoint of another run.
        RuntimeError: if the loss is not finite.
    """
    progress = callback_of(progress)
    config = (config or Distillation()).replace(**overrides)
    training = config.training
    if evaluate_every is not None:
        require_count("evaluate_every", evaluate_every)
    if spec is None:
        spec = images.spec if isinstance(images, Result | Shards) else teacher
    spec = InputSpec.of(spec)
    statistics = network_statistics(statistics, spec)
    asked = classes  # an Expert's own classes restrict no images that exist
    teacher, units, classes = unpacked(teacher, units, classes)
    for name, network in (("teacher", teacher), ("student", student)):
        if not isinstance(network, nn.Module):
            raise ValueError(f"{name} must be a torch.nn.Module, got {type(network).__name__}")
    _check_source(images, recipe, asked)
    source = images if isinstance(images, ImageSource) else None
    generation = config.generation.resolved(training.batch_size, cheap=source is not None)
    device = chosen_device(device, teacher)
    ranks = ranks or Ranks()
    if training.batch_size % ranks.count:
        raise ValueError(f"batch_size must be a multiple of the {ranks.count} ranks, got {training.batch_size}")
    progress = progress if ranks.first else None
    if pool_dir is not None and ranks.count > 1:
        pool_dir = Path(pool_dir) / f"rank_{ranks.rank}"

    with seeded(seed, device), Meter(device) as meter:
        precision = resolved(training.precision, device)
        fixed = arranged(copy.deepcopy(teacher).to(device).eval().requires_grad_(False), precision)
        taught = copy.deepcopy(student).to(device)
        outputs = _matching_outputs(fixed, taught, spec, training.batch_size, device)
        units = distinct_units(units, outputs)
        answers = Answers(fixed, spec, training)
        loss = _Loss(config, answers)
        loop = Loop(taught, loss, training, stage="learn", progress=progress, ranks=ranks)
        if config.lambda_features:
            loss.features = FeatureDistance(fixed, loop.network.model, precision)
        given = None
        if source is None and images is not None and not isinstance(images, Fast | Shards):
            given = _labelled(images, fixed, units, spec, device)
        maker: Maker | None = None
        options: dict[str, Any] = {
            "units": units, "device": device, "precision": generation.engine_precision, "statistics": statistics,
            "layers": layers,
        }  # fmt: skip
        if source is not None:
            maker = Drawn(source, spec, answers, units, device)
        elif isinstance(images, Fast):
            batch_size = min(images.batch_size, generation.per_round or images.batch_size)
            chosen = None if classes is None else class_ids(classes)
            fast = images.replace(batch_size=batch_size)
            synthesis = FastSynthesis(fixed, spec, fast, classes=chosen, seed=seed, **options)
            maker = Adapted(synthesis, loop.model)
        elif recipe is not None:
            synthesizers = [Synthesizer(fixed, spec, each, **options) for each in _sized(recipe, generation)]
            wanted = class_ids(units if classes is None else classes)
            inverting = None if progress is None else _Undisturbed(progress, device)
            spread = ranks if generation.shared_statistics else None
            maker = Inverted(synthesizers, wanted, units, loop.model, inverting, spread)
        drawn = torch.Generator().manual_seed(seed)
        pool: Pool | ShardBatches
        if isinstance(images, Shards):
            pool = ShardBatches(training, spec, device, drawn, images, units, seed, ranks)
        else:
            pool = Pool(training, generation, spec, units, device, drawn, loop.model, maker, pool_dir, ranks)
            count, cheap = 0 if given is None else len(given[1]), maker is not None and maker.cheap
            require_room(training, generation, spec, count, maker is not None, pool_dir, cheap=cheap)
        checkpoint = Checkpoint(None, "")
        if checkpoint_dir is not None:
            identity = _identity(fixed, taught, given, pool, spec, config, seed)
            checkpoint = Checkpoint(Path(checkpoint_dir) / CHECKPOINT_FILE, identity)
        evaluations: list[tuple[int, Any]] = []
        parts: dict[str, Any] = {"loop": loop, "pool": pool}
        state = checkpoint.load()
        ranks.wait()  # rank 0 may write a new one
        if not ranks.first:
            checkpoint = Checkpoint(None, "")
        if given is not None and isinstance(pool, Pool) and (state is None or maker is None):
            pool.add(*given)
        if state is not None:
            load_state(parts, state["parts"])
            set_random_state(state["random"], device)
            evaluations += [tuple(entry) for entry in state["evaluations"]]
        if isinstance(pool, Pool):
            pool.checkpoint_dir = checkpoint_dir
            if maker is None:
                answers.remember(pool.buffer.images)

        def look() -> None:
            done = loop.step == training.steps or bool(evaluate_every and loop.step and loop.step % evaluate_every == 0)
            if evaluate is not None and done and (not evaluations or evaluations[-1][0] != loop.step):
                with forked(device):
                    evaluations.append((loop.step, evaluate(loop.current()) if ranks.first else None))
            checkpoint.keep(
                lambda: dict(parts=state_of(parts), random=random_state(device), evaluations=list(evaluations))
            )

        with checkpoint, ranks.alive(), loss.features or contextlib.nullcontext():
            loop.run(pool, between=look, every=evaluate_every)
            look()
        ranks.take_first(loop.model.buffers())
        checkpoint.remove()
    seconds = {"generate": pool.seconds, "learn": loop.seconds}
    return DistillResult(
        loop.finished(), loop.history, seconds, meter.peak_mb, *pool.kept(), spec, pool.record, evaluations
    )


class _Loss:
    """KL(teacher ‖ student) of softened outputs (Yin 2020, Eq. 1), and the other terms that have a weight."""

    def __init__(self, config: Distillation, answers: Answers) -> None:
        self.config, self.answers = config, answers
        self.features: FeatureDistance | None = None

    def __call__(self, network: nn.Module, batch: Batch) -> dict[str, Tensor]:
        config, features = self.config, self.features
        wanted = self.answers.of(batch) if features is None else features.answers(batch.images)
        logits = network(batch.images)
        kl, ce = softened_kl(wanted, logits, config.temperature), logits.new_zeros(())
        if config.lambda_ce and batch.labels is not None:
            ce = mixed_cross_entropy(logits, batch.labels, batch.share, batch.others)
        agreement = (logits.argmax(1) == wanted.argmax(1)).to(kl.dtype).mean()
        terms = {"loss": kl + config.lambda_ce * ce, "kl": kl, "ce": ce, "agreement": agreement}
        if features is not None:
            terms["features"] = features()
            terms["loss"] = terms["loss"] + config.lambda_features * terms["features"]
        return terms


class _Undisturbed:
    """A progress callback whose random draws change nothing."""

    def __init__(self, then: Progress, device: torch.device) -> None:
        self._then, self._device = then, device

    def __call__(self, stage: str, step: int, total: int, terms: dict[str, float]) -> None:
        with forked(self._device):
            self._then(stage, step, total, terms)

    def images(self, stage: str, step: int, total: int, make: Callable[[], Tensor]) -> None:
        with forked(self._device):
            show_images(self._then, stage, step, total, make)


def _matching_outputs(
    teacher: nn.Module, student: nn.Module, spec: InputSpec, batch_size: int, device: torch.device
) -> int:
    """Number of logits of both; ValueError if they differ, or if a batch has no room in memory."""
    outputs = []
    for network, batch in ((teacher, 2), (student, batch_size)):
        require_memory(network, spec, batch, device)
        with frozen(network), torch.no_grad():
            outputs.append(probe(network, torch.zeros(2, *spec.shape, device=device), spec).shape[1])
    if outputs[0] != outputs[1]:
        raise ValueError(f"student must give the teacher's {outputs[0]} logits, it gives {outputs[1]}")
    return int(outputs[0])


def _labelled(
    given: Any, teacher: nn.Module, units: Sequence[int], spec: InputSpec, device: torch.device
) -> tuple[Tensor, Tensor]:
    """The images that were given, and their class ids: a Result's, or what the teacher says."""
    images, _ = network_input(given, spec)
    labels = given.labels if isinstance(given, Result) else None
    if labels is None:
        with torch.no_grad():
            named = [teacher(part.to(device)).argmax(1).cpu() for part in images.split(512)]
        labels = torch.tensor(units)[torch.cat(named)]
    if missing := sorted(set(labels.tolist()) - set(units)):
        raise ValueError(f"images: classes {missing[:8]} are not among the teacher's")
    return images.cpu(), labels.cpu()


def _check_source(images: Any, recipe: Any, classes: Any) -> None:
    """ValueError if there is nothing to learn from, or if something else already decides it."""
    if images is None and recipe is None:
        raise ValueError("images, a recipe, or both must be given: there is nothing to learn from")
    kind = f"images of {type(images).__name__}"
    if recipe is not None and isinstance(images, ImageSource | Fast | Shards):
        raise ValueError(f"recipe must be None with {kind}, got {recipe!r}")
    if classes is not None and isinstance(images, ImageSource | Shards):
        raise ValueError(f"classes must be None with {kind}, got {classes!r}")


def _sized(recipe: str | Recipe | Sequence[str | Recipe], generation: Generation) -> list[Recipe]:
    """One or several recipes, with batches no larger than a round."""
    several = [recipe] if isinstance(recipe, str | Recipe) else list(recipe)
    if not several:
        raise ValueError("recipe must name at least one recipe, got none")
    assert generation.per_round is not None
    chosen = [recipes.get(each) for each in several]
    return [each.replace(batch_size=min(each.optimisation.batch_size, generation.per_round)) for each in chosen]


def _identity(
    teacher: nn.Module,
    student: nn.Module,
    given: tuple[Tensor, Tensor] | None,
    pool: Pool | ShardBatches,
    spec: InputSpec,
    config: Distillation,
    seed: int,
) -> str:
    of_pool, made = pool.identity()
    tensors = [
        *teacher.state_dict().values(),
        *student.state_dict().values(),
        *of_pool[:1],
        *(given or ()),
        *of_pool[1:],
    ]
    return fingerprint(tensors, [spec.to_dict(), config.to_dict(), made, seed])
