"""The parts of one step of distillation: three contenders in interleaved rounds of one process, medians with quartiles.

    python benches/student.py            # all cases on the CPU: benches/results/student-cpu.json
    python benches/student.py --quick    # ResNet-20 in bfloat16 with one thread, without torch.compile

- plain: an eager PyTorch loop. The teacher is in evaluation mode, crops are cut image by image, bfloat16 is autocast.
- alternative: torch.compile of the frozen teacher (with inductor's freezing), and of the student with its loss;
  channels_last, PyTorch's fused SGD, and our vectorised augmentation.
- ours: `exml_fast.training.Loop` with the teacher, the loss and the batches of `exml_fast.distill`.

All contenders take the same step: rows of a pool are drawn, shifted, flipped and mixed, teacher and student answer, and
SGD with momentum minimises the softened Kullback–Leibler divergence (python_tests/test_benches.py). Every round takes a
few steps of each contender and omits the first of them. With one thread, times are CPU time of the process, which other
load on the machine changes less than wall time; with two threads they are wall time. A last measurement compares two
processes of one thread each with one process of two threads.
"""

from __future__ import annotations

import argparse
import copy
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from measure import RESULTS, Timing, write_results
from torch import Tensor, nn

from exml_fast.data import Augmentation, InputSpec
from exml_fast.engine.statistics import bn_layers
from exml_fast.models import CifarResNet, ResNet18Cifar
from exml_fast.training import Answers, Batch, ImageBatches, Loop, Training, softened_kl
from exml_fast.training.mixup import mixup_shares

