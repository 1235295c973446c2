"""The loop: a student learns from a teacher on images that are there, or made meanwhile (Yin 2020, 4.1 and A.1)."""

from __future__ import annotations

import copy
import hashlib
import math
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from exml_fast import ops
from exml_fast.continual import ImageBuffer
from exml_fast.data import InputSpec
from exml_fast.distillation.config import TransferConfig
from exml_fast.distillation.loss import divergence
from exml_fast.engine.freezing import device_of, frozen, probe
from exml_fast.engine.memory import available_bytes, require_memory
from exml_fast.inversion import Recipe, Result, Synthesizer, recipes
from exml_fast.inversion.invert import class_ids
from exml_fast.progress import Progress
from exml_fast.storage import PathLike, load_checkpoint, save_checkpoint
from exml_fast.training import arranged, forward, mixup

__all__ = ["Transfer", "check_pool", "distill"]

CHECKPOINT_FILE = "transfer.pt"
CHECKPOINT_SECONDS = 60.0
BLOCK_STEPS = 50
UNBOUNDED = 2**62


@dataclass
class Transfer:
    """What :func:`distill` returns."""

    student: nn.Module
    """Taught; in evaluation mode."""
    images: Tensor
    """(N, C, H, W) float32, CPU: the pool at the end, normalised."""
    labels: Tensor
    """(N,) int64 class ids."""
    spec: InputSpec
    history: dict[str, list[float]]
    """"step", "loss", "kl", "ce" and "agreement" (share of images on which student and teacher name the same class),
    means over blocks of at most 50 steps."""
    rounds: list[dict[str, float]]
    """One entry a round of generation: "step", "images", "recipe" (the place of the one taken), "seconds", and the
    share of the new images that are of their class for the teacher and for the student as it then was ("teacher",
    "student"; Yin 2020, Fig. 4 left)."""
    evaluations: list[tuple[int, Any]]
    """Step and what ``evaluate`` returned."""
    seconds: dict[str, float]
    """"generate" and "learn"."""


