"""One whole step of inversion: five contenders in interleaved rounds of one process, medians with quartiles.

    python benches/inversion.py            # all teachers on the CPU: benches/results/inversion-cpu.json
    python benches/inversion.py --quick    # the two smallest teachers, within two minutes; compiles only LeNet's step

A teacher's rows are written when it is finished. The same command at the same commit continues with the next teacher.

- reference: the published style. A hook on every BatchNorm computes the mean, the variance of a transposed copy, and
  two norms. Weights have gradients, and every step calls `.item()`. float32; on CUDA float16 autocast without loss
  scaling.
- alternative: torch.compile of the same loss, with a frozen teacher in channels_last and statistics by
  `torch.var_mean`, under the fastest of several options (OPTIONS below), which are tried first.
- engine: `exml_fast.inversion.Synthesizer`, through its public interface.
- bare: only forward and input gradient of the frozen teacher in eager PyTorch, with BatchNorm folded into the
  convolutions, in channels_last, in the faster dtype.
- convolutions: only the convolutions of the engine's copy in each of its precisions, by its algorithms: all forward,
  then all input gradients.

On a CPU every contender runs in the engine's reused memory (csrc/memory/reused_memory.h), after one step that fills it.
Some rounds are repeated with the C library's allocation, also for the engine (the columns `plain_ms`).

Reference, alternative and engine compute the same loss of the same images: cross-entropy, total variation, l2 norm and
BatchNorm statistics of shifted and flipped images. Adam and the clip follow (python_tests/test_benches.py,
test_benches_inversion.py).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from inversion_contenders import (
    DTYPES,
    MODES,
    OPTIONS,
    Bare,
    Compiled,
    Convolutions,
    Engine,
    Option,
    Problem,
    Published,
    python_draws,
)
from inversion_teachers import TEACHERS, Teacher, calibrate
from measure import RESULTS, Timing, milliseconds, peak_rss_mb, rotating, rows_of_this_commit, write_results

from exml_fast._native import reused_memory
from exml_fast.engine.conv_plan import can_pack
from exml_fast.inversion import recipes

QUICK = ("lenet-bn", "resnet18-cifar")


def problem_of(teacher: Teacher, device: str) -> tuple[Problem, str]:
    torch.manual_seed(0)
    model, weights = teacher.build()
    if weights.startswith("random"):
        calibrate(model, teacher)
    model.eval().to(device)
    batch = teacher.cuda_batch if device == "cuda" else teacher.batch
    jitter = 2 if teacher.size <= 32 else teacher.size * 30 // 224
    recipe = recipes.get("deep_inversion").replace(batch_size=batch, jitter=jitter, flip=True)
    start = torch.randn(batch, *teacher.spec.shape).to(device)
    with torch.no_grad():
        classes = model(start[:2]).shape[1]
    labels = (torch.arange(batch) % classes).to(device)
    return Problem(model, teacher.spec, recipe, labels, start, partial(python_draws, jitter)), weights


def has_bfloat16(device: str) -> bool:
    """Whether bfloat16 may be the faster dtype. A CPU without instructions for it emulates it."""
    return device != "cpu" or can_pack(torch.bfloat16)


def seconds(call: Callable[[], Any], device: str) -> float:
    begun = time.perf_counter()
    call()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begun


@contextmanager
def plain_memory() -> Iterator[None]:
    """The C library's allocation for every contender: nothing enters the reused memory."""
    with (
        patch(f"{__name__}.reused_memory", nullcontext),
        patch("exml_fast.inversion.synthesizer.reused_memory", nullcontext),
    ):
        yield