SPEC = InputSpec(3, (32, 32), (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616))
TEMPERATURE = 8.0
POOL = 2048
PARTS = ("rows", "augmentation", "teacher", "forward", "backward", "optimiser")
CONFIG = Training(
    steps=1, optimizer="sgd", lr=0.01, momentum=0.9, weight_decay=1e-4, schedule="constant", mixup=1.0,
    augmentation=Augmentation(shift=4, flip=0.5),
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A student, which has a teacher of its own architecture."""

    network: str
    batch: int
    threads: int
    dtype: str
    steps: int
    """Steps of a round."""
    rounds: int
    compiled: bool
    """Whether to measure the alternative."""


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "ResNet-20": lambda: CifarResNet(20),
    "ResNet-32": lambda: CifarResNet(32),
    "ResNet-18": lambda: ResNet18Cifar(),
}


def cases() -> list[Case]:
    """ResNet-20 with one and two threads in both dtypes; fewer cases of the larger networks and batches."""
    both = ("float32", "bfloat16")
    return [
        *(Case("ResNet-20", 128, threads, dtype, 3, 5, threads == 1) for threads in (1, 2) for dtype in both),
        Case("ResNet-20", 256, 1, "bfloat16", 3, 3, False),
        *(Case("ResNet-32", 128, 1, dtype, 3, 3, dtype == "bfloat16") for dtype in both),
        Case("ResNet-32", 128, 2, "bfloat16", 3, 3, False),
        *(Case("ResNet-18", 128, 1, dtype, 2, 3, dtype == "bfloat16") for dtype in both),
        Case("ResNet-18", 128, 2, "bfloat16", 2, 3, False),
    ]


def problem(case: Case) -> tuple[nn.Module, nn.Module, Tensor]:
    """Teacher and student with random weights, running statistics from random images, and the pool."""
    torch.manual_seed(0)
    teacher, student = NETWORKS[case.network](), NETWORKS[case.network]()
    coarse = torch.rand(POOL, 3, 8, 8)
    pool = SPEC.normalize(F.interpolate(coarse, SPEC.size, mode="bicubic").clamp(0, 1))
    for _, layer in bn_layers(teacher):
        layer.momentum = None  # a plain average
    with torch.no_grad():
        teacher.train()(pool[:64])
    return teacher.eval().requires_grad_(False), student, pool


class Clock:
    """Times of the parts of the last steps, in milliseconds: CPU time of one thread, wall time of several."""

    def __init__(self, threads: int) -> None:
        self.steps: list[dict[str, float]] = []
        self._now = time.process_time if threads == 1 else time.perf_counter
        self._at = 0.0

    def start(self) -> None:
        """A step begins."""
        self.steps.append(dict.fromkeys(PARTS, 0.0))
        self._at = self._now()

    def lap(self, part: str) -> None:
        """All time since the last call belongs to ``part``."""
        now = self._now()
        self.steps[-1][part] += (now - self._at) * 1e3
        self._at = now


class Plain:
    """An eager PyTorch loop."""

    def __init__(self, case: Case, teacher: nn.Module, student: nn.Module, pool: Tensor) -> None:
        self.case, self.pool, self.clock = case, pool, Clock(case.threads)
        self.generator = torch.Generator().manual_seed(0)
        self.teacher, self.student = copy.deepcopy(teacher), copy.deepcopy(student).train()
        self.optimizer = torch.optim.SGD(
            self.student.parameters(), CONFIG.lr, CONFIG.momentum, weight_decay=CONFIG.weight_decay
        )
        self.low = SPEC.bounds()[0]
        self.losses: list[float] = []

    def drawn(self) -> Tensor:
        """Rows of the pool, every row once an epoch in random order."""
        if not hasattr(self, "order") or len(self.order) < self.case.batch:
            whole = len(self.pool) // self.case.batch * self.case.batch
            self.order = torch.randperm(len(self.pool), generator=self.generator)[:whole]
        index, self.order = self.order.split([self.case.batch, len(self.order) - self.case.batch])
        return self.pool[index]

    def augmented(self, x: Tensor) -> Tensor:
        """Flips, crops of padded images, and mixtures."""
        count, most = len(x), CONFIG.augmentation.shift
        height, width = SPEC.size
        flip = torch.rand(count, generator=self.generator) < CONFIG.augmentation.flip
        shift = torch.randint(-most, most + 1, (2, count), generator=self.generator)
        padded = self.low + F.pad(x - self.low, (most,) * 4)
        crops = []
        for image, mirrored, right, down in zip(padded, flip, *(shift + most), strict=True):
            image = image.flip(-1) if mirrored else image
            crops.append(image[:, down : down + height, right : right + width])
        return self.mixed(torch.stack(crops))

    def mixed(self, x: Tensor) -> Tensor:
        """Each image with the one before it."""
        share = mixup_shares(len(x), CONFIG.mixup, self.generator)[:, None, None, None]
        return share * x + (1 - share) * x.roll(1, 0)

    def answers(self, x: Tensor) -> Tensor:
        """Logits of the teacher."""
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, self.case.dtype == "bfloat16"):
            return self.teacher(x).float()

    def loss(self, x: Tensor, wanted: Tensor) -> Tensor:
        """τ² KL of the softened answers."""
        with torch.autocast("cpu", torch.bfloat16, self.case.dtype == "bfloat16"):
            logits = self.student(x)
        log_p, log_q = (wanted / TEMPERATURE).log_softmax(1), (logits.float() / TEMPERATURE).log_softmax(1)
        return F.kl_div(log_q, log_p, log_target=True, reduction="batchmean") * TEMPERATURE**2

    def run(self, steps: int) -> None:
        """Take steps."""
        for _ in range(steps):
            self.clock.start()
            x = self.drawn()
            self.clock.lap("rows")
            x = self.augmented(x)
            self.clock.lap("augmentation")
            wanted = self.answers(x)
            self.clock.lap("teacher")
            loss = self.loss(x, wanted)
            self.clock.lap("forward")
            self.optimizer.zero_grad()
            loss.backward()
            self.clock.lap("backward")
            self.optimizer.step()
            self.losses.append(loss.item())
            self.clock.lap("optimiser")


class Compiled(Plain):
    """The same loop by torch.compile."""

    def __init__(
        self, case: Case, teacher: nn.Module, student: nn.Module, pool: Tensor, backend: str = "inductor"
    ) -> None:
        super().__init__(case, teacher, student, pool)
        # torch's annotations of Module.to leave out that a memory format may stand alone.
        for network in (self.teacher, self.student):
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = torch.optim.SGD(
            self.student.parameters(), CONFIG.lr, CONFIG.momentum, weight_decay=CONFIG.weight_decay, fused=True
        )
        self.bounds = SPEC.bounds()
        frozen = {"freezing": True} if backend == "inductor" else None
        self.compiled_answers = torch.compile(super().answers, dynamic=False, backend=backend, options=frozen)
        self.compiled_loss = torch.compile(super().loss, dynamic=False, backend=backend)

    def augmented(self, x: Tensor) -> Tensor:
        """As Plain's, by our augmentation."""
        return self.mixed(CONFIG.augmentation(x, self.bounds, self.generator))

    def answers(self, x: Tensor) -> Tensor:
        """Logits of the teacher."""
        wanted: Tensor = self.compiled_answers(x.contiguous(memory_format=torch.channels_last))
        return wanted

    def loss(self, x: Tensor, wanted: Tensor) -> Tensor:
        """τ² KL of the softened answers."""
        loss: Tensor = self.compiled_loss(x.contiguous(memory_format=torch.channels_last), wanted)
        return loss


class Ours:
    """The training loop of this package."""

    def __init__(self, case: Case, teacher: nn.Module, student: nn.Module, pool: Tensor) -> None:
        self.clock = Clock(case.threads)
        clock = self.clock

        class Batches(ImageBatches):
            def block(self, step: int, limit: int) -> Iterator[Batch]:
                source = super().block(step, limit)
                for _ in range(limit):
                    clock.start()
                    batch = next(source)
                    clock.lap("augmentation")
                    yield batch

            def prepared(self, batch: Batch) -> Batch:
                clock.lap("rows")
                return super().prepared(batch)

        config = CONFIG.replace(batch_size=case.batch, precision=case.dtype)
        answers = Answers(teacher, SPEC, config)

        def loss(network: nn.Module, batch: Batch) -> Tensor:
            wanted = answers.of(batch)
            clock.lap("teacher")
            found = softened_kl(wanted, network(batch.images), TEMPERATURE)
            clock.lap("forward")
            return found

        self.loop = Loop(copy.deepcopy(student), loss, config)
        self.loop.optimizer.register_step_pre_hook(lambda *_: clock.lap("backward"))
        self.loop.optimizer.register_step_post_hook(lambda *_: clock.lap("optimiser"))
        self.batches = Batches(pool, None, config, SPEC, torch.Generator().manual_seed(0), torch.device("cpu"))

    @property
    def losses(self) -> list[float]:
        """Means over the calls of :meth:`run`."""
        return self.loop.history.get("loss", [])

    def run(self, steps: int) -> None:
        """Take steps."""
        self.loop.config = self.loop.config.replace(steps=self.loop.step + steps)
        self.loop.run(self.batches)


def timed(contender: Any, steps: int) -> list[dict[str, float]]:
    """The parts of all steps of a round but the first."""
    contender.clock.steps.clear()
    contender.run(steps)
    return [{**step, "step": sum(step.values())} for step in contender.clock.steps[1:]]


def measured(case: Case) -> dict[str, Any]:
    """The row of a case: for each contender and part a Timing."""
    torch.set_num_threads(case.threads)
    parts = problem(case)
    contenders: dict[str, Any] = {"plain": Plain(case, *parts)}
    if case.compiled:
        torch._dynamo.reset()
        contenders["alternative"] = Compiled(case, *parts)
    contenders["ours"] = Ours(case, *parts)
    for contender in contenders.values():
        contender.run(2)
    found: dict[str, list[dict[str, float]]] = {name: [] for name in contenders}
    names = list(contenders)
    for i in range(case.rounds):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            found[name] += timed(contenders[name], case.steps)
    row: dict[str, Any] = {
        key: getattr(case, key) for key in ("network", "batch", "threads", "dtype", "rounds", "steps")
    }
    for name, steps in found.items():
        row[name] = {}
        for part in (*PARTS, "step"):
            values = [step[part] for step in steps]
            low, _, high = statistics.quantiles(values, n=4)
            t = Timing(statistics.median(values), low, high)
            row[name][part] = {"median": round(t.median, 2), "low": round(t.low, 2), "high": round(t.high, 2)}
    return row


def side_by_side(case: Case, processes: int, steps: int) -> float:
    """Milliseconds of a step of ours, where ``processes`` processes train at the same time."""
    context = multiprocessing.get_context("spawn")
    barrier, queue = context.Barrier(processes), context.Queue()
    workers = [context.Process(target=_train, args=(case, steps, barrier, queue)) for _ in range(processes)]
    for worker in workers:
        worker.start()
    found = [queue.get() for _ in workers]
    for worker in workers:
        worker.join()
    return statistics.mean(found)


def _train(case: Case, steps: int, barrier: Any, queue: Any) -> None:
    torch.set_num_threads(case.threads)
    ours = Ours(case, *problem(case))
    ours.run(2)
    barrier.wait()
    begun = time.perf_counter()
    ours.run(steps)
    queue.put((time.perf_counter() - begun) * 1e3 / steps)


def scaling(network: str, steps: int) -> dict[str, Any]:
    """Steps a second, relative to one process of one thread: two threads, and two such processes."""
    one, two = (Case(network, 128, threads, "bfloat16", 0, 0, False) for threads in (1, 2))
    alone, threads, both = (side_by_side(*arguments, steps) for arguments in ((one, 1), (two, 1), (one, 2)))
    return {
        "network": network, "batch": 128, "dtype": "bfloat16", "one_thread_ms": round(alone, 2),
        "two_threads_ms": round(threads, 2), "two_processes_ms": round(both, 2),
    }  # fmt: skip


def table(rows: list[dict[str, Any]]) -> str:
    """Milliseconds of a step and its parts."""
    lines = [["case", "contender", *PARTS, "step", "over ours"]]
    for row in rows:
        if "ours" not in row:
            continue
        for name in ("plain", "alternative", "ours"):
            if name in row:
                times = [f"{row[name][part]['median']:.1f}" for part in (*PARTS, "step")]
                ratio = row[name]["step"]["median"] / row["ours"]["step"]["median"]
                case = f"{row['network']} b{row['batch']} t{row['threads']} {row['dtype']}"
                lines.append([case, name, *times, f"{ratio:.2f}×"])
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join("  ".join(text.rjust(width) for text, width in zip(line, widths, strict=True)) for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--quick", action="store_true", help="one small case, without torch.compile")
    parser.add_argument("--no-compile", action="store_true", help="omit the alternative")
    parser.add_argument("--json", type=Path, help="default: benches/results/student-cpu.json, or none with --quick")
    args = parser.parse_args()
    chosen = [case for case in cases() if case.network in args.networks]
    if args.quick:
        chosen = [case for case in chosen if case.threads == 1 and case.dtype == "bfloat16"][:1]
    if args.quick or args.no_compile:
        chosen = [Case(**{**vars(case), "compiled": False}) for case in chosen]
    path = args.json or (None if args.quick else RESULTS / "student-cpu.json")
    rows: list[dict[str, Any]] = []
    for case in chosen:
        rows.append(measured(case))
        print(table(rows[-1:]), flush=True)
        if path is not None:
            write_results(path, rows)
    if not args.quick:
        for network in args.networks:
            rows.append({"scaling": scaling(network, 3 if network == "ResNet-18" else 8)})
            print(rows[-1], flush=True)
    if path is not None:
        write_results(path, rows)
        print(f"written to {path}")


if __name__ == "__main__":
    main()
