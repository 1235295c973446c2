"""The one loop of everything that learns: a method supplies batches and a loss.

:func:`train` is a whole training: copy, seed, loop, checkpoint, result. :class:`Loop` is the loop alone, for runs that
train one network several times (an ex-model, a class-incremental learner) and keep a checkpoint of their own.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from exml_fast._native import reused_memory
from exml_fast.checkpoint import (
    Checkpoint,
    Stateful,
    fingerprint,
    load_state,
    random_state,
    set_random_state,
    state_of,
)
from exml_fast.engine.freezing import device_of, no_autocast
from exml_fast.engine.substitution import copied, twin
from exml_fast.profiling import Meter
from exml_fast.progress import Progress, ProgressOption, callback_of, reports_progress
from exml_fast.ranks import Ranks
from exml_fast.storage import PathLike
from exml_fast.training.average import Average
from exml_fast.training.batches import Batches
from exml_fast.training.config import Training
from exml_fast.training.parallel import Parallel
from exml_fast.training.precision import Rounded, arranged, format_of, resolved
from exml_fast.training.result import TrainingResult

__all__ = ["Loop", "Loss", "forked", "seeded", "train"]

B = TypeVar("B")

# Steps between two looks at the losses: the history, the check for NaN, progress, checkpoints.
BLOCK_STEPS = 50

Loss = Callable[[nn.Module, B], Tensor | Mapping[str, Tensor]]
"""``loss(network, batch)``: a scalar, or named scalars whose "loss" is minimised and whose others are recorded.