class Race:
    """The contenders of one teacher: "reference", "alternative", "bare", and for each precision "engine …" and
    "convolutions …"."""

    def __init__(self, problem: Problem, block: int, option: Option | None, precisions: list[str], bare: str) -> None:
        self.problem, self.block = problem, block
        self.contenders: dict[str, Any] = {}
        self.setup_s: dict[str, float] = {}
        self.cuda_peaks: dict[str, float] = {}
        self._add("reference", partial(Published, problem))
        if option is not None:
            torch._dynamo.reset()
            self._add("alternative", partial(Compiled, problem, option))
        for name in precisions:
            self._add(f"engine {name}", partial(Engine, problem, name, block))
            self._add(f"convolutions {name}", partial(Convolutions, problem, name))
        self._add("bare", partial(Bare, problem, DTYPES[bare]))

    def _add(self, name: str, make: Callable[[], Any]) -> None:
        """Create and warm up a contender. Its set-up time is all time before a steady step, including compilation."""
        device = self.problem.device
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
            held = torch.cuda.memory_allocated()
        built: list[Any] = []
        spent = seconds(lambda: built.append(make()), device)
        contender = self.contenders[name] = built[0]
        if isinstance(contender, Engine):
            steady = contender.run() / 1e3
            first = contender.first_block - self.block * steady
        else:
            # Two steps, because torch.compile may compile again in the second.
            first = seconds(lambda: [contender.step() for _ in range(2)], device)
            first -= 2 * seconds(contender.step, device)
        self.setup_s[name] = spent + max(first, 0.0)
        if device == "cuda":
            self.cuda_peaks[name] = (torch.cuda.max_memory_allocated() - held) / 2**20
        print(f"  {name}: set up in {self.setup_s[name]:.2f} s", flush=True)

    def times(self, rounds: int) -> dict[str, Timing]:
        """Milliseconds of a step of each contender, and of "plain …" with the C library's allocation.

        Each third round has the latter, and the reference, whose step takes longest.
        """
        measures = {name: partial(self._milliseconds, name) for name in self.contenders}
        seldom = ["reference"]
        if self.problem.device == "cpu":
            plain = {f"plain {name}": partial(self._plain_milliseconds, name) for name in self._whole_steps}
            measures |= plain
            seldom += plain
        return rotating(measures, rounds, seldom)

    @property
    def _whole_steps(self) -> list[str]:
        """The contenders whose memory, and time with the C library's allocation, mean something."""
        return [name for name in self.contenders if not name.startswith("convolutions")]

    def _milliseconds(self, name: str) -> float:
        """A step in a block of steps, after one step that fills the reused memory."""
        contender = self.contenders[name]
        if isinstance(contender, Engine):
            return contender.run()
        with reused_memory():
            contender.step()
            return milliseconds(lambda: [contender.step() for _ in range(self.block)], self.problem.device) / self.block

    def _plain_milliseconds(self, name: str) -> float:
        with plain_memory():
            return self._milliseconds(name)

    def peaks(self) -> dict[str, float]:
        """Peak memory in MiB of a step of each contender, and on a CPU of "plain …".

        On a CPU it excludes the memory held between two steps (weights, images, optimiser). On CUDA it includes that
        memory, because a CUDA graph allocates when it is captured and not when it is replayed.
        """
        if self.problem.device == "cuda":
            return self.cuda_peaks
        found = {}
        for name in self._whole_steps:
            contender = self.contenders[name]
            for prefix, measure in (("", self._milliseconds), ("plain ", self._plain_milliseconds)):
                if not isinstance(contender, Engine):
                    contender.rest()
                found[f"{prefix}{name}"] = peak_rss_mb(partial(measure, name))
        return found


def catches_up(setup: float, ms: float, engine_setup: float, engine_ms: float) -> int | None:
    """Number of steps after which a contender has overtaken the engine, set-up included; None for never."""
    if ms >= engine_ms:
        return None
    return max(0, round((setup - engine_setup) * 1e3 / (engine_ms - ms)))


KINDS = ("reference", "alternative", "bare", "convolutions", "engine")
OF_PRECISION = ("convolutions", "engine")
"""Kinds with a contender for each precision; of the others there is one."""


def rows_of(
    head: dict[str, Any], race: Race, timings: dict[str, Timing], precisions: list[str]
) -> list[dict[str, Any]]:
    """One row for each precision of the engine."""
    peaks = race.peaks()
    rows = []
    for precision in precisions:
        names = {kind: f"{kind} {precision}" if kind in OF_PRECISION else kind for kind in KINDS}
        found = {kind: name for kind, name in names.items() if name in timings}
        row = {**head, "dtype": precision}
        row |= {
            f"{kind}_ms": round(timings[name].median, 3) if name in timings else None for kind, name in names.items()
        }
        row |= {f"{kind}_peak_mb": round(peaks[name], 1) if name in peaks else None for kind, name in names.items()}
        row["spread"] = {
            kind: [round(timings[name].low, 3), round(timings[name].high, 3)] for kind, name in found.items()
        }
        row["setup_s"] = {kind: round(race.setup_s[name], 3) for kind, name in found.items()}
        plain = {kind: f"plain {name}" for kind, name in found.items() if f"plain {name}" in timings}
        row["plain_ms"] = {kind: round(timings[name].median, 3) for kind, name in plain.items()}
        row["plain_peak_mb"] = {kind: round(peaks[name], 1) for kind, name in plain.items()}
        if engine := found.get("engine"):
            row["catches_up_after_steps"] = {
                kind: catches_up(race.setup_s[name], timings[name].median, race.setup_s[engine], timings[engine].median)
                for kind, name in found.items()
                if kind in ("reference", "alternative")
            }
        rows.append(row)
    return rows


def tried(make: Callable[[], Any], problem: Problem, steps: int = 3) -> float:
    """Milliseconds of the fastest of a few steps of a contender, in reused memory, after its set-up."""
    contender = make()
    with reused_memory():
        for _ in range(2):
            contender.step()
        return min(milliseconds(contender.step, problem.device) for _ in range(steps))


def searched(problem: Problem, known: dict[str, float], found: Callable[[dict[str, float]], None]) -> dict[str, float]:
    """Milliseconds of a step of torch.compile under each option: dtypes first, then the modes in the fastest dtype.

    Args:
        problem: the step.
        known: options that were tried before.
        found: called with all of them after each option.
    """
    times = dict(known)

    def attempt(option: Option) -> None:
        if str(option) in times:
            return
        torch._dynamo.reset()
        times[str(option)] = round(tried(partial(Compiled, problem, option), problem), 3)
        print(f"  torch.compile, {option}: {times[str(option)]:.1f} ms", flush=True)
        found(times)

    options = [option for option in OPTIONS if option.dtype == "float32" or has_bfloat16(problem.device)]
    for option in options:
        attempt(option)
    dtype = min(options, key=lambda option: times[str(option)]).dtype
    for mode in MODES[problem.device]:
        attempt(Option(dtype, mode))
    return times


