"""The loop: images are optimised until the frozen network says what it is asked to say."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from exml_fast._native import reused_memory
from exml_fast.checks import is_count
from exml_fast.data import InputSpec
from exml_fast.engine.conv_plan import Plan
from exml_fast.engine.conv_tuning import Plans
from exml_fast.engine.freezing import device_of, dtype_of, frozen, frozen_copy, probe
from exml_fast.engine.memory import require_memory
from exml_fast.engine.statistics import require_module, require_running_statistics
from exml_fast.engine.teacher import EagerTeacher, FrozenTeacher
from exml_fast.inversion import recipes
from exml_fast.inversion.augmentation import Draws
from exml_fast.inversion.objective import Objective, Step
from exml_fast.inversion.parametrisation import Parametrisation
from exml_fast.inversion.recipes import Recipe
from exml_fast.inversion.result import Result
from exml_fast.inversion.spectrum import NaturalSpectrum
from exml_fast.inversion.stepper import Stepper
from exml_fast.inversion.targets import class_similarity, dirichlet_mixture, hard_targets
from exml_fast.progress import Progress
from exml_fast.storage import PathLike, load_checkpoint, save_checkpoint

__all__ = ["Synthesizer", "invert"]

CHECKPOINT_SECONDS = 60.0

Network = FrozenTeacher | EagerTeacher
SavedPlans = dict[str, tuple[str, tuple[Any, ...]]]


@dataclass
class _State:
    """Where a run stands, at the end of a block of steps. Rows are the images of the batch still in the loop."""

    batch: int
    step: int
    x: Tensor
    """(R, C, H, W) images, or (R, P) parameters of images."""
    exp_avg: Tensor
    exp_avg_sq: Tensor
    rows: Tensor
    """(R,) int64, CPU: which of the run's images they are."""
    active: Tensor
    """(R,) bool: not stopped yet."""
    images: Tensor
    """(N, C, H, W), CPU: finished ones."""
    stopped_at: Tensor
    """(N,) int64, CPU: steps taken."""
    history: Tensor
    """(steps, T) float64, CPU: sums over images."""
    counted: Tensor
    """(steps,) float64, CPU: how many images."""
    seconds: float
    start: Tensor | None = None
    """(N, …) as ``x``, CPU: what the images begin with; noise when None."""
    earlier: Tensor | None = None
    """(steps, T) float64, CPU: history, means an image, of smaller images that these began as."""
    soft: Tensor | None = None
    """(N, K) float32, CPU: soft targets, as drawn on the device where the run began."""

    def snapshot(self) -> _State:
        """A copy to continue from, which further steps leave alone.

        ``images`` and ``stopped_at`` are shared: what a block writes there, it writes again when it is repeated.
        """
        changing = ("x", "exp_avg", "exp_avg_sq", "rows", "active", "history", "counted")
        copies: dict[str, Any] = {name: getattr(self, name).clone() for name in changing}
        return dataclasses.replace(self, **copies)