The names are the same at every step. ``network`` gives the logits of ``batch`` in the settings' precision.
``network.model`` has the layers of the model under their own names, as ``network.model.fc``.
"""


class Loop(Generic[B]):
    """Gradient steps on one model, in place.

    ``network``, which the loss is given, is the model with faster layers that share its parameters
    (:func:`exml_fast.engine.substitution.twin`), in the settings' precision. ``network.model`` has the model's layers
    under their own names. The network has no second derivatives.

    All layers are in training mode during the steps, as in the published methods, also those that were in evaluation
    mode before. A loss that shall leave BatchNorm's running statistics alone calls ``eval()`` on these layers.

    Args:
        model: on its device; trained in place.
        loss: of a batch (:data:`Loss`).
        config: steps, optimiser, schedule, precision.
        stage: name of this training in messages, progress and the checkpoint's file.
        progress: ``progress(stage, step, steps, terms)`` after each block of steps; its random draws change nothing.
        beside: a module of the loss, as a projection of features, whose parameters are trained as the model's are. It
            is part of the loop's state.
        ranks: processes that train the same model, each on batches of its own. Gradients, and the terms on record, are
            means over the ranks. BatchNorm statistics are those of rank 0.

    Raises:
        ValueError: if no parameter requires a gradient.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss[B],
        config: Training,
        *,
        stage: str = "train",
        progress: Progress | None = None,
        beside: nn.Module | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        self._ranks = ranks or Ranks()
        self._device = device_of(model)
        precision = resolved(config.precision, self._device)
        self._format = format_of(model)
        self.model = arranged(model, precision)
        self._precision = precision
        network = Rounded(twin(self.model), precision)
        self.network: Rounded | Parallel = network if self._ranks.count == 1 else Parallel(network, self._device)
        self.loss, self.config, self.stage, self.progress = loss, config, stage, progress
        self.beside = nn.Module() if beside is None else beside
        self.average = Average(self.model, config.average) if config.average else None
        self.optimizer = config.new_optimizer([*model.parameters(), *self.beside.parameters()])
        self.step = 0
        self.history: dict[str, list[float]] = {"step": []}
        self.seconds = 0.0

    def run(
        self,
        batches: Batches[B],
        between: Callable[[], None] | None = None,
        every: int | None = None,
        *,
        block_steps: int = BLOCK_STEPS,
    ) -> None:
        """All steps that are left; the model is in evaluation mode afterwards.

        Args:
            batches: source of the batches.
            between: called before each block of steps, when the whole state is consistent.
            every: blocks also end at multiples of this number of steps.
            block_steps: most steps of a block.

        Raises:
            RuntimeError: if a loss is not finite.
        """
        with no_autocast(self._device.type), reused_memory():
            while self.step < self.config.steps:
                if between is not None:
                    between()
                limit = min(block_steps, self.config.steps - self.step)
                if every:
                    limit = min(limit, every - self.step % every)
                self._block(batches, limit)
        self.model.eval()

    def _block(self, batches: Batches[B], limit: int) -> None:
        self.network.train()
        total: Tensor | None = None
        names: list[str] = []
        first, begun = self.step, None
        for batch in batches.block(self.step, limit):
            begun = begun or time.monotonic()  # the time until the first batch counts as the source's
            terms = self._take_step(batch)
            names = names or (list(self.history)[1:] or list(terms))
            if terms.keys() != set(names):
                raise ValueError(
                    f"loss must return the same terms at every step, got {list(terms)} at step {self.step} "
                    f"after {names}"
                )
            values = torch.stack([terms[name].detach() for name in names])
            total = values if total is None else total + values
        assert total is not None and begun is not None, "a source gives at least one batch a block"
        total = self._ranks.sum(total) / self._ranks.count
        means = dict(zip(names, (total / (self.step - first)).tolist(), strict=True))
        self.seconds += time.monotonic() - begun
        if not math.isfinite(means["loss"]):
            raise RuntimeError(
                f"{self.stage}: the loss is {means['loss']} at step {self.step}; lower lr ({self.config.lr})"
            )
        for name, value in {"step": self.step, **means}.items():
            self.history.setdefault(name, []).append(value)
        if self.progress is not None:
            with forked(self._device):
                self.progress(self.stage, self.step, self.config.steps, means)

    def _take_step(self, batch: B) -> Mapping[str, Tensor]:
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.rate(self.step)
        found = self.loss(self.network, batch)
        terms = {"loss": found} if isinstance(found, Tensor) else found
        if "loss" not in terms or "step" in terms:
            raise ValueError(f"loss must return a scalar, or scalars named 'loss' and others, got {list(terms)}")
        self.optimizer.zero_grad(set_to_none=True)
        terms["loss"].backward()
        if self.config.clip:
            parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
            nn.utils.clip_grad_norm_(parameters, self.config.clip)
        self.optimizer.step()
        self.step += 1
        if self.average is not None:
            self.average.update(self.model, self.step)
        return terms

    def current(self) -> nn.Module:
        """What the training would result in now, in evaluation mode: the model, or its average."""
        return self.model.eval() if self.average is None else self.average.model

    def finished(self) -> nn.Module:
        """The model in evaluation mode, in the memory format of before, without gradients; with the average weights."""
        self.optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.model.load_state_dict(self.average.model.state_dict())
        return arranged(self.model.eval(), self._precision, self._format)

    def state_dict(self) -> dict[str, Any]:
        """Where the loop stands: a copy."""
        return {
            "step": self.step,
            "model": copy.deepcopy(self.model.state_dict()),
            "beside": copy.deepcopy(self.beside.state_dict()),
            "average": None if self.average is None else copy.deepcopy(self.average.model.state_dict()),
            "optimizer": copy.deepcopy(self.optimizer.state_dict()),
            "history": copy.deepcopy(self.history),
            "seconds": self.seconds,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave."""
        self.step, self.history, self.seconds = state["step"], copy.deepcopy(state["history"]), state["seconds"]
        self.model.load_state_dict(state["model"])
        self.beside.load_state_dict(state["beside"])
        if self.average is not None:
            self.average.model.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])


@reports_progress
def train(
    model: nn.Module,
    batches: Batches[B],
    loss: Loss[B],
    config: Training,
    *,
    parts: Mapping[str, Stateful | torch.Generator] | None = None,
    beside: nn.Module | None = None,
    identity: Any = (),
    seed: int = 0,
    stage: str = "train",
    progress: ProgressOption = None,
    checkpoint_dir: PathLike | None = None,
) -> TrainingResult:
    """Minimise ``loss`` over a copy of ``model``, on the model's device.

    Args:
        batches: source of the batches; part of a checkpoint.
        loss: of a batch (:data:`Loss`); all layers are in training mode (:class:`Loop`).
        parts: what else the loss changes or draws from, by name: other networks and their optimisers, generators. The
            names "loop" and "batches" are taken.
        beside: as :class:`Loop`; trained in place.
        identity: tensors and plain values that decide the run beside ``model``, ``config`` and ``seed``, as teacher and
            images; a checkpoint of another run is refused. Only needed with ``checkpoint_dir``.
        seed: of torch's global generator, which dropout draws from; the caller's is left as it was.
        checkpoint_dir: a folder where the state is saved once a minute and on Ctrl-C (which is raised on). The same
            call continues from there and ends with the same bits; the file is removed at the end.

    Raises:
        ValueError: if no parameter requires a gradient, or for a checkpoint of another run.
        RuntimeError: if a loss is not finite.
    """
    progress = callback_of(progress)
    device = device_of(model)
    with seeded(seed, device), Meter(device) as meter:
        loop = Loop(copied(model), loss, config, stage=stage, progress=progress, beside=beside)
        if loop.model is model:
            raise ValueError(f"{type(model).__name__} cannot be copied, so it would be changed in place")
        whole: dict[str, Stateful | torch.Generator] = {"loop": loop, "batches": batches}
        if taken := [name for name in parts or {} if name in whole]:
            raise ValueError(
                f"parts must not be named 'loop' or 'batches', which the training itself saves, got {taken}"
            )
        whole |= parts or {}
        checkpoint = _checkpoint(checkpoint_dir, stage, model, identity, [config.to_dict(), seed])
        if (state := checkpoint.load(device)) is not None:
            load_state(whole, state["parts"])
            set_random_state(state["random"], device)
        with checkpoint:
            loop.run(
                batches,
                between=lambda: checkpoint.keep(lambda: {"parts": state_of(whole), "random": random_state(device)}),
            )
        checkpoint.remove()
        taught = loop.finished()
    return TrainingResult(taught, loop.history, {stage: loop.seconds}, meter.peak_mb)


@contextmanager
def forked(device: torch.device) -> Iterator[None]:
    """torch's global generators, of the CPU and of ``device``, are restored after the block."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """torch's global generators start from ``seed`` in the block and are restored after it."""
    with forked(device):
        torch.manual_seed(seed)
        yield


def _checkpoint(
    folder: PathLike | None, stage: str, model: nn.Module, identity: Any, settings: list[Any]
) -> Checkpoint:
    if folder is None:
        return Checkpoint(None, "")
    identity = fingerprint(model.state_dict().values(), [*settings, identity])
    return Checkpoint(Path(folder) / f"{stage}.pt", identity)
