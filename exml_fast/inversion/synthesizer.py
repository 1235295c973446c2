"""The loop: images are optimised until the frozen network says what it is asked to say."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from exml_fast._native import reused_memory
from exml_fast.data import InputSpec
from exml_fast.inversion import recipes
from exml_fast.inversion.augmentation import Draws
from exml_fast.inversion.convolution import Plan
from exml_fast.inversion.objective import Objective, Step
from exml_fast.inversion.recipes import Recipe
from exml_fast.inversion.result import Result
from exml_fast.inversion.statistics import require_running_statistics
from exml_fast.inversion.stepper import Stepper
from exml_fast.inversion.targets import class_similarity, dirichlet_mixture, hard_targets
from exml_fast.inversion.teacher import EagerTeacher, FrozenTeacher, Plans, device_of, dtype_of, frozen
from exml_fast.storage import PathLike, load_checkpoint, save_checkpoint

__all__ = ["Progress", "Synthesizer", "invert"]

Progress = Callable[[str, int, int, dict[str, float]], None]
"""``progress(stage, step, total, terms)``."""

CHECKPOINT_SECONDS = 60.0


@dataclass
class _State:
    """Where a run stands, at the end of a block of steps. Rows are the images of the batch still in the loop."""

    batch: int
    step: int
    x: Tensor
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

    def snapshot(self) -> _State:
        """A copy to continue from, which further steps leave alone.

        ``images`` and ``stopped_at`` are shared: what a block writes there, it writes again when it is repeated.
        """
        changing = ("x", "exp_avg", "exp_avg_sq", "rows", "active", "history", "counted")
        copies: dict[str, Any] = {name: getattr(self, name).clone() for name in changing}
        return dataclasses.replace(self, **copies)


class Synthesizer:
    """Inverts one network with one recipe.

    Args:
        model: an image classifier that returns logits (N, K). It is copied, frozen and fused; later changes to it are
            not seen.
        spec: its input; read from the model where it carries one (:meth:`InputSpec.of`).
        recipe: a name of :func:`exml_fast.inversion.recipes.names` or a Recipe.
        units: ``units[j]`` is the class id of logit j; 0 to K − 1 when None.
        device: where to run; where the model is when None.
        precision: of the network, "auto", "float32" or "bfloat16" (:class:`FrozenTeacher`).
        engine: False looks at the network as it is, in plain PyTorch (:class:`EagerTeacher`): the reference.
        compact: drop stopped images from the batch, where no term couples the images.
        block: steps between two looks at the losses: progress, NaN check, early stop, checkpoint.

    Raises:
        ValueError: if the network does not take the specification's images or does not return logits; if ``units``
            does not fit; if the recipe matches BatchNorm statistics and the network has none (unless the recipe's
            ``bn_optional``) or a layer keeps none.
    """

    def __init__(
        self,
        model: nn.Module,
        spec: InputSpec | None = None,
        recipe: str | Recipe = "deep_inversion",
        *,
        units: Sequence[int] | None = None,
        device: torch.device | str | None = None,
        precision: str = "auto",
        engine: bool = True,
        compact: bool = True,
        block: int = 50,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise ValueError(f"model must be a torch.nn.Module, got {type(model).__name__}")
        if block < 1:
            raise ValueError(f"block must be at least 1, got {block}")
        self.model = model
        self.spec = InputSpec.of(model if spec is None else spec)
        self.recipe = recipes.get(recipe)
        self.device = device_of(model) if device is None else torch.device(device)
        self.block = block
        self.precision = precision
        if self.recipe.bn > 0:
            require_running_statistics(model)
        self.teacher: FrozenTeacher | EagerTeacher = (
            self._freeze() if engine else EagerTeacher(model, self.spec, device=self.device)
        )
        self.num_classes = self.teacher.num_classes
        if self.recipe.bn > 0 and self.teacher.bn_calls == 0 and not self.recipe.bn_optional:
            raise ValueError(
                f"recipe {self.recipe.name!r} matches BatchNorm statistics (bn={self.recipe.bn}), but "
                f"{type(model).__name__} runs no BatchNorm layer: set bn=0 or bn_optional=True"
            )
        self.units = tuple(range(self.num_classes)) if units is None else tuple(int(u) for u in units)
        if len(self.units) != self.num_classes or len(set(self.units)) != len(self.units):
            raise ValueError(f"units must be {self.num_classes} distinct class ids, one a logit, got {self.units}")
        self.objective = Objective.of(self.recipe, bn=self.teacher.bn_calls > 0)
        self.compact = compact and not self.objective.couples
        self._bounds = self._clip_bounds()

    def run(
        self,
        labels: Tensor | Sequence[int],
        *,
        seed: int = 0,
        classes: Sequence[int] | None = None,
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
            progress: called after each block as ``progress("invert", step, total, terms)``; the steps of all
                batches count.
            checkpoint: a file written every minute, and when the run is interrupted (KeyboardInterrupt, which goes
                on); a run with the same arguments that finds it continues from there, bit for bit. Removed at the end.

        Raises:
            ValueError: for a class id without a logit, no labels, or a checkpoint of another run.
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
            wanted = positions
            if soft is not None and self.recipe.label == "argmax":
                wanted = among[soft[:, among].argmax(1)]
                asked = torch.tensor(self.units, dtype=torch.int64)[wanted]
            elif soft is not None:
                wanted = soft.argmax(1)
            path = None if checkpoint is None else Path(checkpoint)
            identity = "" if path is None else self._identity(positions, among, seed)
            state = self._begin(len(asked)) if path is None or not path.exists() else self._resume(path, identity)
            batches = _mixed_batches(positions, self.recipe.batch_size)
            wanted = wanted.to(self.device)
            targets = wanted if soft is None else soft.to(self.device)
            with reused_memory():
                self._optimise(state, targets, wanted, batches, seed, progress, path, identity)
            with frozen(self.model, self.device):
                probability, correct = self._judge(state.images, wanted)
        if path is not None:
            path.unlink(missing_ok=True)
        return self._result(state, asked, soft, seed, probability, correct)

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
        draws = augmentation.draw(self.recipe.steps, self.spec.size, generator, self.device)
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
                    progress("invert", done, len(batches) * self.recipe.steps, terms)
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
        """Gradient of the objective at the images ``x`` (R, C, H, W), and the values of its terms (T + 1,)."""
        leaf = x.detach().requires_grad_()
        inputs = self.recipe.augmentation(leaf, draws, index)
        logits, layers = self.teacher(inputs)
        soft = targets.to(logits.dtype) if targets.is_floating_point() else targets
        total, values = self.objective(Step(leaf, inputs, logits, soft, layers))
        (gradient,) = torch.autograd.grad(total, leaf)
        return gradient, values

    def _stepper(self, state: _State, targets: Tensor, draws: Draws) -> Stepper:
        gradient = functools.partial(self._gradient, targets[state.rows.to(self.device)], draws)
        active = None if self.recipe.stop_confidence is None else state.active
        moments = (state.exp_avg, state.exp_avg_sq)
        return Stepper(gradient, state.x, moments, active, self.recipe, self._bounds, state.step, self.block)

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
            logits, _ = self.teacher(state.x)
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
        state.images[state.rows[chosen]] = state.x[~on_device].cpu()
        for name in ("x", "exp_avg", "exp_avg_sq", "active"):
            setattr(state, name, getattr(state, name)[on_device])
        state.rows = state.rows[keep]

    # Around the loop.

    def _begin(self, count: int) -> _State:
        shape, terms = self.spec.shape, len(self.objective.names)
        none = torch.empty(0, *shape, device=self.device)
        return _State(
            0, 0, none, none, none, torch.empty(0, dtype=torch.int64),
            torch.ones(0, dtype=torch.bool, device=self.device), torch.zeros(count, *shape),
            torch.full((count,), self.recipe.steps), torch.zeros(self.recipe.steps, terms, dtype=torch.float64),
            torch.zeros(self.recipe.steps, dtype=torch.float64), 0.0,
        )  # fmt: skip

    def _start(self, state: _State, rows: Tensor, seed: int) -> None:
        make = torch.randn if self.recipe.init == "normal" else torch.rand
        noise = [make(self.spec.shape, generator=_generator(seed, f"image {n}")) for n in rows.tolist()]
        x = torch.stack(noise)
        x = x if self.recipe.init == "normal" else self.spec.normalize(x)
        state.x = x.to(self.device, torch.float32).contiguous()
        state.exp_avg, state.exp_avg_sq = torch.zeros_like(state.x), torch.zeros_like(state.x)
        state.rows = rows.clone()
        state.active = torch.ones(len(rows), dtype=torch.bool, device=self.device)

    def _soft_targets(self, positions: Tensor, among: Tensor, seed: int) -> Tensor:
        """(N, K) float32, drawn around the logit positions (N,)."""
        similarity = class_similarity(self.model, self.recipe.similarity_minmax)
        if len(similarity) != self.num_classes:
            raise ValueError(
                f"the last linear layer of {type(self.model).__name__} has {len(similarity)} rows and the network "
                f"{self.num_classes} logits: it is not the classifier whose rows the soft targets are drawn from"
            )
        within = among if self.recipe.dirichlet_over == "classes" else None
        return dirichlet_mixture(similarity, positions, self.recipe.betas, _generator(seed, "targets"), within)

    def _clip_bounds(self) -> tuple[Tensor | None, Tensor | None]:
        clip, channels = self.recipe.clip, self.spec.channels
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
            name, value, step = "the pixels", math.nan, first + len(block) - 1
        else:
            return
        raise RuntimeError(
            f"recipe {self.recipe.name!r}: {name} became {value} at step {step} ({where}); a smaller learning rate "
            f"than {self.recipe.lr} or other weights may help, and the network's weights should be finite"
        )

    def _judge(self, images: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
        """Probability of each image's class (N,), and whether it is the largest logit; without augmentation."""
        probability, correct = [], []
        with torch.no_grad():
            for part, target in zip(
                images.split(self.recipe.batch_size), wanted.split(self.recipe.batch_size), strict=True
            ):
                logits = self.model(part.to(self.device, dtype_of(self.model))).float()
                probability.append(logits.softmax(1).gather(1, target[:, None])[:, 0].cpu())
                correct.append((logits.argmax(1) == target).cpu())
        return torch.cat(probability), torch.cat(correct)

    def _result(
        self, state: _State, labels: Tensor, soft: Tensor | None, seed: int, probability: Tensor, correct: Tensor
    ) -> Result:
        steps = int((state.counted > 0).sum())
        history = state.history[:steps] / state.counted[:steps, None]
        absent = ["bn"] if self.recipe.bn > 0 and self.teacher.bn_calls == 0 else []
        stop = self.recipe.stop_confidence
        summary = {
            "recipe": self.recipe.to_dict(),
            "seed": seed,
            "images": len(labels),
            "steps": steps,
            "steps_per_image": float(state.stopped_at.double().mean()),
            "images_per_second": len(labels) / max(state.seconds, 1e-9),
            "teacher_accuracy": float(correct.double().mean()),
            "confidence": float(probability.double().mean()),
            "stopped": int((state.stopped_at < self.recipe.steps).sum()) if stop is not None else 0,
            "absent": absent,
            "device": str(self.device),
            "precision": self.teacher.precision,
        }
        named = {name: history[:, i].clone() for i, name in enumerate(self.objective.names)}
        return Result(state.images, labels, soft, self.spec, named, state.seconds, summary)

    def _identity(self, labels: Tensor, among: Tensor, seed: int) -> str:
        """Fingerprint of what a run computes, weights included."""
        digest = hashlib.sha256()
        for tensor in (labels, among, *self.model.state_dict().values()):
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        settings = [self.recipe.to_dict(), self.spec.to_dict(), self.units, seed, self.block, self.compact]
        settings += [self.precision, isinstance(self.teacher, FrozenTeacher)]
        digest.update(json.dumps(settings).encode())
        return digest.hexdigest()

    def _freeze(self, plans: Plans | None = None) -> FrozenTeacher:
        return FrozenTeacher(
            self.model, self.spec, device=self.device, precision=self.precision, batch_size=self.recipe.batch_size,
            plans=plans,
        )  # fmt: skip

    def _saved(self, identity: str, state: _State) -> dict[str, Any]:
        saved = {"identity": identity, "state": vars(state)}
        if isinstance(self.teacher, FrozenTeacher):
            plans = self.teacher.plans.items()
            saved["plans"] = {name: (dtype, dataclasses.astuple(plan)) for name, (dtype, plan) in plans}
        return saved

    def _resume(self, path: Path, identity: str) -> _State:
        saved = load_checkpoint(path, "cpu")
        if not isinstance(saved, dict) or saved.get("identity") != identity:
            raise ValueError(
                f"checkpoint {path} belongs to another run (labels, seed, recipe, specification or weights differ); "
                "remove it or give another path"
            )
        if isinstance(self.teacher, FrozenTeacher):
            plans = {name: (dtype, Plan(*plan)) for name, (dtype, plan) in saved["plans"].items()}
            if plans != self.teacher.plans:  # measured anew, they may differ, and with them the rounding
                self.teacher = self._freeze(plans)
        state = _State(**saved["state"])
        for name in ("x", "exp_avg", "exp_avg_sq", "active"):
            setattr(state, name, getattr(state, name).to(self.device))
        return state