class Synthesizer:
    """Inverts one network with one recipe, one :meth:`run` at a time.

    Args:
        model: an image classifier of Python modules that returns logits (N, K). It is copied, frozen and fused; later
            changes to it are not seen.
        spec: its input; read from the model where it carries one (:meth:`InputSpec.of`).
        recipe: a name of :func:`exml_fast.inversion.recipes.names` or a Recipe;
            :func:`suited_recipe` when None.
        units: ``units[j]`` is the class id of logit j; 0 to K − 1 when None.
        device: where to run; where the model is when None.
        precision: of the network, "auto", "float32" or "bfloat16" (:class:`FrozenTeacher`).
        engine: False looks at the network as it is, in plain PyTorch (:class:`EagerTeacher`): the reference.
        statistics: "running", what the BatchNorms remember; or normalised images (N, C, H, W) to take the statistics
            of instead (Yin 2020, A.2 and Table 8).
        layers: names or patterns of the layers whose outputs are matched, for a network without BatchNorm
            (:class:`FrozenTeacher`); ``statistics`` must then be images.
        parametrisation: of what images are functions, as :class:`exml_fast.data.PenStrokes`: its parameters are
            optimised in place of pixels, within its limits; the recipe's start, clip and spectrum are of pixels and
            have no part in it.
        compact: drop stopped images from the batch, where no term couples the images.
        block: steps between two looks at the losses: progress, NaN check, early stop, checkpoint.

    Raises:
        ValueError: if the network is in TorchScript, does not take the specification's images or does not return
            logits; if ``units`` does not fit; if the recipe matches BatchNorm statistics and the network has none
            (unless the recipe's ``bn_optional``) or a layer keeps none; if a recipe with ``coarse_steps`` is given a
            parametrisation; if an image needs more memory than there is.
    """

    _stage = "invert"

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
        statistics: str | Tensor = "running",
        layers: Sequence[str] = (),
        parametrisation: Parametrisation | None = None,
        compact: bool = True,
        block: int = 50,
    ) -> None:
        require_module(model)
        if block < 1:
            raise ValueError(f"block must be at least 1, got {block}")
        self.spec = InputSpec.of(model if spec is None else spec)
        self.recipe = recipes.get(
            suited_recipe(model, self.spec, parametrisation=parametrisation) if recipe is None else recipe
        )
        self.device = device_of(model) if device is None else torch.device(device)
        self.block = block
        self.precision, self.engine = precision, engine
        self.model = frozen_copy(model, self.device)
        self.statistics, self.layers = statistics, (layers,) if isinstance(layers, str) else tuple(layers)
        if self.recipe.bn > 0 and not self.layers:
            require_running_statistics(self.model)
        require_memory(self.model, self.spec, 1, self.device)
        self.teacher = self._freeze()
        self.num_classes = self.teacher.num_classes
        if self.recipe.bn > 0 and self.teacher.matched_calls == 0 and not self.recipe.bn_optional:
            raise ValueError(
                f"recipe {self.recipe.name!r} matches BatchNorm statistics (bn={self.recipe.bn}), but "
                f"{type(model).__name__} runs no BatchNorm layer: give some real images as statistics and names of "
                "layers as layers, or set bn=0 (or bn_optional=True) to rely on the image priors alone"
            )
        self.units = tuple(range(self.num_classes)) if units is None else tuple(int(u) for u in units)
        if len(self.units) != self.num_classes or len(set(self.units)) != len(self.units):
            raise ValueError(f"units must be {self.num_classes} distinct class ids, one a logit, got {self.units}")
        self.objective = Objective.of(self.recipe, bn=self.teacher.matched_calls > 0)
        self.compact = compact and not self.objective.couples
        self.parametrisation = parametrisation
        if parametrisation is not None and self.recipe.coarse_steps:
            raise ValueError(
                f"recipe {self.recipe.name!r} begins with smaller images (coarse_steps={self.recipe.coarse_steps}): "
                "expected coarse_steps=() with a parametrisation"
            )
        self._bounds = self._clip_bounds()
        self._spectrum: NaturalSpectrum | None = None
        if parametrisation is None and (self.recipe.spectrum or self.recipe.correlation):
            waves = (self.recipe.spectrum, self.recipe.correlation)
            self._spectrum = NaturalSpectrum(*waves, self.spec.shape, self.device)
        self._student: FrozenTeacher | EagerTeacher | None = None
        self._coarse = self._coarser() if self.recipe.coarse_steps else None

    def run(
        self,
        labels: Tensor | Sequence[int],
        *,
        seed: int = 0,
        classes: Sequence[int] | None = None,
        student: nn.Module | None = None,
        start: Tensor | None = None,
        progress: Progress | None = None,
        checkpoint: PathLike | None = None,
    ) -> Result:
        """Optimise one image for each label.

        Args:
            labels: (N,) class ids, in any order. Batches are mixed so that each holds all classes alike.
            seed: decides everything random. Image n starts from noise of (seed, n): without terms that couple images
                it does not depend on N or the batch size, up to rounding.
            classes: the class ids a soft target's argmax may give as label, and to which ``dirichlet_over="classes"``
                restricts it; those in ``labels`` when None.
            student: a classifier with the teacher's K logits, as it is now, that the images compete with; a recipe
                with ``compete`` needs it, others do not look at it (Yin 2020, 3.3).
            start: normalised images (N, C, H, W) to begin with instead of noise; with a parametrisation its parameters
                (N, P) instead of random ones.
            progress: called after each block as ``progress("invert", step, total, terms)``; the steps of all
                batches count. Smaller images (``coarse_steps``) are a stage of their own, "invert at 112×112".
            checkpoint: a file written every minute, and when the run is interrupted (KeyboardInterrupt, which goes
                on); a run with the same arguments that finds it continues from there, bit for bit; on another device,
                up to rounding. Removed at the end.

        Raises:
            ValueError: for a class id without a logit, no labels, a student that is missing or does not fit, images
                to start with that do not, a batch that needs more memory than there is, or a checkpoint of another run.
            RuntimeError: if a term or the pixels become NaN or infinite, naming term, recipe and step.
        """
        with torch.inference_mode(False), torch.enable_grad():
            asked = torch.as_tensor(labels)
            if asked.dim() != 1 or len(asked) == 0 or asked.is_floating_point() or asked.dtype == torch.bool:
                raise ValueError(f"labels must be integer class ids (N,), got {asked.dtype} {tuple(asked.shape)}")
            asked = asked.detach().to("cpu", torch.int64).clone()
            distinct = sorted(set(asked.tolist() if classes is None else classes))
            among = hard_targets(torch.tensor(distinct), self.units)
            positions = hard_targets(asked, self.units)
            soft = self._soft_targets(positions, among, seed) if self.recipe.targets == "dirichlet" else None
            require_memory(self.model, self.spec, min(self.recipe.batch_size, len(asked)), self.device, len(asked))
            start = self._checked_start(start, len(asked))
            self._student = self._freeze_student(student)
            path = None if checkpoint is None else Path(checkpoint)
            identity = "" if path is None else self._identity(positions, among, seed, student, start)
            if path is not None and path.exists():
                state = self._resume(path, identity, student)
            else:
                state = self._begin(len(asked), start)
                state.soft = soft
                if self._coarse is not None:
                    options = {"seed": seed, "classes": distinct, "student": student, "progress": progress}
                    self._begin_coarse(state, torch.as_tensor(labels), path, identity, options)
            batches = _mixed_batches(positions, self.recipe.batch_size)
            soft, wanted = state.soft, positions
            if soft is not None and self.recipe.label == "argmax":
                wanted = among[soft[:, among].argmax(1)]
                asked = torch.tensor(self.units, dtype=torch.int64)[wanted]
            elif soft is not None:
                wanted = soft.argmax(1)
            wanted = wanted.to(self.device)
            targets = wanted if soft is None else soft.to(self.device)
            with reused_memory():
                self._optimise(state, targets, wanted, batches, seed, progress, path, identity)
            logits = self._judge(state.images)
        if path is not None:
            path.unlink(missing_ok=True)
        return self._result(state, asked, soft, seed, logits, wanted.cpu())

    def _optimise(
        self,
        state: _State,
        targets: Tensor,
        wanted: Tensor,
        batches: list[Tensor],
        seed: int,
        progress: Progress | None,
        path: Path | None,
        identity: str,
    ) -> None:
        """All steps of all batches, with checkpoints at ``path``."""
        augmentation, generator = self.recipe.augmentation, _generator(seed, "augmentation")
        low = self.spec.bounds(self.device)[0]
        draws = augmentation.draw(self.recipe.steps, self.spec.size, generator, self.device, low)
        saved, safe, stepper = time.monotonic(), None, None
        try:
            while state.batch < len(batches):
                # A block changes tensors in place: what an interrupt leaves half done is not what is saved.
                safe = state.snapshot() if path is not None else None
                if state.step == 0 and len(state.rows) == 0:
                    self._start(state, batches[state.batch], seed)
                if stepper is None or stepper.x is not state.x:
                    stepper = self._stepper(state, targets, draws)
                values = self._advance(state, stepper, wanted, len(batches))
                if progress is not None:
                    done = state.batch * self.recipe.steps + state.step
                    terms = dict(zip(self.objective.names, values.tolist(), strict=True))
                    progress(self._stage, done, len(batches) * self.recipe.steps, terms)
                if path is not None and time.monotonic() - saved > CHECKPOINT_SECONDS:
                    save_checkpoint(path, self._saved(identity, state))
                    saved = time.monotonic()
        except (KeyboardInterrupt, SystemExit) as error:
            if path is not None and safe is not None:
                save_checkpoint(path, self._saved(identity, safe))
                error.add_note(f"checkpoint written to {path}: the same call continues from there")
            raise

    # One step and one block.

    def _gradient(self, targets: Tensor, draws: Draws, x: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient of the objective at ``x`` (:class:`_State`), and the values of its terms (T + 1,)."""
        leaf = x.detach().requires_grad_()
        images = self._images(leaf)
        inputs = self.recipe.augmentation(images, draws, index)
        logits, layers = self.teacher(inputs)
        soft = targets.to(logits.dtype) if targets.is_floating_point() else targets
        student = None if self._student is None else self._student(inputs)[0].to(logits.dtype)
        total, values = self.objective(Step(images, inputs, logits, soft, layers, student))
        (gradient,) = torch.autograd.grad(total, leaf)
        return gradient, values

    def _images(self, x: Tensor) -> Tensor:
        return x if self.parametrisation is None else self.parametrisation.render(x, self.spec)

    def _stepper(self, state: _State, targets: Tensor, draws: Draws) -> Stepper:
        gradient = functools.partial(self._gradient, targets[state.rows.to(self.device)], draws)
        active = None if self.recipe.stop_confidence is None else state.active
        moments = (state.exp_avg, state.exp_avg_sq)
        return Stepper(
            gradient, state.x, moments, active, self.recipe, self._bounds, state.step, self.block, self._spectrum
        )

    def _advance(self, state: _State, stepper: Stepper, wanted: Tensor, batches: int) -> Tensor:
        """Up to ``block`` steps of the current batch; its end, if it comes to it. Values (T + 1,) of the last step."""
        begun = time.monotonic()
        first, last = state.step, min(state.step + self.block, self.recipe.steps)
        block = stepper.run(last - first).to("cpu", torch.float64)
        state.step = last
        self._require_finite(block, state.x, first, f"batch {state.batch + 1} of {batches}")
        state.history[first:last] += block * len(state.rows)
        state.counted[first:last] += len(state.rows)
        if self.recipe.stop_confidence is not None:
            self._stop_confident(state, wanted[state.rows.to(self.device)])
        if state.step == self.recipe.steps or not state.active.any():
            self._retire(state, torch.ones(len(state.rows), dtype=torch.bool))
            state.batch, state.step = state.batch + 1, 0
        state.seconds += time.monotonic() - begun
        return block[-1]

    def _stop_confident(self, state: _State, wanted: Tensor) -> None:
        assert self.recipe.stop_confidence is not None
        with torch.no_grad():
            logits, _ = self.teacher(self._images(state.x))
        probability = logits.softmax(1).gather(1, wanted[:, None])[:, 0]
        confident = (probability >= self.recipe.stop_confidence) & state.active
        state.active &= ~confident
        state.stopped_at[state.rows[confident.cpu()]] = state.step
        stopped = ~state.active.cpu()
        # A batch of another size costs CUDA another capture.
        enough = len(stopped) / 2 if self.device.type == "cuda" else 1
        if self.compact and stopped.sum() >= enough:
            self._retire(state, stopped)

    def _retire(self, state: _State, chosen: Tensor) -> None:
        """Take rows (R,) bool out of the loop and keep their images."""
        keep = ~chosen
        on_device = keep.to(self.device)
        with torch.no_grad():
            state.images[state.rows[chosen]] = self._images(state.x[~on_device]).cpu()
        for name in ("x", "exp_avg", "exp_avg_sq", "active"):
            setattr(state, name, getattr(state, name)[on_device])
        state.rows = state.rows[keep]

    # Around the loop.

    def _begin(self, count: int, start: Tensor | None) -> _State:
        shape, terms = self.spec.shape, len(self.objective.names)
        none = torch.empty(0, *shape, device=self.device)
        return _State(
            0, 0, none, none, none, torch.empty(0, dtype=torch.int64),
            torch.ones(0, dtype=torch.bool, device=self.device), torch.zeros(count, *shape),
            torch.full((count,), self.recipe.steps), torch.zeros(self.recipe.steps, terms, dtype=torch.float64),
            torch.zeros(self.recipe.steps, dtype=torch.float64), 0.0, start,
        )  # fmt: skip

    def _begin_coarse(
        self, state: _State, labels: Tensor, path: Path | None, identity: str, options: dict[str, Any]
    ) -> None:
        """Optimise the smaller images and begin with them, enlarged by nearest neighbours (Yin 2020, 4.4 b)."""
        assert self._coarse is not None
        small = None if state.start is None else F.interpolate(state.start, self._coarse.spec.size, mode="area")
        below = None if path is None else path.with_name(f"{path.name}.coarse")
        result = self._coarse.run(labels, start=small, checkpoint=below, **options)
        state.start = F.interpolate(result.images, self.spec.size, mode="nearest")
        state.earlier = torch.stack([result.history[name] for name in self.objective.names], 1)
        state.seconds = result.seconds
        if path is not None:
            save_checkpoint(path, self._saved(identity, state))

    def _coarser(self) -> Synthesizer:
        height, width = (side // 2 for side in self.spec.size)
        spec = dataclasses.replace(self.spec, size=(height, width))
        statistics = self.statistics
        if isinstance(statistics, Tensor):
            statistics = F.interpolate(statistics, spec.size, mode="bilinear", align_corners=False, antialias=True)
        try:
            coarse = Synthesizer(
                self.model, spec, self.recipe.coarser(), units=self.units, device=self.device, precision=self.precision,
                engine=self.engine, statistics=statistics, layers=self.layers, compact=self.compact, block=self.block,
            )  # fmt: skip
        except ValueError as error:
            raise ValueError(f"coarse_steps must be () for a network that takes one size alone: {error}") from error
        coarse._stage = f"invert at {height}×{width}"
        return coarse

    def _checked_start(self, start: Tensor | None, count: int) -> Tensor | None:
        if start is None:
            return None
        what, shape = "images", torch.Size((count, *self.spec.shape))
        if self.parametrisation is not None:
            what, shape = "parameters", torch.Size((count, *self.parametrisation.limits(self.spec)[0].shape))
        if start.shape != shape or not start.is_floating_point():
            raise ValueError(
                f"start must be floating-point {what} {tuple(shape)}, got {start.dtype} {tuple(start.shape)}"
            )
        return start.detach().to("cpu", torch.float32).clone()

    def _freeze_student(self, student: nn.Module | None, plans: Plans | None = None) -> Network | None:
        """A frozen copy of the student as it is now, where the recipe looks at it."""
        if self.recipe.compete == 0:
            return None
        if not isinstance(student, nn.Module):
            raise ValueError(
                f"recipe {self.recipe.name!r} competes with a student (compete={self.recipe.compete}): student must be "
                f"a torch.nn.Module, got {type(student).__name__}"
            )
        frozen_student = self._frozen(student, plans)
        if frozen_student.num_classes != self.num_classes:
            raise ValueError(
                f"student must give the teacher's {self.num_classes} logits, {type(student).__name__} gives "
                f"{frozen_student.num_classes}"
            )
        return frozen_student

    def _start(self, state: _State, rows: Tensor, seed: int) -> None:
        x = self._random(rows, seed) if state.start is None else state.start[rows]
        state.x = x.to(self.device, torch.float32).contiguous()
        state.exp_avg, state.exp_avg_sq = torch.zeros_like(state.x), torch.zeros_like(state.x)
        state.rows = rows.clone()
        state.active = torch.ones(len(rows), dtype=torch.bool, device=self.device)

    def _random(self, rows: Tensor, seed: int) -> Tensor:
        """What these images of a run begin with, each from a generator of its own."""
        generators = [_generator(seed, f"image {n}") for n in rows.tolist()]
        if self.parametrisation is not None:
            return torch.cat([self.parametrisation.parameters(1, self.spec, generator) for generator in generators])
        make = torch.randn if self.recipe.init == "normal" else torch.rand
        x = torch.stack([make(self.spec.shape, generator=generator) for generator in generators]).to(self.device)
        if self.recipe.init == "uniform":
            x = self.spec.normalize(x)
        elif self._spectrum is not None:
            x = self._spectrum(x)
        return self.recipe.init_scale * x

    def _soft_targets(self, positions: Tensor, among: Tensor, seed: int) -> Tensor:
        """(N, K) float32, drawn around the logit positions (N,)."""
        with torch.no_grad():
            example = torch.zeros(1, *self.spec.shape, device=self.device, dtype=dtype_of(self.model))
            similarity = class_similarity(
                self.model, self.recipe.similarity_minmax, self.recipe.similarity_layer, example
            ).to(self.device)
        if len(similarity) != self.num_classes:
            raise ValueError(
                f"the last linear layer of {type(self.model).__name__} has {len(similarity)} rows and the network "
                f"{self.num_classes} logits: it is not the classifier whose rows the soft targets are drawn from; name "
                "that one with similarity_layer=..."
            )
        within = among if self.recipe.dirichlet_over == "classes" else None
        generator = _generator(seed, "targets", self.device)
        return dirichlet_mixture(similarity, positions, self.recipe.betas, generator, within).cpu()

    def _clip_bounds(self) -> tuple[Tensor | None, Tensor | None]:
        clip, channels = self.recipe.clip, self.spec.channels
        if self.parametrisation is not None:
            low, high = self.parametrisation.limits(self.spec)
            return low.to(self.device), high.to(self.device)
        if clip is None:
            return None, None
        if clip == "valid":
            low, high = self.spec.bounds(self.device)
            return low.flatten().expand(channels).contiguous(), high.flatten().expand(channels).contiguous()
        limit = torch.full((channels,), float(clip), device=self.device)
        return -limit, limit

    def _require_finite(self, block: Tensor, x: Tensor, first: int, where: str) -> None:
        bad = (~block.isfinite()).nonzero()
        if len(bad):
            # The weighted sum is the last column: a term that went wrong is named before it.
            row, column = bad[0].tolist()
            name, value, step = self.objective.names[column], block[row, column].item(), first + row
        elif not bool(x.isfinite().all()):
            name, value, step = "the images' values", math.nan, first + len(block) - 1
        else:
            return
        raise RuntimeError(
            f"recipe {self.recipe.name!r}: {name} became {value} at step {step} ({where}); a smaller learning rate "
            f"than {self.recipe.lr} or other weights may help, and the network's weights should be finite"
        )

    def _judge(self, images: Tensor) -> Tensor:
        """Logits (N, K) of the network as it is, without augmentation."""
        dtype = dtype_of(self.model)
        with torch.no_grad():
            parts = images.split(self.recipe.batch_size)
            return torch.cat([self.model(part.to(self.device, dtype)).float().cpu() for part in parts])

    def _result(
        self, state: _State, labels: Tensor, soft: Tensor | None, seed: int, logits: Tensor, wanted: Tensor
    ) -> Result:
        steps = int((state.counted > 0).sum())
        history = state.history[:steps] / state.counted[:steps, None]
        earlier = 0 if state.earlier is None else len(state.earlier)
        if state.earlier is not None:
            history = torch.cat([state.earlier, history])
        absent = ["bn"] if self.recipe.bn > 0 and self.teacher.matched_calls == 0 else []
        stop = self.recipe.stop_confidence
        summary = {
            "recipe": self.recipe.to_dict(),
            "seed": seed,
            "images": len(labels),
            "steps": earlier + steps,
            "steps_per_image": earlier + float(state.stopped_at.double().mean()),
            "images_per_second": len(labels) / max(state.seconds, 1e-9),
            "teacher_accuracy": float((logits.argmax(1) == wanted).double().mean()),
            "confidence": float(logits.softmax(1).gather(1, wanted[:, None]).double().mean()),
            "stopped": int((state.stopped_at < self.recipe.steps).sum()) if stop is not None else 0,
            "absent": absent,
            "parametrisation": None if self.parametrisation is None else self.parametrisation.describe(),
            "device": str(self.device),
            "precision": self.teacher.precision,
        }
        named = {name: history[:, i].clone() for i, name in enumerate(self.objective.names)}
        return Result(state.images, labels, soft, self.spec, named, state.seconds, summary, logits)

    def _identity(
        self, labels: Tensor, among: Tensor, seed: int, student: nn.Module | None, start: Tensor | None
    ) -> str:
        """Fingerprint of what a run computes, weights included."""
        digest = hashlib.sha256()
        given = [tensor for tensor in (start, self.statistics) if isinstance(tensor, Tensor)]
        if self._student is not None and student is not None:
            given += student.state_dict().values()
        for tensor in (labels, among, *self.model.state_dict().values(), *given):
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        settings = [self.recipe.to_dict(), self.spec.to_dict(), self.units, seed, self.block, self.compact]
        settings += [self.precision, self.engine, self.layers, start is None, repr(self.model)]
        settings += [] if self.parametrisation is None else [self.parametrisation.describe()]
        digest.update(json.dumps(settings).encode())
        return digest.hexdigest()

    def _freeze(self, plans: Plans | None = None) -> Network:
        return self._frozen(self.model, plans, statistics=self.statistics, layers=self.layers)

    def _frozen(self, model: nn.Module, plans: Plans | None, **statistics: Any) -> Network:
        if not self.engine:
            return EagerTeacher(model, self.spec, device=self.device, **statistics)
        return FrozenTeacher(
            model, self.spec, device=self.device, precision=self.precision, batch_size=self.recipe.batch_size,
            plans=plans, **statistics,
        )  # fmt: skip

    def _saved(self, identity: str, state: _State) -> dict[str, Any]:
        return {
            "identity": identity, "state": vars(state), "plans": _plans_of(self.teacher),
            "student_plans": _plans_of(self._student),
        }  # fmt: skip

    def _resume(self, path: Path, identity: str, student: nn.Module | None) -> _State:
        saved = load_checkpoint(path, "cpu")
        if not isinstance(saved, dict) or saved.get("identity") != identity:
            raise ValueError(
                f"checkpoint {path} belongs to another run (labels, seed, recipe, specification or weights differ); "
                "remove it or give another path"
            )
        # Measured anew, plans may differ, and with them the rounding.
        if saved["plans"] != _plans_of(self.teacher):
            self.teacher = self._freeze(_plans(saved["plans"]))
        if saved["student_plans"] != _plans_of(self._student):
            self._student = self._freeze_student(student, _plans(saved["student_plans"]))
        state = _State(**saved["state"])
        for name in ("x", "exp_avg", "exp_avg_sq", "active"):
            setattr(state, name, getattr(state, name).to(self.device))
        return state


def invert(
    model: Any,
    classes: Sequence[int] | None = None,
    per_class: int = 8,
    recipe: str | Recipe | None = None,
    spec: Any = None,
    seed: int = 0,
    device: torch.device | str | None = None,
    precision: str = "auto",
    units: Sequence[int] | None = None,
    student: nn.Module | None = None,
    statistics: str | Tensor = "running",
    layers: Sequence[str] = (),
    parametrisation: Parametrisation | None = None,
    progress: Progress | None = None,
    checkpoint: PathLike | None = None,
    **overrides: Any,
) -> Result:
    """Synthetic images of ``classes`` from a trained classifier alone.

    Args:
        model: a classifier that returns logits (N, K), or anything that holds one as ``.model`` (an Expert).
        classes: class ids; all when None (an Expert's: those it was trained on).
        per_class: images for each. They are ordered class by class in turn (0, 1, …, 0, 1, …).
        recipe: a name (:func:`exml_fast.inversion.recipes.names`) or a Recipe. When None by the images' size: ours for
            large ones ("deep_inversion/imagenet-transferable"), "deep_inversion" below 96 pixels; "drawn_inversion"
            with a parametrisation.
        spec: an InputSpec or what one can be read from (a torchvision weights enum, a dict, …); from the
            model when None.
        seed: the same seed gives the same images.
        device: where to run; where the model is when None.
        precision: of the network inside, "auto", "float32" or "bfloat16" (:class:`FrozenTeacher`).
        units: ``units[j]`` is the class id of logit j; 0 to K − 1 when None.
        student: whom the images compete with, for the recipes ``adaptive_deep_inversion``.
        statistics, layers: normalised real images whose statistics are matched instead of what BatchNorms remember,
            and names of other layers to match (:class:`Synthesizer`).
        parametrisation: of what images are functions, as drawings of pen strokes (:class:`Synthesizer`).
        progress: ``progress(stage, step, total, terms)``, called every 50 steps.
        checkpoint: a file that lets an interrupted run continue (:meth:`Synthesizer.run`).
        overrides: fields of the recipe, as ``steps=500``.

    Raises:
        ValueError: naming the argument; :class:`Synthesizer` and :meth:`Synthesizer.run` say more.
    """
    source = InputSpec.of(model if spec is None else spec)
    if not is_count(per_class):
        raise ValueError(f"per_class must be a positive integer, got {per_class!r}")
    if not isinstance(model, nn.Module) and isinstance(getattr(model, "model", None), nn.Module):
        units = getattr(model, "units", None) if units is None else units
        classes = getattr(model, "classes", None) if classes is None else classes
        model = model.model
    require_module(model)
    chosen = recipes.get(suited_recipe(model, source, parametrisation=parametrisation) if recipe is None else recipe)
    synthesizer = Synthesizer(
        model, source, chosen.replace(**overrides), units=units, device=device, precision=precision,
        statistics=statistics, layers=layers, parametrisation=parametrisation,
    )  # fmt: skip
    ids = class_ids(synthesizer.units if classes is None else classes)
    labels = torch.tensor(ids, dtype=torch.int64).repeat(per_class)
    return synthesizer.run(labels, seed=seed, student=student, progress=progress, checkpoint=checkpoint)


def suited_recipe(
    model: nn.Module,
    spec: InputSpec,
    statistics: bool = True,
    adaptive: bool = False,
    parametrisation: Parametrisation | None = None,
) -> Recipe:
    """:func:`recipes.suited`; for a network that takes one size alone, all its steps at that size.

    "drawn_inversion" with a parametrisation.
    """
    if parametrisation is not None:
        return recipes.get("drawn_inversion")
    recipe = recipes.suited(spec.size, statistics, adaptive)
    if not recipe.coarse_steps:
        return recipe
    half = dataclasses.replace(spec, size=(spec.size[0] // 2, spec.size[1] // 2))
    images = torch.zeros(1, *half.shape, dtype=dtype_of(model), device=device_of(model))
    try:
        with frozen(model):
            probe(model, images, half)
    except ValueError:
        return recipe.replace(steps=recipe.steps + sum(recipe.coarse_steps), coarse_steps=())
    return recipe


def class_ids(classes: Sequence[int]) -> list[int]:
    """As plain numbers; ValueError unless they are integers, at least one."""
    found = classes.tolist() if isinstance(classes, Tensor) else classes
    whole = isinstance(found, Iterable) and not isinstance(found, str)
    ids = list(found) if whole else []
    if not whole or not all(isinstance(i, Integral) and not isinstance(i, bool) for i in ids):
        raise ValueError(f"classes must be a sequence of class ids, integers, got {classes!r}")
    if not ids:
        raise ValueError("classes must hold at least one class id")
    return [int(i) for i in ids]


def _plans_of(network: Network | None) -> SavedPlans:
    """Plain values for a checkpoint; the inverse of :func:`_plans`."""
    plans = network.plans.items() if isinstance(network, FrozenTeacher) else ()
    return {name: (dtype, dataclasses.astuple(plan)) for name, (dtype, plan) in plans}


def _plans(saved: SavedPlans) -> Plans:
    return {name: (dtype, Plan(*plan)) for name, (dtype, plan) in saved.items()}


def _generator(seed: int, stream: str, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator of its own for each purpose; the global random state is neither read nor changed."""
    digest = hashlib.sha256(f"{seed}/{stream}".encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def _mixed_batches(positions: Tensor, size: int) -> list[Tensor]:
    """Indices of at most ``size`` samples a batch, as even in number and in classes as it goes."""
    order = positions.argsort(stable=True)
    count = math.ceil(len(order) / size)
    return [order[start::count] for start in range(count)]
