"""Inversion of one network: what a run is asked for, its checkpoint, and its result."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from exml_fast._native import reused_memory
from exml_fast.checkpoint import Checkpoint, fingerprint
from exml_fast.data import DataSource, InputSpec
from exml_fast.data.foreign import network_statistics
from exml_fast.engine.eager import EagerTeacher
from exml_fast.engine.freezing import chosen_device, distinct_units, dtype_of, no_autocast
from exml_fast.engine.memory import require_memory
from exml_fast.engine.statistics import require_module
from exml_fast.engine.teacher import FrozenTeacher
from exml_fast.inversion import recipes
from exml_fast.inversion.canvas import Canvas
from exml_fast.inversion.custom_terms import checked_terms, identity_of
from exml_fast.inversion.descent import Descent
from exml_fast.inversion.networks import Networks
from exml_fast.inversion.objective import Objective, Step, Term
from exml_fast.inversion.parametrisation import Parametrisation
from exml_fast.inversion.problem import Problem
from exml_fast.inversion.rank_statistics import require_spreadable
from exml_fast.inversion.recipes import Recipe
from exml_fast.inversion.result import Result
from exml_fast.inversion.set_statistics import SetStatistics
from exml_fast.inversion.state import State, generator_for
from exml_fast.inversion.targets import hard_targets, soft_targets
from exml_fast.progress import ProgressOption, callback_of, reports_progress
from exml_fast.ranks import Ranks
from exml_fast.storage import PathLike

__all__ = ["Synthesizer"]

CHECKPOINT_FILE = "inversion.pt"


class _CoarseImagesError(ValueError):
    """The network or the recipe does not take images of a smaller size that coarse_steps ask for."""


class Synthesizer:
    """Inverts one network with one recipe, one :meth:`run` at a time.

    Args:
        model: an image classifier of Python modules that returns logits (N, K). The synthesizer works on a copy; later
            changes to the model have no effect.
        spec: the model's input; read from the model when None (:meth:`InputSpec.of`).
        recipe: a name of :func:`exml_fast.inversion.recipes.names` or a Recipe;
            :func:`exml_fast.inversion.recipes.suited_to` when None.
        units: ``units[j]`` is the class id of logit j; 0 to K − 1 when None.
        device: where to run; the model's device when None.
        precision: of the network, "auto", "float32" or "bfloat16" (:class:`FrozenTeacher`).
        engine: False runs the network in plain PyTorch (:class:`EagerTeacher`), as a reference.
        statistics: "running" for the BatchNorms' running statistics, or normalised images (N, C, H, W), or a data set
            or DataLoader of some, whose statistics replace them (Yin 2020, A.2 and Table 8).
        layers: names or patterns of the layers whose outputs are matched, for a network without BatchNorm
            (:class:`FrozenTeacher`); ``statistics`` must then be images.
        terms: losses of your own beside the recipe's: functions of a :class:`exml_fast.inversion.Step`, or
            :class:`exml_fast.inversion.CustomTerm` with a weight and a name.
        parametrisation: a family of images, like :class:`exml_fast.data.PenStrokes`, whose parameters are optimised
            in place of pixels, within their limits. The recipe's init, clip and spectrum, which are for pixels, are
            then not used.
        compact: remove stopped images from the batch, where no term couples the images.
        block: the number of steps between two reports of progress, checks for NaN, early stops and checkpoints.

    Raises:
        ValueError: if the network is in TorchScript, does not take the specification's images or does not return
            logits; if ``units`` does not fit; if the recipe matches BatchNorm statistics and the network has none
            (unless the recipe's ``bn_optional``) or a layer keeps none; if a recipe with ``coarse_steps`` is given a
            parametrisation; if an image needs more memory than there is.
    """

    def __init__(
        self,
        model: nn.Module,
        spec: InputSpec | None = None,
        recipe: str | Recipe | None = None,
        *,
        units: Sequence[int] | None = None,
        device: torch.device | str | None = None,
        precision: str = "auto",
        engine: bool = True,
        statistics: str | Tensor | DataSource = "running",
        layers: Sequence[str] = (),
        terms: Sequence[Term | Callable[[Step], Tensor]] = (),
        parametrisation: Parametrisation | None = None,
        compact: bool = True,
        block: int = 50,
    ) -> None:
        require_module(model)
        if block < 1:
            raise ValueError(f"block must be at least 1, got {block}")
        self.block = block
        self.spec = InputSpec.of(model if spec is None else spec)
        self.recipe = (
            recipes.suited_to(model, self.spec, parametrisation=parametrisation)
            if recipe is None
            else recipes.get(recipe)
        )
        if parametrisation is not None and (coarse_steps := self.recipe.optimisation.coarse_steps):
            raise ValueError(
                f"recipe {self.recipe.name!r} begins with smaller images (coarse_steps={coarse_steps}): expected "
                "coarse_steps=() with a parametrisation"
            )
        self.device = chosen_device(device, model)
        self.networks = Networks(
            model, self.spec, self.recipe.matching, self.recipe.competition,
            batch_size=self.recipe.optimisation.batch_size, device=self.device, precision=precision, engine=engine,
            statistics=network_statistics(statistics, self.spec), layers=layers,
        )  # fmt: skip
        if min(self.spec.size) < (least := self.recipe.priors.least_size):
            raise ValueError(
                f"spec.size must be at least {least} x {least} pixels for the image priors of recipe "
                f"{self.recipe.name!r} (tv_l1, tv_l2, blur, l2), got {self.spec.size}"
            )
        self.units = distinct_units(units, self.networks.num_classes)
        matching = self.recipe.matching if self.networks.matches_statistics else None
        self.terms = checked_terms(terms)
        self.objective = Objective.of(
            self.recipe.classification, self.recipe.priors, matching, self.recipe.competition, self.terms
        )
        self.compact = compact and not self.objective.couples
        self.canvas = Canvas(self.spec, self.recipe.pixels, self.device, parametrisation)
        self.problem = Problem(self.recipe, self.spec, self.networks, self.objective, self.canvas)
        self._stage, self._file = "invert", CHECKPOINT_FILE
        self._coarse = self._coarser() if self.recipe.optimisation.coarse_steps else None

    @property
    def teacher(self) -> FrozenTeacher | EagerTeacher:
        """The frozen network that is inverted."""
        return self.networks.teacher

    @reports_progress
    def run(
        self,
        labels: Tensor | Sequence[int],
        *,
        seed: int = 0,
        classes: Sequence[int] | None = None,
        student: nn.Module | None = None,
        start: Tensor | None = None,
        memory: SetStatistics | None = None,
        progress: ProgressOption = None,
        checkpoint_dir: PathLike | None = None,
        ranks: Ranks | None = None,
    ) -> Result:
        """Optimise one image for each label.

        Args:
            labels: (N,) class ids, in any order. Batches are mixed so that each holds all classes alike.
            seed: decides everything random. Image n starts from noise of (seed, n). Without terms that couple images
                it does not depend on N or the batch size, up to rounding.
            classes: the class ids a soft target's argmax may give as label, and to which ``dirichlet_over="classes"``
                restricts soft targets; those in ``labels`` when None.
            student: a classifier with the teacher's K logits with which the images compete (Yin 2020, 3.3). The run
                uses a copy. A recipe with ``compete`` needs a student; other recipes ignore it.
            start: initial normalised images (N, C, H, W) instead of noise; with a parametrisation, its initial
                parameters (N, P).
            memory: statistics of the images of earlier runs, with a recipe that has a ``bn_memory``. This run continues
                them and adds its images at the end. None: of this run alone. Smaller images (``coarse_steps``) have
                statistics of their own run.
            progress: called after each block as ``progress("invert", step, total, terms)``; the steps of all
                batches count. Smaller images (``coarse_steps``) are a stage of their own, "invert at 112×112".
            checkpoint_dir: a folder in which "inversion.pt" is written every minute and on Ctrl-C (which is raised
                on). A call with the same arguments continues from that file, bit for bit; on another device, up to
                rounding. The file is removed at the end. Smaller images (``coarse_steps``) have a file of their own.
            ranks: processes of torch.distributed that make this call together, each with a part of every batch. The
                BatchNorm statistics are those of the whole batch, so the images are, up to rounding, those of one
                process. Each process gets all of them. ``checkpoint_dir`` must be None.

        Raises:
            ValueError: for a class id without a logit, no labels, a student, start or memory that is missing or does
                not fit, a batch that needs more memory than there is, or a checkpoint of another run.
            RuntimeError: if a term or the pixels become NaN or infinite; it names term, recipe and step.
        """
        progress = callback_of(progress)
        with torch.inference_mode(False), torch.enable_grad(), no_autocast(self.device.type):
            asked = torch.as_tensor(labels)
            if asked.dim() != 1 or len(asked) == 0 or asked.is_floating_point() or asked.dtype == torch.bool:
                raise ValueError(f"labels must be integer class ids (N,), got {asked.dtype} {tuple(asked.shape)}")
            asked = asked.detach().to("cpu", torch.int64).clone()
            distinct = sorted(set(asked.tolist() if classes is None else classes))
            among = hard_targets(torch.tensor(distinct), self.units)
            positions = hard_targets(asked, self.units)
            soft = self._soft_targets(positions, among, seed)
            optimisation = self.recipe.optimisation
            batch_size = min(optimisation.batch_size, len(asked))
            ranks = ranks or Ranks()
            if ranks.count > 1:
                require_spreadable(self.recipe, ranks, batch_size, checkpoint_dir, self.terms)
            require_memory(self.networks.model, self.spec, -(-batch_size // ranks.count), self.device, len(asked))
            start = self.canvas.checked_start(start, len(asked))
            if memory is not None and memory.memory != self.recipe.matching.bn_memory:
                expected = f"None or have the recipe's bn_memory={self.recipe.matching.bn_memory}"
                raise ValueError(f"memory must be {expected}, got {memory.memory}")
            self.networks.compete_with(student)
            checkpoint = Checkpoint(None, "")
            if checkpoint_dir is not None:
                identity = self._identity(positions, among, seed, student, start, memory)
                checkpoint = Checkpoint(Path(checkpoint_dir) / self._file, identity)
            state = self._resumed(checkpoint, student)
            if state is None:
                terms = len(self.objective.names)
                state = State.begin(len(asked), self.spec, optimisation.steps, terms, self.device, start)
                state.soft, state.matched = soft, None if memory is None else memory.state_dict()
                if self._coarse is not None:
                    options = {"seed": seed, "classes": distinct, "student": student, "ranks": ranks}
                    options["progress"] = progress
                    self._begin_coarse(state, torch.as_tensor(labels), checkpoint_dir, options)
                    checkpoint.keep(functools.partial(self._saved, state), write=True)
            soft, wanted = state.soft, positions
            if soft is not None and self.recipe.classification.label == "argmax":
                wanted = among[soft[:, among].argmax(1)]
                asked = torch.tensor(self.units, dtype=torch.int64)[wanted]
            elif soft is not None:
                wanted = soft.argmax(1)
            wanted = wanted.to(self.device)
            targets = wanted if soft is None else soft.to(self.device)
            descent = Descent(
                self.problem, state, positions, targets, wanted,
                seed=seed, ranks=ranks, block=self.block, compact=self.compact, stage=self._stage,
            )  # fmt: skip
            with reused_memory():
                descent.run(progress, checkpoint, self._saved)
            state.images, state.history, state.counted = map(ranks.sum, (state.images, state.history, state.counted))
            logits = self.networks.judge(state.images)
        checkpoint.remove()
        if memory is not None and state.matched is not None:
            memory.load_state_dict(state.matched)
        return self._result(state, asked, soft, seed, logits, wanted.cpu())

    def plans(self) -> list[dict[str, Any]]:
        """How the convolutions compute, as plain values for :meth:`use_plans`; also for ``coarse_steps``.

        Plans are measured, so another process may choose others, which round differently.
        """
        return [self.networks.plans(), *(self._coarse.plans() if self._coarse is not None else [])]

    def use_plans(self, plans: Sequence[dict[str, Any]]) -> None:
        """Compute as another synthesizer of the same network and recipe does. ValueError for plans that do not fit."""
        own, *coarser = plans
        self.networks.use_plans(own, None)
        if self._coarse is not None:
            self._coarse.use_plans(coarser)

    # Around the loop.

    def _begin_coarse(
        self, state: State, labels: Tensor, checkpoint_dir: PathLike | None, options: dict[str, Any]
    ) -> None:
        """Optimise the smaller images and begin with them, enlarged by nearest neighbours (Yin 2020, 4.4 b)."""
        assert self._coarse is not None
        small = None if state.start is None else F.interpolate(state.start, self._coarse.spec.size, mode="area")
        result = self._coarse.run(labels, start=small, checkpoint_dir=checkpoint_dir, **options)
        state.start = F.interpolate(result.images, self.spec.size, mode="nearest")
        state.earlier = torch.stack([result.history[name] for name in self.objective.names], 1)
        state.seconds = result.seconds

    def _coarser(self) -> Synthesizer:
        height, width = (side // 2 for side in self.spec.size)
        spec = dataclasses.replace(self.spec, size=(height, width))
        networks, statistics = self.networks, self.networks.statistics
        if isinstance(statistics, Tensor):
            statistics = F.interpolate(statistics, spec.size, mode="bilinear", align_corners=False, antialias=True)
        try:
            coarse = Synthesizer(
                networks.model, spec, self.recipe.coarser(), units=self.units, device=self.device,
                precision=networks.precision, engine=networks.engine, statistics=statistics, layers=networks.layers,
                terms=self.terms, compact=self.compact, block=self.block,
            )  # fmt: skip
        except _CoarseImagesError:  # of even smaller images
            raise
        except ValueError as error:
            raise _CoarseImagesError(
                f"coarse_steps begin with images of {height}×{width}: {error}; a network that takes one size alone "
                "needs coarse_steps=()"
            ) from error
        coarse._stage, coarse._file = f"invert at {height}×{width}", f"inversion-{height}x{width}.pt"
        return coarse

    def _soft_targets(self, positions: Tensor, among: Tensor, seed: int) -> Tensor | None:
        """Soft targets (N, K) float32 around the logit positions (N,), if the recipe has them."""
        if self.recipe.classification.targets == "hard":
            return None
        model, generator = self.networks.model, generator_for("targets", seed, self.device)
        example = torch.zeros(1, *self.spec.shape, device=self.device, dtype=dtype_of(model))
        return soft_targets(
            model, self.recipe.classification, positions,
            example=example, among=among, logits=self.networks.num_classes, generator=generator,
        )  # fmt: skip

    def _result(
        self, state: State, labels: Tensor, soft: Tensor | None, seed: int, logits: Tensor, wanted: Tensor
    ) -> Result:
        steps = int((state.counted > 0).sum())
        history = state.history[:steps] / state.counted[:steps, None]
        earlier = 0 if state.earlier is None else len(state.earlier)
        if state.earlier is not None:
            history = torch.cat([state.earlier, history])
        absent = ["bn"] if self.recipe.matching.bn > 0 and not self.networks.matches_statistics else []
        stop = self.recipe.optimisation.stop_confidence
        summary = {
            "recipe": self.recipe.to_dict(),
            "seed": seed,
            "images": len(labels),
            "steps": earlier + steps,
            "steps_per_image": earlier + float(state.stopped_at.double().mean()),
            "images_per_second": len(labels) / max(state.seconds, 1e-9),
            "teacher_accuracy": float((logits.argmax(1) == wanted).double().mean()),
            "confidence": float(logits.softmax(1).gather(1, wanted[:, None]).double().mean()),
            "stopped": int((state.stopped_at < self.recipe.optimisation.steps).sum()) if stop is not None else 0,
            "absent": absent,
            "terms": {term.name: float(term.weight) for term in self.terms},
            "parametrisation": None if self.canvas.parametrisation is None else self.canvas.parametrisation.describe(),
            "device": str(self.device),
            "precision": self.networks.teacher.precision,
        }
        named = {name: history[:, i].clone() for i, name in enumerate(self.objective.names)}
        return Result(state.images, labels, soft, self.spec, named, state.seconds, summary, logits)

    def _identity(
        self, labels: Tensor, among: Tensor, seed: int, student: nn.Module | None, start: Tensor | None,
        memory: SetStatistics | None,
    ) -> str:  # fmt: skip
        """A fingerprint of everything that decides the images, including the weights."""
        networks = self.networks
        settings = [self.recipe.to_dict(), self.spec.to_dict(), self.units, seed, self.block, self.compact]
        settings += [networks.precision, networks.engine, networks.layers, repr(networks.model), start is None]
        settings += [] if self.canvas.parametrisation is None else [self.canvas.parametrisation.describe()]
        settings += [] if memory is None else [memory.state_dict()]
        settings += [identity_of(self.terms)] if self.terms else []
        given = [] if start is None else [start]
        return fingerprint([labels, among, *networks.tensors(student), *given], settings)

    def _saved(self, state: State) -> dict[str, Any]:
        return {"state": vars(state), "plans": self.networks.plans()}

    def _resumed(self, checkpoint: Checkpoint, student: nn.Module | None) -> State | None:
        saved = checkpoint.load()
        if saved is None:
            return None
        self.networks.use_plans(saved["plans"], student)
        return State(**saved["state"]).to(self.device)
