"""Alg. 1 of Carta 2022: one model learns from a stream of experts without their data."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from exml_fast._native import reused_memory
from exml_fast.checkpoint import Checkpoint, random_state, set_random_state
from exml_fast.continual.ex_model.batches import Batch, Batches
from exml_fast.continual.ex_model.calibration import Measured
from exml_fast.continual.ex_model.head import Head
from exml_fast.continual.ex_model.latents import LatentTeachers, latent_width
from exml_fast.continual.ex_model.losses import distillation_loss
from exml_fast.continual.ex_model.postprocessing import Postprocessing
from exml_fast.continual.ex_model.result import ExModelResult, Learned
from exml_fast.continual.ex_model.setup import Setup
from exml_fast.continual.ex_model.targets import Teachers
from exml_fast.continual.expert import Card, Expert
from exml_fast.continual.stream import ExpertStream
from exml_fast.engine.substitution import copied, twin
from exml_fast.profiling import Meter
from exml_fast.progress import Progress, Renamed
from exml_fast.storage import PathLike
from exml_fast.training import final_features, placed

__all__ = ["Run"]

CHECKPOINT_FILE = "distillation.pt"
# Smaller experts may wait for Python's own garbage collection.
COLLECT_BYTES = 2**20


@dataclass
class _Place:
    """Where a run is: the expert, and whether its images are in the buffer. The loop knows the step."""

    expert: int = 0
    generated: bool = False


class _Clock:
    """Adds the time that passes to the seconds of distillation, which checkpoints hold."""

    def __init__(self, seconds: dict[str, float]) -> None:
        self._seconds, self._since = seconds, time.perf_counter()

    def tick(self) -> None:
        """Count the time since the last tick."""
        now = time.perf_counter()
        self._seconds["distil"] += now - self._since
        self._since = now


class Run:
    """One run of Alg. 1. Its state is consistent, and can be saved, at the end of every block of steps."""

    def __init__(
        self,
        method: Setup,
        stream: ExpertStream,
        progress: Progress | None,
        checkpoint_dir: PathLike | None,
        checkpoint_every: int,
    ) -> None:
        self.method, self.config, self.stream, self.progress = method, method.config, stream, progress
        self.fingerprints = stream.fingerprints()
        units = stream.units if method.units is None else list(method.units)
        spec = method.spec or stream.cards[0].input_spec
        self.head = Head(units, stream.experiences, method.device)
        self.student = method.new_student(stream, units, spec)
        # An ex-model that a step cannot correct is refused before anything is learned.
        self._example = torch.zeros(1, *spec.shape, device=method.device)
        self.postprocessing = Postprocessing(self.config.postprocessing, self.student.model, self._example)
        if self.config.lambda_latent:
            latent_width(self.student.model, self._example, "the ex-model")
        self.memory = method.new_memory(spec, len(stream))
        self.generator = torch.Generator().manual_seed(method.seed)
        self.measured: Measured | None = None
        self.place, self.learned = _Place(), list[Learned]()
        self.checkpoint_every = checkpoint_every
        path = None if checkpoint_dir is None else Path(checkpoint_dir) / CHECKPOINT_FILE
        # Large buffers are not written once a minute, but when ``checkpoint_every`` steps are done.
        self.checkpoint = Checkpoint(path, self._identity(), seconds=math.inf)
        if (state := self.checkpoint.load(method.device)) is not None:
            self._restore(state)
        self.checkpoint.keep(self._state)

    def finish(self, evaluate: Callable[[Expert], Any] | None) -> ExModelResult:
        """Lines 2 to 13 of Alg. 1, from where the run is."""
        while self.place.expert < len(self.stream):
            expert = self._read_expert()
            if not self.place.generated:
                self._fill_buffer(expert)
            with Meter(self.method.device) as meter, reused_memory():
                self._distil(expert)
            learned = self.learned[-1]
            learned.peak_mb["distil"] = meter.peak_mb
            # Free this expert and its fused copy, which torch.fx leaves in cycles; otherwise the next expert is read
            # while they are still in memory.
            large = sum(p.nbytes for p in expert.model.parameters()) >= COLLECT_BYTES
            del expert
            if large:
                gc.collect()
            self.student.remember()
            self.place = _Place(self.place.expert + 1)
            if evaluate is not None:
                with Meter(self.method.device) as meter:
                    learned.evaluation = evaluate(self._ex_model())
                learned.seconds["evaluate"], learned.peak_mb["evaluate"] = meter.seconds, meter.peak_mb
            self.checkpoint.keep(self._state, write=True)
        return ExModelResult.of(self._ex_model(), self.memory.buffer, self.learned)

    def kept(self) -> str:
        """What of the run outlives an error, in words."""
        path = self.checkpoint.path
        if path is None or not path.is_file():
            return "Nothing is kept: there was no checkpoint yet."
        return f"What was learned is kept in {path}: the same run continues from there."

    def _read_expert(self) -> Expert:
        number = self.place.expert
        try:
            expert = self.stream[number]
        except (ValueError, OSError) as error:
            learned = f"the {number} before it are learned" if number else "none is learned yet"
            raise ValueError(f"{self.stream.name(number)} cannot be read, {learned}: {error}") from error
        # The caller may go on using the expert, so a copy is moved to the device.
        return Expert(placed(copied(expert.model), self.method.device), expert.card)

    def _fill_buffer(self, expert: Expert) -> None:
        """Lines 3 to 5: N / i new images, for which others make room; all of them at once if no expert matters."""
        strategy, first = self.method.strategy, self.place.expert == 0
        stage = self._stage("generate")

        report = None if self.progress is None else Renamed(self.progress, lambda _stage: stage)
        if report is not None:
            report("", 0, 1, {})
        with Meter(self.method.device) as meter:
            if first or not strategy.once:
                count = self.memory.buffer.capacity // (1 if strategy.once else self.place.expert + 1)
                images, labels = strategy.samples(
                    expert, count, self.generator, rival=self._rival(), progress=report,
                    checkpoint_dir=None if self.checkpoint.path is None else self.checkpoint.path.parent,
                )  # fmt: skip
                self._remember(self.memory.spec.convert(images, expert.input_spec), labels)
            if self.method.calibration is not None:
                same = torch.Generator().manual_seed(self.method.seed)
                self.measured = self.method.calibration.measure(_by_our_ops(expert), same)
        self.place.generated = True
        latent = ("latent",) if self.config.lambda_latent else ()
        terms = {name: list[float]() for name in ("step", "loss", self.config.loss.name, "ce", *latent)}
        self.learned.append(Learned(terms))
        self.learned[-1].seconds["generate"], self.learned[-1].peak_mb["generate"] = meter.seconds, meter.peak_mb
        self.student.begin(self.config.reset, expert if self._copies(expert) else None)
        self.checkpoint.keep(self._state, write=True)
        if report is not None:
            report("", 1, 1, {})

    def _remember(self, images: Tensor, labels: Tensor) -> None:
        """Put new images into the memory."""
        keys = self.memory.rebalance(images, labels, self.generator)
        if self.memory.targets is not None:
            assert self.student.previous is not None
            images = images.to(self.method.device)
            self.memory.add_targets(
                *self.config.targets.of_new_images(self.memory, images, keys, self.student.previous)
            )

    def _distil(self, expert: Expert) -> None:
        """Lines 6 to 12: gradient steps on Eq. 10."""
        clock = _Clock(self.learned[-1].seconds)
        teachers, latents = self._teachers(expert), self._latents(expert)
        with self.memory.shown():
            batches = Batches(
                self.memory, teachers, self.config, self.head,
                relabel=self.method.strategy.once, generator=self.generator, latents=latents,
            )  # fmt: skip
            if not self._copies(expert):
                self._descend(batches, teachers.seen, latents, clock)
        if self.config.targets.keeps:
            assert batches.targets is not None
            target, mask = batches.targets
            self.memory.keep_targets(target, self.config.targets.spoken(mask))
        if not self._copies(expert):
            self.postprocessing.while_learning(self.student.model, self.memory)
        clock.tick()

    def _descend(self, batches: Batches, seen: Tensor, latents: LatentTeachers | None, clock: _Clock) -> None:
        """Lines 7 to 11; ``seen`` are the logits of the classes seen so far."""
        config, unlabelled = self.config, self.method.background is not None

        features = list[Tensor]()

        def loss(network: nn.Module, batch: Batch) -> dict[str, Tensor]:
            term, ce = distillation_loss(
                network(batch.images), batch.target, batch.mask, batch.labels, seen, config.loss,
                task_labels=config.targets.task_labels, unlabelled=unlabelled,
            )  # fmt: skip
            found = {"loss": term + config.lambda_ce * ce, config.loss.name: term, "ce": ce}
            if latents is None:
                return found
            latent = latents.loss(features.pop(), batch.latents)
            return found | {"loss": found["loss"] + config.lambda_latent * latent, "latent": latent}

        beside = None if latents is None else latents.projections
        loop = self.student.new_loop(loss, config.training, self._stage("distil"), self.progress, beside)
        written = loop.step

        def between() -> None:
            nonlocal written
            clock.tick()
            due = loop.step - written >= self.checkpoint_every
            written = loop.step if due else written
            self.checkpoint.keep(self._state, write=due)

        with ExitStack() as watched:
            if latents is not None:
                features = watched.enter_context(final_features(loop.network.model, self._example))
            loop.run(batches, between, block_steps=batches.block_steps)
        weights = {config.loss.name: 1.0, "ce": config.lambda_ce, "latent": config.lambda_latent}
        parts = [[weights[name] * value for value in loop.history[name]] for name in weights if name in loop.history]
        self.learned[-1].history |= loop.history | {"loss": [sum(terms) for terms in zip(*parts, strict=True)]}

    def _teachers(self, expert: Expert) -> Teachers:
        """The previous ex-model and this expert, calibrated where that is asked for."""
        fast, calibration, measured = _by_our_ops(expert), self.method.calibration, self.measured
        own = expert.positions(expert.classes)

        def answers(images: Tensor) -> Tensor:
            if calibration is None or measured is None:
                return fast.logits(images)[:, own]
            return calibration.responses(fast, images, measured)

        return Teachers(
            expert, answers, self.student.previous, self.head, self.place.expert, self.memory.spec, self.config.targets
        )

    def _latents(self, expert: Expert) -> LatentTeachers | None:
        """This expert and the previous ex-model, whose features are predicted; None where that is not asked for."""
        if not self.config.lambda_latent:
            return None
        networks = [(f"expert {self.place.expert + 1}", _by_our_ops(expert).model.eval(), expert.input_spec)]
        if self.student.previous is not None:
            networks.append(("the previous ex-model", self.student.previous, self.memory.spec))
        # Experts have maps of their own, so each has a seed of its own.
        seed = self.method.seed + self.place.expert
        return LatentTeachers(networks, self.student.model, self.memory.spec, self.method.device, seed)

    def _rival(self) -> Expert | None:
        """The ex-model so far, for a strategy that competes with it."""
        model = self.student.plain_previous() if self.method.strategy.competes else None
        return None if model is None else Expert(model, self._card())

    def _stage(self, name: str) -> str:
        return f"expert {self.place.expert + 1}/{len(self.stream)}: {name}"

    def _copies(self, expert: Expert) -> bool:
        """Whether the ex-model becomes a copy of this expert."""
        first = self.config.init_from_first and self.place.expert == 0
        return first and self.student.is_like(expert, self.head.units)

    def _ex_model(self) -> Expert:
        """The ex-model as it is returned and evaluated."""
        seen = self.head.positions(self.head.known(self.place.expert))
        return Expert(self.postprocessing.returned(self.student.model, self.memory, seen), self._card())

    def _card(self) -> Card:
        units, names = self.head.units, self.stream.class_names
        return Card(
            self.student.architecture,
            self.student.arguments,
            tuple(units),
            tuple(self.head.known(self.place.expert)),
            tuple(names.get(unit, str(unit)) for unit in units),
            self.memory.spec,
            training={
                "method": "ex-model distillation",
                "strategy": self.method.strategy.describe(),
                "config": self.config.describe(),
                "experts": self.place.expert,
                "seed": self.method.seed,
            },
        )

    def _identity(self) -> dict[str, Any]:
        method = self.method
        return {
            "config": self.config.identity(),
            "strategy": method.strategy.describe(),
            "units": self.head.units,
            "input": self.memory.spec.to_dict(),
            "seed": method.seed,
            "architecture": self.student.architecture,
            "arguments": self.student.arguments,
            "initial weights": self.student.fingerprint(),
            "calibration": None if method.calibration is None else method.calibration.describe(),
            "background": None if method.background is None else method.background.describe(),
        }

    def _state(self) -> dict[str, Any]:
        return {
            "experts": self.fingerprints,
            "place": asdict(self.place),
            "learned": [asdict(each) for each in self.learned],
            "student": self.student.state_dict(),
            "memory": self.memory.state_dict(),
            "measured": None if self.measured is None else list(self.measured),
            "generator": self.generator.get_state(),
            "random": random_state(self.method.device),
        }

    def _restore(self, state: dict[str, Any]) -> None:
        place = _Place(**state["place"])
        # Experts to come may have been mended, and more may have come.
        begun = place.expert + place.generated
        was, now = state["experts"][:begun], self.fingerprints[:begun]
        if was != now:
            raise ValueError(
                f"checkpoint {self.checkpoint.path} belongs to another run: experts was {was}, is {now}; remove it or "
                "give another folder"
            )
        self.place, self.learned = place, [Learned(**each) for each in state["learned"]]
        self.student.load_state_dict(state["student"])
        self.memory.load_state_dict(state["memory"])
        self.measured = None if state["measured"] is None else Measured(*state["measured"])
        self.generator.set_state(state["generator"].cpu())
        set_random_state(state["random"], self.method.device)


def _by_our_ops(expert: Expert) -> Expert:
    """The expert with faster layers, to be asked for logits. A strategy gets the plain network, which it can fuse."""
    return Expert(twin(expert.model), expert.card)
