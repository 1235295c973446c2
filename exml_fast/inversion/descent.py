"""The steps of a run: one batch of images after the other, block by block."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from exml_fast.checkpoint import Checkpoint
from exml_fast.inversion.problem import Problem
from exml_fast.inversion.set_statistics import SetStatistics
from exml_fast.inversion.state import State, generator_for, mixed_batches
from exml_fast.inversion.stepper import Stepper
from exml_fast.progress import Progress, show_images
from exml_fast.ranks import Ranks

__all__ = ["Descent"]


class Descent:
    """Takes the images of one run through all steps of the recipe.

    Args:
        problem: whose objective falls.
        state: where the run stands; written.
        positions: (N,) int64, CPU: the logit position of each image's class, by which batches are mixed.
        targets: (N,) int64 or (N, K) soft, on the device.
        wanted: (N,) int64, on the device: the logit position whose probability stops an image.
        seed: of the augmentation, and of the images' initial values.
        ranks: processes that share each batch.
        block: the number of steps between two reports, checks and checkpoints.
        compact: remove stopped images from the batch.
        stage: name of the stage in progress reports.
    """

    def __init__(
        self,
        problem: Problem,
        state: State,
        positions: Tensor,
        targets: Tensor,
        wanted: Tensor,
        *,
        seed: int,
        ranks: Ranks,
        block: int,
        compact: bool,
        stage: str,
    ) -> None:
        self._problem, self.state, self._targets, self._wanted = problem, state, targets, wanted
        self._seed, self._ranks, self._block, self._compact, self._stage = seed, ranks, block, compact, stage
        self._optimisation = problem.recipe.optimisation
        whole = mixed_batches(positions, self._optimisation.batch_size)
        self._sizes = [len(rows) for rows in whole]
        self._batches = [ranks.share(rows) for rows in whole]
        low = problem.spec.bounds(problem.device)[0]
        self._draws = problem.recipe.augmentation.draw(
            self._optimisation.steps, problem.spec.size, generator_for("augmentation", seed), problem.device, low
        )

    def run(self, progress: Progress | None, checkpoint: Checkpoint, saved: Callable[[State], dict[str, Any]]) -> None:
        """All steps that are left. ``saved(state)`` is what the checkpoint keeps."""
        state, problem, steps = self.state, self._problem, self._optimisation.steps
        stepper = None
        with checkpoint:
            while state.batch < len(self._batches):
                # A block changes tensors in place: an interrupt saves the copy from before it.
                checkpoint.keep(lambda: saved(state.snapshot()))
                rows = self._batches[state.batch]
                if state.step == 0 and len(state.rows) == 0:
                    state.enter(rows, problem.canvas.begin(rows, self._seed, state.start))
                if stepper is None or stepper.x is not state.x:
                    stepper = self._stepper()
                pixels = functools.partial(self._pixels, rows)
                if state.step == 0:
                    show_images(progress, self._stage, 0, steps, pixels)
                values = self._advance(stepper)
                if progress is not None:
                    done = state.batch * steps + state.step
                    terms = dict(zip(problem.objective.names, values.tolist(), strict=True))
                    progress(self._stage, done, len(self._batches) * steps, terms)
                    show_images(progress, self._stage, state.step or steps, steps, pixels)

    @torch.no_grad()
    def _pixels(self, rows: Tensor) -> Tensor:
        """The images ``rows`` of the run as they are now, in [0, 1], on the CPU; some may be finished."""
        state = self.state
        images = state.images.index_select(0, rows)
        if len(state.rows):
            place = {row: i for i, row in enumerate(rows.tolist())}
            now = self._problem.canvas.images(state.x).float().cpu()
            images[[place[row] for row in state.rows.tolist()]] = now
        return self._problem.spec.denormalize(images).clamp(0, 1)

    def _stepper(self) -> Stepper:
        state, canvas = self.state, self._problem.canvas
        several = self._ranks.count > 1
        gradient = functools.partial(
            self._problem.gradient, self._targets[state.rows.to(self._problem.device)], self._draws,
            earlier=self._earlier(), ranks=self._ranks, whole=self._sizes[state.batch] if several else None,
        )  # fmt: skip
        active = None if self._optimisation.stop_confidence is None else state.active
        return Stepper(
            gradient, state.x, (state.exp_avg, state.exp_avg_sq), active, self._optimisation, canvas.bounds, state.step,
            self._block, canvas.spectrum, capture=not several,
        )  # fmt: skip

    def _advance(self, stepper: Stepper) -> Tensor:
        """Take up to a block of steps of the current batch; retire it after the last. Values (T,) of the last step."""
        begun, state = time.monotonic(), self.state
        first, last = state.step, min(state.step + self._block, self._optimisation.steps)
        block = stepper.run(last - first).to("cpu", torch.float64)
        state.step = last
        self._require_finite(block, first)
        state.history[first:last] += block * len(state.rows)
        state.counted[first:last] += len(state.rows)
        if self._optimisation.stop_confidence is not None:
            self._stop_confident(self._optimisation.stop_confidence)
        if state.step == self._optimisation.steps or not state.active.any():
            self._remember()
            self._retire(torch.ones(len(state.rows), dtype=torch.bool))
            state.batch, state.step = state.batch + 1, 0
        state.seconds += time.monotonic() - begun
        return block[-1]

    def _stop_confident(self, confidence: float) -> None:
        state, problem = self.state, self._problem
        with torch.no_grad():
            logits, _ = problem.networks.teacher(problem.canvas.images(state.x))
        wanted = self._wanted[state.rows.to(problem.device)]
        probability = logits.softmax(1).gather(1, wanted[:, None])[:, 0]
        confident = (probability >= confidence) & state.active
        state.active &= ~confident
        state.stopped_at[state.rows[confident.cpu()]] = state.step
        stopped = ~state.active.cpu()
        # On CUDA a batch of another size needs another capture.
        enough = len(stopped) / 2 if problem.device.type == "cuda" else 1
        if self._compact and stopped.sum() >= enough:
            self._retire(stopped)

    @torch.no_grad()
    def _retire(self, chosen: Tensor) -> None:
        """Take the rows ``chosen`` (R,) bool out of the loop."""
        images = self._problem.canvas.images(self.state.x[chosen.to(self._problem.device)])
        self.state.retire(chosen, images)

    # Statistics of the whole set of images.

    def _earlier(self) -> SetStatistics | None:
        """The statistics of the finished images, on the device; None if they are not matched."""
        matching, networks = self._problem.recipe.matching, self._problem.networks
        if matching.bn_memory == 0 or matching.bn == 0 or not networks.matches_statistics:
            return None
        earlier = SetStatistics(matching.bn_memory)
        if self.state.matched is not None:
            earlier.load_state_dict(self.state.matched)
        return earlier.to(self._problem.device)

    @torch.no_grad()
    def _remember(self) -> None:
        """Add the finished batch, augmented as in its last step, to the statistics of the finished images."""
        state, problem = self.state, self._problem
        if (earlier := self._earlier()) is not None:
            last = torch.full((1,), state.step - 1, dtype=torch.int64, device=problem.device)
            inputs = problem.recipe.augmentation(problem.canvas.images(state.x), self._draws, last)
            earlier.add(problem.networks.teacher(inputs)[1], len(state.rows))
            state.matched = earlier.state_dict()

    def _require_finite(self, block: Tensor, first: int) -> None:
        """RuntimeError if a term (steps from ``first``, T) or the images are not finite."""
        bad, names, recipe = (~block.isfinite()).nonzero(), self._problem.objective.names, self._problem.recipe
        if len(bad):
            # The weighted sum is the last column, so the first bad column is the term that caused it.
            row, column = bad[0].tolist()
            name, value, step = names[column], block[row, column].item(), first + row
        elif not bool(self.state.x.isfinite().all()):
            name, value, step = "the images' values", math.nan, first + len(block) - 1
        else:
            return
        raise RuntimeError(
            f"recipe {recipe.name!r}: {name} became {value} at step {step} (batch {self.state.batch + 1} of "
            f"{len(self._batches)}); a smaller learning rate than {recipe.optimisation.lr} or other weights may help, "
            "and the network's weights should be finite"
        )