def distill(
    teacher: Any,
    student: nn.Module,
    images: Result | Tensor | None = None,
    *,
    recipe: str | Recipe | Sequence[str | Recipe] | None = None,
    config: TransferConfig | None = None,
    spec: Any = None,
    classes: Sequence[int] | None = None,
    units: Sequence[int] | None = None,
    statistics: str | Tensor = "running",
    layers: Sequence[str] = (),
    seed: int = 0,
    device: torch.device | str | None = None,
    precision: str = "auto",
    evaluate: Callable[[nn.Module], Any] | None = None,
    evaluate_every: int | None = None,
    progress: Progress | None = None,
    checkpoint_dir: PathLike | None = None,
    pool_dir: PathLike | None = None,
    **overrides: Any,
) -> Transfer:
    """Teach ``student`` what ``teacher`` knows, on synthetic images alone.

    With ``recipe``, images are made as the student learns: every ``generate_every`` steps ``per_round`` new ones, from
    which the next step learns at once, and which join the pool of all earlier ones (Yin 2020, A.1). With an adaptive
    recipe they compete with the student as it then is (sec. 3.3).

    Args:
        teacher: a classifier that returns logits (N, K), or anything that holds one as ``.model`` (an Expert).
        student: any classifier of the same input with K logits. It is copied; the caller's stays as it is.
        images: to learn from, a Result or normalised images (N, C, H, W) that the teacher labels; with ``recipe`` the
            first of the pool.
        recipe: of the images that are made, a name or a Recipe; of several each round takes one, all equally probable
            (App. D mixes multi-resolution and full resolution so).
        config: settings; ``overrides`` are fields of it, as ``steps=2000``.
        spec: the input; read from the teacher or the Result when None.
        classes: ids of the classes to make images of; all that the teacher knows when None.
        units, statistics, layers, precision: as :class:`exml_fast.inversion.Synthesizer`.
        seed: decides everything random.
        device: where to run; where the teacher is when None.
        evaluate: called with the student in evaluation mode every ``evaluate_every`` steps, and at the end.
        progress: ``progress("learn", step, steps, terms)`` every block of steps, ``progress("invert", ...)`` between.
        checkpoint_dir: a folder where the state is saved every minute and on Ctrl-C (which is raised on). A call with
            the same arguments goes on from there and ends bit for bit as if never stopped; it goes at the end.
        pool_dir: a folder that holds the pool in a file, mapped into memory, where memory has no room for it; results
            do not change. The file stays: the returned images are in it.

    Raises:
        ValueError: naming the argument, before any step: neither images nor a recipe, images or a student that do not
            fit the teacher, an unknown setting, a checkpoint of another run.
        RuntimeError: if the loss is not finite.
    """
    config = (config or TransferConfig()).replace(**overrides)
    if evaluate_every is not None and evaluate_every < 1:
        raise ValueError(f"evaluate_every must be None or at least 1, got {evaluate_every}")
    if spec is None:
        spec = images.spec if isinstance(images, Result) else teacher
    if not isinstance(teacher, nn.Module) and isinstance(getattr(teacher, "model", None), nn.Module):
        units = getattr(teacher, "units", None) if units is None else units
        classes = getattr(teacher, "classes", None) if classes is None else classes
        teacher = teacher.model
    for name, network in (("teacher", teacher), ("student", student)):
        if not isinstance(network, nn.Module):
            raise ValueError(f"{name} must be a torch.nn.Module, got {type(network).__name__}")
    if images is None and recipe is None:
        raise ValueError("images, a recipe, or both must be given: there is nothing to learn from")
    where = device_of(teacher) if device is None else torch.device(device)
    with torch.random.fork_rng(devices=[where] if where.type == "cuda" else []):
        torch.manual_seed(seed)
        run = _Run(teacher, student, InputSpec.of(spec), config, where, seed, units, pool_dir)
        run.take(images)
        if recipe is not None:
            several = [recipe] if isinstance(recipe, str | Recipe) else list(recipe)
            if not several:
                raise ValueError("recipe must name at least one recipe, got none")
            run.synthesizers = [
                Synthesizer(
                    run.teacher, run.spec, _sized(each, config), units=run.units, device=where, precision=precision,
                    statistics=statistics, layers=layers,
                )
                for each in several
            ]  # fmt: skip
            run.classes = torch.tensor(class_ids(run.units if classes is None else classes))
            run.check_classes()
        given = 0 if run.given is None else len(run.given[1])
        check_pool(config, run.spec, given, recipe is not None, pool_dir)
        run.begin(checkpoint_dir)
        return run.finish(evaluate, evaluate_every, progress)