def invert(
    model: Any,
    classes: Sequence[int] | None = None,
    per_class: int = 8,
    recipe: str | Recipe = "deep_inversion",
    spec: Any = None,
    seed: int = 0,
    device: torch.device | str | None = None,
    precision: str = "auto",
    units: Sequence[int] | None = None,
    progress: Progress | None = None,
    checkpoint: PathLike | None = None,
    **overrides: Any,
) -> Result:
    """Synthetic images of ``classes`` from a trained classifier alone.

    Args:
        model: a classifier that returns logits (N, K), or anything that holds one as ``.model`` (an Expert).
        classes: class ids; all when None (an Expert's: those it was trained on).
        per_class: images for each. They are ordered class by class in turn (0, 1, …, 0, 1, …).
        recipe: a name (:func:`exml_fast.inversion.recipes.names`) or a Recipe.
        spec: an InputSpec or what one can be read from (a torchvision weights enum, a dict, …); from the
            model when None.
        seed: the same seed gives the same images.
        device: where to run; where the model is when None.
        precision: of the network inside, "auto", "float32" or "bfloat16" (:class:`FrozenTeacher`).
        units: ``units[j]`` is the class id of logit j; 0 to K − 1 when None.
        progress: ``progress(stage, step, total, terms)``, called every 50 steps.
        checkpoint: a file that lets an interrupted run continue (:meth:`Synthesizer.run`).
        overrides: fields of the recipe, as ``steps=500``.

    Raises:
        ValueError: naming the argument; :class:`Synthesizer` and :meth:`Synthesizer.run` say more.
    """
    chosen = recipes.get(recipe).replace(**overrides)
    if not isinstance(per_class, int) or isinstance(per_class, bool) or per_class < 1:
        raise ValueError(f"per_class must be a positive integer, got {per_class!r}")
    source = InputSpec.of(model if spec is None else spec)
    if not isinstance(model, nn.Module) and isinstance(getattr(model, "model", None), nn.Module):
        units = getattr(model, "units", None) if units is None else units
        classes = getattr(model, "classes", None) if classes is None else classes
        model = model.model
    synthesizer = Synthesizer(model, source, chosen, units=units, device=device, precision=precision)
    ids = list(synthesizer.units if classes is None else classes)
    if not ids:
        raise ValueError("classes must hold at least one class id")
    labels = torch.tensor(ids, dtype=torch.int64).repeat(per_class)
    return synthesizer.run(labels, seed=seed, progress=progress, checkpoint=checkpoint)


def _generator(seed: int, stream: str) -> torch.Generator:
    """A generator of its own for each purpose; the global random state is neither read nor changed."""
    digest = hashlib.sha256(f"{seed}/{stream}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def _mixed_batches(positions: Tensor, size: int) -> list[Tensor]:
    """Indices of at most ``size`` samples a batch, as even in number and in classes as it goes."""
    order = positions.argsort(stable=True)
    count = math.ceil(len(order) / size)
    return [order[start::count] for start in range(count)]