def table(rows: list[dict[str, Any]]) -> str:
    """Milliseconds of a step, and ratios: reference and alternative to the engine, and the engine to bare."""

    def cell(value: float | None, digits: int = 2, unit: str = "") -> str:
        return "–" if value is None else f"{value:.{digits}f}{unit}"

    def ratio(row: dict[str, Any], other: str) -> float | None:
        engine, value = row["engine_ms"], row[f"{other}_ms"]
        if engine is None or value is None:
            return None
        return engine / value if other in ("bare", "convolutions") else value / engine

    header = [
        "teacher",
        "dtype",
        *KINDS,
        "over ref.",
        "over alt.",
        "of bare",
        "of conv.",
        "peak MiB",
        "of alt.",
        "set-up s",
        "alt. s",
    ]
    lines = [header]
    for row in rows:
        lines.append(
            [
                f"{row['teacher']} {row['size']}² b{row['batch']}",
                row["dtype"],
                *(cell(row[f"{kind}_ms"], 1) for kind in KINDS),
                *(cell(ratio(row, other), 2, "×") for other in ("reference", "alternative", "bare", "convolutions")),
                cell(row["engine_peak_mb"], 0),
                cell(row["alternative_peak_mb"], 0),
                cell(row["setup_s"].get("engine")),
                cell(row["setup_s"].get("alternative")),
            ]
        )
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    return "\n".join("  ".join(text.rjust(width) for text, width in zip(line, widths, strict=True)) for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teachers", nargs="+", choices=TEACHERS, help="default: all")
    parser.add_argument("--rounds", type=int, help="default: 21, or 3 with --quick")
    parser.add_argument(
        "--quick", action="store_true", help=f"only {' and '.join(QUICK)}; compile only the first, in float32"
    )
    parser.add_argument("--no-compile", action="store_true", help="omit the alternative")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--precisions", help="of the engine; default: both where the CPU has both, on CUDA bfloat16")
    parser.add_argument("--threads", type=int, help="default: the number that PyTorch chooses")
    parser.add_argument(
        "--json", type=Path, help="default: benches/results/inversion-DEVICE.json, or none with --quick"
    )
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    names = args.teachers or (QUICK if args.quick else list(TEACHERS))
    rounds = args.rounds or (3 if args.quick else 21)
    dtypes = [dtype for dtype in DTYPES if dtype == "float32" or has_bfloat16(args.device)]
    precisions = (args.precisions or ("bfloat16" if args.device == "cuda" else ",".join(dtypes))).split(",")
    path = args.json or (None if args.quick else RESULTS / f"inversion-{args.device}.json")
    torch.backends.cudnn.benchmark = True
    torch.compiler.config.force_disable_caches = True  # measure the set-up of a first run

    rows = [] if path is None else rows_of_this_commit(path, args.device)
    for name in names:
        teacher = TEACHERS[name]
        own = {"teacher": name, "device": args.device, "threads": torch.get_num_threads()}
        if any(own.items() <= row.items() and row["rounds"] == rounds for row in rows if "rounds" in row):
            print(f"{name}: measured before at this commit")
            continue
        print(name, flush=True)
        problem, weights = problem_of(teacher, args.device)
        block = 20 if args.device == "cuda" else teacher.block
        earlier = next((row["options_ms"] for row in rows if own.items() <= row.items() and "options_ms" in row), {})
        rows = [row for row in rows if not own.items() <= row.items()]

        def write(options: dict[str, float], others: list[dict[str, Any]] = rows, own: dict[str, Any] = own) -> None:
            if path is not None:
                write_results(path, [*others, {**own, "options_ms": options}], args.device)

        options, option = dict[str, float](), None
        if args.quick and name == QUICK[0]:
            option = OPTIONS[0]
        elif not (args.no_compile or args.quick):
            options = searched(problem, earlier, write)
            option = Option(*min(options, key=lambda found: options[found]).split(", "))
        bare = {dtype: tried(partial(Bare, problem, DTYPES[dtype]), problem) for dtype in dtypes}
        fastest = min(bare, key=lambda dtype: bare[dtype])
        race = Race(problem, block, option, precisions, fastest)
        head = {
            **own,
            "weights": weights,
            "size": teacher.size,
            "batch": len(problem.labels),
            "rounds": rounds,
            "steps_per_round": block,
            "alternative": None if option is None else str(option),
            "alternatives_ms": options,
            "bare": fastest,
        }
        rows += rows_of(head, race, race.times(rounds), precisions)
        if path is not None:
            write_results(path, rows, args.device)
    print(table([row for row in rows if "engine_ms" in row]))
    if path is not None:
        print(f"written to {path}")


if __name__ == "__main__":
    main()