class _Run:
    """The state of one transfer; it can be saved between any two blocks of steps."""

    def __init__(
        self,
        teacher: nn.Module,
        student: nn.Module,
        spec: InputSpec,
        config: TransferConfig,
        device: torch.device,
        seed: int,
        units: Sequence[int] | None,
        pool_dir: PathLike | None,
    ) -> None:
        self.spec, self.config, self.device, self.seed = spec, config, device, seed
        self.teacher = arranged(copy.deepcopy(teacher).to(device).eval().requires_grad_(False), config.arithmetic)
        self.student = arranged(copy.deepcopy(student).to(device), config.arithmetic)
        outputs = []
        for network in (self.teacher, self.student):
            require_memory(network, spec, config.batch_size if network is self.student else 2, device)
            with frozen(network), torch.no_grad():
                outputs.append(probe(network, torch.zeros(2, *spec.shape, device=device), spec).shape[1])
        if outputs[0] != outputs[1]:
            raise ValueError(f"student must give the teacher's {outputs[0]} logits, it gives {outputs[1]}")
        self.units = tuple(range(outputs[0])) if units is None else tuple(int(u) for u in units)
        if len(set(self.units)) != outputs[0] or len(self.units) != outputs[0]:
            raise ValueError(f"units must be {outputs[0]} distinct class ids, one a logit, got {self.units}")
        self.optimizer = self._new_optimizer()
        self.pool_dir = None if pool_dir is None else Path(pool_dir)
        self.pool = ImageBuffer(config.pool_size or UNBOUNDED, self.pool_dir)
        self.given: tuple[Tensor, Tensor] | None = None
        self.generator = torch.Generator().manual_seed(seed)
        self.synthesizers: list[Synthesizer] = []
        self.classes = torch.empty(0, dtype=torch.int64)
        self.bounds = spec.bounds(device)
        self.step = 0
        self.history: dict[str, list[float]] = {name: [] for name in ("step", "loss", "kl", "ce", "agreement")}
        self.rounds: list[dict[str, float]] = []
        self.evaluations: list[tuple[int, Any]] = []
        self.seconds = {"generate": 0.0, "learn": 0.0}
        self.path: Path | None = None
        self._snapshot: dict[str, Any] | None = None
        self._place = torch.full((max(self.units) + 1,), -1)
        self._place[torch.tensor(self.units)] = torch.arange(len(self.units))

    def take(self, given: Result | Tensor | None) -> None:
        """Images with which the pool will begin."""
        if given is None:
            return
        images, labels = (given.images, given.labels) if isinstance(given, Result) else (given, None)
        if images.dim() != 4 or tuple(images.shape[1:]) != self.spec.shape or len(images) == 0:
            shape = ", ".join(map(str, self.spec.shape))
            raise ValueError(f"images must be (N, {shape}) as {self.spec} says, got {tuple(images.shape)}")
        if not images.is_floating_point() or not bool(images.isfinite().all()):
            raise ValueError("images must be normalised, floating point and finite (InputSpec.prepare)")
        if labels is None:
            with torch.no_grad():
                named = [self.teacher(part.to(self.device)).argmax(1).cpu() for part in images.split(512)]
            labels = torch.tensor(self.units)[torch.cat(named)]
        if missing := sorted(set(labels.tolist()) - set(self.units)):
            raise ValueError(f"images: classes {missing[:8]} are not among the teacher's")
        self.given = images.float().cpu(), labels.cpu()

    def check_classes(self) -> None:
        """ValueError now for classes that the first round would complain about."""
        if missing := sorted(set(self.classes.tolist()) - set(self.units)):
            raise ValueError(f"classes {missing} are not among the teacher's {len(self.units)}")

    def begin(self, folder: PathLike | None) -> None:
        """From the checkpoint in ``folder``, where later ones go too, or with the images that were given."""
        if folder is not None:
            self.path = Path(folder) / CHECKPOINT_FILE
            self.identity = self._identity()
            if self.path.is_file():
                self._restore(load_checkpoint(self.path))
                return
        if self.given is not None:
            self._add(*self.given)

    def finish(
        self, evaluate: Callable[[nn.Module], Any] | None, every: int | None, progress: Progress | None
    ) -> Transfer:
        """All steps that are left."""
        saved = time.monotonic()
        try:
            while self.step < self.config.steps:
                self._remember()
                fresh = self._generate(progress) if self._due() else None
                self._learn(fresh, every, progress)
                if evaluate is not None and (self.step == self.config.steps or (every and self.step % every == 0)):
                    self.evaluations.append((self.step, evaluate(self.student.eval())))
                if time.monotonic() - saved > CHECKPOINT_SECONDS:
                    self._remember()
                    self._write()
                    saved = time.monotonic()
        except (KeyboardInterrupt, SystemExit) as error:
            self._write()
            if self.path is not None:
                error.add_note(f"checkpoint written to {self.path}: the same call continues from there")
            raise
        if self.path is not None:
            self.path.unlink(missing_ok=True)
        return Transfer(
            arranged(self.student.eval(), self.config.arithmetic, torch.contiguous_format), self.pool.images,
            self.pool.labels, self.spec, self.history, self.rounds, self.evaluations, self.seconds,
        )  # fmt: skip

    def _due(self) -> bool:
        if not self.synthesizers or self.step % self.config.generate_every:
            return False
        return self.config.rounds is None or len(self.rounds) < self.config.rounds

    def _generate(self, progress: Progress | None) -> tuple[Tensor, Tensor]:
        """A round of new images, which join the pool; at most a batch of them to learn from at once."""
        begun, which = time.monotonic(), 0
        if len(self.synthesizers) > 1:
            which = int(torch.randint(len(self.synthesizers), (), generator=self.generator))
        seed = int(torch.randint(2**62, (), generator=self.generator))
        labels = self._labels(self.config.per_round)
        result = self.synthesizers[which].run(
            labels, seed=seed, classes=self.classes.tolist(), student=self.student, progress=progress,
            checkpoint_dir=None if self.path is None else self.path.parent,
        )  # fmt: skip
        with frozen(self.student), torch.no_grad():
            named = [self.student(part.to(self.device)).argmax(1).cpu() for part in result.images.split(512)]
        right = (torch.cat(named) == self._place[result.labels]).double().mean()
        self._add(result.images, result.labels)
        seconds = time.monotonic() - begun
        self.seconds["generate"] += seconds
        self.rounds.append(
            {"step": self.step, "images": len(result), "recipe": which, "seconds": seconds, "student": float(right),
             "teacher": result.summary["teacher_accuracy"]}
        )  # fmt: skip
        chosen = torch.randperm(len(result), generator=self.generator)[: self.config.batch_size]
        return result.images[chosen], result.labels[chosen]

    def _learn(self, fresh: tuple[Tensor, Tensor] | None, every: int | None, progress: Progress | None) -> None:
        """Steps up to the end of the block, or to whatever comes next."""
        begun, config = time.monotonic(), self.config
        stops = [config.steps, self.step + BLOCK_STEPS]
        for period in (every, config.generate_every if self.synthesizers else None):
            if period:
                stops.append((self.step // period + 1) * period)
        count = min(stops) - self.step
        terms = torch.zeros(4, device=self.device)
        self.student.train()
        for _ in range(count):
            images, labels = fresh or self.pool.sample(config.batch_size, self.generator)
            fresh = None
            terms += self._take_step(images.to(self.device), self._place[labels].to(self.device))
            self.step += 1
        values = dict(zip(("loss", "kl", "ce", "agreement"), (terms / count).tolist(), strict=True))
        if not math.isfinite(values["loss"]):
            raise RuntimeError(f"the student's loss is {values['loss']} at step {self.step}; lower lr ({config.lr})")
        for name, value in {"step": self.step, **values}.items():
            self.history[name].append(value)
        self.seconds["learn"] += time.monotonic() - begun
        if progress is not None:
            progress("learn", self.step, config.steps, values)

    def _take_step(self, images: Tensor, labels: Tensor) -> Tensor:
        """One update of the student; detached loss, divergence, cross-entropy and agreement (4,)."""
        config = self.config
        if config.augmentation.active:
            images = config.augmentation(images, self.bounds, self.generator)
        share, order = torch.ones((), device=self.device), torch.arange(len(images), device=self.device)
        if config.mixup:
            share = torch.distributions.Beta(config.mixup, config.mixup).sample().to(self.device)
            order = torch.randperm(len(images), generator=self.generator).to(self.device)
            images = mixup(images, share, order)
        with torch.no_grad():
            wanted = forward(self.teacher, images, config.arithmetic)
        logits = forward(self.student, images, config.arithmetic)
        kl = divergence(wanted, logits, config.temperature)
        ce = torch.zeros((), device=self.device)
        if config.lambda_ce:
            ce = share * ops.soft_cross_entropy(logits, labels)
            ce = ce + (1 - share) * ops.soft_cross_entropy(logits, labels[order])
        loss = kl + config.lambda_ce * ce
        for group in self.optimizer.param_groups:
            group["lr"] = config.rate(self.step)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        agreement = (logits.argmax(1) == wanted.argmax(1)).to(loss.dtype).mean()
        return torch.stack([loss, kl, ce, agreement]).detach()

    def _labels(self, count: int) -> Tensor:
        """``count`` class ids, equally many of each class as far as it goes, in random order."""
        turns = -(-count // len(self.classes))
        orders = [torch.randperm(len(self.classes), generator=self.generator) for _ in range(turns)]
        return self.classes[torch.cat(orders)[:count]]

    def _add(self, images: Tensor, labels: Tensor) -> None:
        """The pool keeps at most its size, old and new, balanced over the classes."""
        room = self.pool.capacity - len(images)
        if len(self.pool) > room:
            self.pool.subsample(room, self.generator)
        self.pool.add(images, labels)

    def _new_optimizer(self) -> torch.optim.Optimizer:
        config, parameters = self.config, [p for p in self.student.parameters() if p.requires_grad]
        if not parameters:
            raise ValueError("student has no parameter that requires grad: it cannot learn")
        if config.optimizer == "adam":
            return torch.optim.Adam(parameters, config.lr, weight_decay=config.weight_decay)
        return torch.optim.SGD(parameters, config.lr, momentum=config.momentum, weight_decay=config.weight_decay)

    # Checkpoints.

    def _identity(self) -> str:
        digest = hashlib.sha256()
        tensors = [*self.teacher.state_dict().values(), *self.student.state_dict().values(), self.classes]
        if self.given is not None:
            tensors += self.given
        made = [(each.recipe.to_dict(), each.networks.layers, each.networks.precision) for each in self.synthesizers]
        tensors += [s for each in self.synthesizers[:1] if isinstance(s := each.networks.statistics, Tensor)]
        for tensor in tensors:
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        digest.update(repr((self.config.to_dict(), self.seed, self.units, self.spec, made)).encode())
        return digest.hexdigest()

    def _remember(self) -> None:
        """The state for a checkpoint: in the middle of a block it would not be whole."""
        if self.path is None:
            return
        cuda = self.device.type == "cuda"
        self._snapshot = {
            "identity": self.identity,
            "step": self.step,
            "student": copy.deepcopy(self.student.state_dict()),
            "optimizer": copy.deepcopy(self.optimizer.state_dict()),
            # Of a bounded pool on disk images go as well: the checkpoint has to hold them.
            "pool": self.pool.state_dict(images=self.pool_dir is None or self.config.pool_size is not None),
            "generator": self.generator.get_state(),
            "global_generator": torch.get_rng_state(),
            "cuda_generator": torch.cuda.get_rng_state(self.device) if cuda else None,
            "history": copy.deepcopy(self.history),
            "rounds": copy.deepcopy(self.rounds),
            "evaluations": copy.deepcopy(self.evaluations),
            "seconds": dict(self.seconds),
        }

    def _write(self) -> None:
        if self.path is not None and self._snapshot is not None:
            save_checkpoint(self.path, self._snapshot)

    def _restore(self, state: dict[str, Any]) -> None:
        if not isinstance(state, dict) or state.get("identity") != self.identity:
            raise ValueError(
                f"checkpoint {self.path} belongs to another run (networks, images, recipe, settings or seed differ); "
                "remove it or give another folder"
            )
        self.step = state["step"]
        self.student.load_state_dict(state["student"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.pool.load_state_dict(state["pool"])
        self.generator.set_state(state["generator"])
        torch.set_rng_state(state["global_generator"])
        if state["cuda_generator"] is not None and self.device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda_generator"], self.device)
        self.history, self.rounds, self.seconds = state["history"], state["rounds"], state["seconds"]
        self.evaluations = [tuple(entry) for entry in state["evaluations"]]


def check_pool(
    config: TransferConfig, spec: InputSpec, given: int, generates: bool, pool_dir: PathLike | None = None
) -> None:
    """ValueError, before any step, if the pool has no room for what is ``given`` or made, or nothing to begin with."""
    if config.pool_size is not None and given > config.pool_size:
        raise ValueError(f"pool_size {config.pool_size} is smaller than the {given} images given")
    if not generates:
        return
    if config.rounds == 0 and given == 0:
        raise ValueError("rounds is 0 and there are no images: there is nothing to learn from")
    if config.pool_size is not None and config.pool_size < config.per_round and config.rounds != 0:
        raise ValueError(f"pool_size must hold a round, per_round = {config.per_round}, got {config.pool_size}")
    rounds = -(-config.steps // config.generate_every)
    made = given + config.per_round * min(rounds, rounds if config.rounds is None else config.rounds)
    kept = min(made, config.pool_size or made)
    needed = 4 * math.prod(spec.shape) * kept
    if pool_dir is None:
        what, free = "fewer rounds, a pool_size or a pool_dir must be given", available_bytes(torch.device("cpu"))
    else:
        what = f"fewer rounds, a pool_size or a pool_dir with room must be given, not {pool_dir}"
        free = _room(Path(pool_dir))
    if free is not None and needed > free:
        raise ValueError(
            f"{what}: {kept} images of this run are {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free"
        )


def _room(folder: Path) -> int:
    """Free bytes on the disk where ``folder`` is, or would be."""
    return shutil.disk_usage(next(place for place in (folder, *folder.absolute().parents) if place.is_dir())).free


def _sized(recipe: str | Recipe, config: TransferConfig) -> Recipe:
    """The recipe with batches no larger than a round."""
    chosen = recipes.get(recipe)
    return chosen.replace(batch_size=min(chosen.batch_size, config.per_round))
