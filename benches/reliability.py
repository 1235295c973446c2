"""Hostile files, bad commands, kills and faults: `make faults`, and `make faults SHORT=1` for ten minutes.

python benches/reliability.py [--short] [--only NAME …] [--fresh]

Every test adds its row to benches/results/reliability.json when it is done: `tried`, `failed`, the `worst_seconds` of a
process and its `worst_mb` over the process that started it. A case that fails is described in build/reliability/.
A second call continues with the tests, and the cases, that are missing. The cases are made by python_tests/fuzz, those
of "nodes killed" by benches/cluster.py. "native ops" are random arguments to the ops of an extension built with
AddressSanitizer and UBSan.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path += [str(ROOT / "python_tests" / "fuzz"), str(ROOT / "benches")]

import torch  # noqa: E402
from bad_commands import command as bad_command  # noqa: E402
from forks import Fork, Outcome, command, run  # noqa: E402
from hostile_experts import good, make, write  # noqa: E402
from measure import replace_rows  # noqa: E402
from runs import (  # noqa: E402
    COMMANDS,
    again,
    checkpoint_often,
    digest,
    filled,
    full_disk,
    no_permission,
    prepare,
)

from exml_fast.storage import load_json, save_json  # noqa: E402

RESULTS, PROGRESS = ROOT / "benches" / "results" / "reliability.json", ROOT / "build" / "reliability"
# Random calls of an op under the sanitizers, which are ten minutes for all ops.
SANITIZED = 24_000
# How many cases of each test, in full and in the short form.
COUNTS = {
    "hostile experts": (1000, 100), "bad command lines": (300, 50), "kills": (300, 14),
    "disk and permissions": (100, 7), "two writers": (21, 2), "Ctrl-C twice": (42, 7), "nodes killed": (20, 0),
    "native ops": (SANITIZED, 0),
}  # fmt: skip
# A process may take this long and this much memory over the one that started it. The short form looks for hangs on
# machines of any speed.
SECONDS, SHORT_SECONDS, MEGABYTES = 10.0, 60.0, 1024.0
WHOLE = 300.0
"""Limit of a process that works, where SECONDS are for those that only refuse."""
TROUBLE = ("Traceback (most recent call last)", "internal error: ")

Case = tuple[list[str], list[Outcome]]
"""What went wrong, and the processes."""


class Workplace:
    """A folder with data and experts, and the digest of each command's uninterrupted run."""

    patience = SECONDS

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._paths: dict[str, str] = {}
        self._known: dict[str, tuple[str, float]] = {}

    @property
    def paths(self) -> dict[str, str]:
        """Of the data and the experts, made at first use."""
        self._paths = self._paths or prepare(self.folder / "given")
        return self._paths

    def wanted(self, name: str) -> tuple[str, float]:
        """The digest of a command's uninterrupted run, and its seconds."""
        if name not in self._known:
            out = self.folder / "wanted" / name
            found = run(command(again(name, out, self.paths), checkpoint_often), WHOLE)
            if found.code:
                raise RuntimeError(f"{name} fails undisturbed: {found.output}")
            self._known[name] = digest(out), found.seconds
        return self._known[name]


def hostile_experts(place: Workplace, number: int) -> Case:
    """A catalogue of a good expert and a hostile one is listed and verified."""
    folder, sentinel = place.folder / f"experts{number}", place.folder / "sentinel"
    os.environ["EXML_FUZZ_SENTINEL"] = str(sentinel)
    kind = make(folder / "bad", number)
    (folder / "good").mkdir()
    write(folder / "good", good()[1])
    before = sorted(os.listdir(folder / "bad"))

    def task() -> None:
        from exml_fast.continual import Catalogue, Expert

        catalogue = Catalogue(folder)
        problems = catalogue.verify()
        assert "good" not in problems and all(len(text) < 1000 for text in problems.values()), problems
        assert "good" in [entry.name for entry in catalogue.find()], "good is hidden"
        assert "bad" in problems or Expert.load(folder / "bad")

    found = run(task)
    wrong = refused_at_once(place, found, (0,))
    if sentinel.exists():
        wrong.append("code was run")
        sentinel.unlink()
    if sorted(os.listdir(folder / "bad")) != before:
        wrong.append("files were changed")
    shutil.rmtree(folder)
    for outside in place.folder.glob(f"experts{number}*"):
        outside.unlink()
    return [f"{kind}: {each}" for each in wrong], [found]


def bad_command_lines(place: Workplace, number: int) -> Case:
    """A command line with mistakes ends in one line."""
    folder = place.folder / "commands"
    arguments = bad_command(number, folder)
    found = run(lambda: (os.chdir(folder), command(arguments)()))
    wrong = refused_at_once(place, found, (0, 1, 2))
    if not {"data.npz", "file"} <= set(os.listdir(folder)):
        wrong.append("files were deleted")
    return [f"{arguments!r}: {each}"[:1500] for each in wrong], [found]


def kills(place: Workplace, number: int) -> Case:
    """A run is killed at a random time; the last of three kills is followed by an undisturbed end."""
    name, chance = _turn(number // 3), random.Random(number)
    wanted, seconds = place.wanted(name)
    out = place.folder / f"kill{number // 3}"
    delay, outcomes, wrong = chance.uniform(0.02, 0.9) * seconds, list[Outcome](), list[str]()
    while not outcomes or outcomes[-1].code != -signal.SIGKILL:
        if outcomes:  # the run was over before the kill: begin anew, and kill earlier
            shutil.rmtree(out, ignore_errors=True)
            delay *= 0.6
        process = Fork(command(again(name, out, place.paths), checkpoint_often))
        process.running(delay)
        process.send(signal.SIGKILL)
        outcomes.append(process.wait(WHOLE))
        wrong += complaints(outcomes[-1], (0, -signal.SIGKILL))
    if number % 3 == 2:
        wrong += _ended(place, name, out, wanted, outcomes)
    return [f"{name}: {each}" for each in wrong], outcomes


def faults(place: Workplace, number: int) -> Case:
    """The disk fills up, or files cannot be put into place, from a random file on."""
    name, chance = _turn(number), random.Random(number)
    wanted, _ = place.wanted(name)
    out, fault = place.folder / f"fault{number}", (full_disk, no_permission)[number // len(COMMANDS) % 2]
    outcomes = [run(command(again(name, out, place.paths), fault(chance.randrange(25))), WHOLE)]
    wrong = complaints(outcomes[0], (0, 2))
    wrong += _ended(place, name, out, wanted, outcomes)
    return [f"{name}, {fault.__name__}: {each}" for each in wrong], outcomes


def two_writers(place: Workplace, number: int) -> Case:
    """While a run works, a second one with the same --out is refused."""
    name = _turn(number)
    wanted, seconds = place.wanted(name)
    out = place.folder / f"writers{number}"
    first = Fork(command(again(name, out, place.paths), checkpoint_often))
    while first.running(0.02) and not any((out / file).exists() for file in ("run.json", "job.json")):
        pass
    first.running(0.1 * seconds)
    more = [] if name == "synthesize" else ["--overwrite"]
    alive = first.running(0)
    second = run(command([*filled(name, place.paths), "--out", str(out), *more]))
    alive = alive and first.running(0.01)
    outcomes = [first.wait(WHOLE), second]
    wrong = complaints(outcomes[0], (0,)) + complaints(second, (2,) if alive else (0, 2))
    if alive and "another process" not in second.output:
        wrong.append(f"the second was not refused: {second.output[-500:]}")
    return [f"{name}: {each}" for each in wrong + _ended(place, name, out, wanted, outcomes)], outcomes


def interrupts(place: Workplace, number: int) -> Case:
    """Ctrl-C, and once more within a third of a second."""
    name, chance = _turn(number), random.Random(number)
    wanted, seconds = place.wanted(name)
    out = place.folder / f"interrupt{number}"
    process = Fork(command(again(name, out, place.paths), checkpoint_often))
    process.running(chance.uniform(0.1, 0.9) * seconds)
    process.send(signal.SIGINT)
    if process.running(chance.uniform(0, 0.3)):
        process.send(signal.SIGINT)
    late = process.running(place.patience)
    outcomes = [process.wait(WHOLE)]
    wrong = [f"it did not end within {place.patience:.0f} s"] if late else []
    wrong += complaints(outcomes[0], (0, 1, 130, -signal.SIGINT))
    return [f"{name}: {each}" for each in wrong + _ended(place, name, out, wanted, outcomes)], outcomes


def _turn(number: int) -> str:
    return list(COMMANDS)[number % len(COMMANDS)]


def _ended(place: Workplace, name: str, out: Path, wanted: str, outcomes: list[Outcome]) -> list[str]:
    """Let a disturbed run go on to its end; what is wrong with the result."""
    mine = out / "notes.txt"
    if out.is_dir():
        mine.write_text("mine")
    outcomes.append(run(command(again(name, out, place.paths), checkpoint_often), WHOLE))
    wrong = complaints(outcomes[-1], (0,))
    if not wrong and digest(out) != wanted:
        wrong.append("the result differs from that of an undisturbed run")
    if not mine.exists() and len(list(out.iterdir())) == 0:
        wrong.append("a file of the user was deleted")
    left = [file for file in out.rglob(".*") if file.is_file() and file.name.endswith((".safetensors", ".json", ".pt"))]
    if not wrong and left:
        wrong.append(f"temporary files are left: {left[:3]}")
    shutil.rmtree(out, ignore_errors=True)
    return wrong


def complaints(found: Outcome, codes: tuple[int, ...]) -> list[str]:
    """What is wrong with a process, except its time."""
    wrong = [f"exit code {found.code}: {found.output[-1500:]}"] if found.code not in codes else []
    wrong += [f"{text!r} in its output: {found.output[-1500:]}" for text in TROUBLE if text in found.output]
    return wrong + ([f"{found.mb:.0f} MB"] if found.mb > MEGABYTES else [])


def refused_at_once(place: Workplace, found: Outcome, codes: tuple[int, ...]) -> list[str]:
    """:func:`complaints`, and one for a hang."""
    return complaints(found, codes) + ([f"{found.seconds:.1f} s"] if found.seconds > place.patience else [])


TESTS: dict[str, Callable[[Workplace, int], Case]] = {
    "hostile experts": hostile_experts, "bad command lines": bad_command_lines, "kills": kills,
    "disk and permissions": faults, "two writers": two_writers, "Ctrl-C twice": interrupts,
}  # fmt: skip


def nodes_killed(count: int) -> dict[str, Any]:
    """The row of a job on four Ray nodes, of which one after the other is killed."""
    from cluster import chaos

    with tempfile.TemporaryDirectory() as folder:
        found = chaos(Path(folder), shards=200, kills=count, every=3.0, seconds=1.0)
    wrong = ("lost", "entered_twice", "different_bytes", "made_twice_after_driver")
    return {"tried": found["nodes_killed"], "failed": sum(found[key] for key in wrong)}


def native_ops(count: int) -> dict[str, Any]:
    """The row of random shapes, strides, dtypes and formats, ``count`` of each op, under the sanitizers."""
    begun = time.monotonic()
    script, build = ROOT / "csrc" / "tests" / "asan_python.sh", ROOT / "build" / "asan-python"
    tests = [str(ROOT / "python_tests" / "test_ops_fuzz.py"), "-vv"]
    found = subprocess.run(
        ["bash", str(script), sys.executable, str(build), *tests], env=os.environ | {"EXML_EXAMPLES": str(count)},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip
    passed, failed = (len(re.findall(rf"^\S+::.* {word}", found.stdout, re.M)) for word in ("PASSED", "FAILED"))
    if (found.returncode and not failed) or not passed + failed:
        raise RuntimeError(f"the ops do not run under the sanitizers:\n{found.stdout[-3000:]}")
    return {"tried": count * (passed + failed), "failed": failed, "minutes": round((time.monotonic() - begun) / 60, 1)}


WHOLE_TESTS: dict[str, Callable[[int], dict[str, Any]]] = {"nodes killed": nodes_killed, "native ops": native_ops}
"""Tests that are not made of single cases. They measure neither the seconds nor the memory of a process."""


def measured(name: str, count: int, place: Workplace, progress: Path) -> dict[str, Any]:
    """The row of a test. ``progress`` keeps it after each case; a killed run's case is tried anew."""
    if name in WHOLE_TESTS:
        if progress.exists():
            return dict(load_json(progress))
        row = {"test": name, **WHOLE_TESTS[name](count), "worst_seconds": None, "worst_mb": None}
        save_json(progress, row)
        return row
    row = {"test": name, "tried": 0, "failed": 0, "worst_seconds": 0.0, "worst_mb": 0.0}
    if progress.exists():
        row = load_json(progress)
        row["tried"] -= row["tried"] % 3 if name == "kills" and row["tried"] < count else 0
    for number in range(row["tried"], count):
        wrong, outcomes = TESTS[name](place, number)
        row["tried"] += 1
        row["failed"] += bool(wrong)
        for key, unit in (("worst_seconds", "seconds"), ("worst_mb", "mb")):
            row[key] = round(max([row[key], *(getattr(each, unit) for each in outcomes)]), 1)
        if wrong:
            with open(progress.with_suffix(".log"), "a") as file:
                file.write("".join(f"{number}: {each}\n" for each in wrong))
        save_json(progress, row)
        if number % 10 == 9 or wrong:
            print(json.dumps(row), *(each[:300] for each in wrong), flush=True)
    return row


def places() -> Iterator[Workplace]:
    """A temporary workplace."""
    with tempfile.TemporaryDirectory() as folder:
        yield Workplace(Path(folder))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true", help="a tenth of the cases; no figures are written")
    parser.add_argument("--only", nargs="*", choices=list(COUNTS), default=list(COUNTS))
    parser.add_argument("--fresh", action="store_true", help="forget what earlier calls have done")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.short:
        Workplace.patience = SHORT_SECONDS
    for module in ("torchvision", "timm", "matplotlib.figure", "exml_fast.cli.app", "sklearn.datasets"):
        __import__(module)
    folder = PROGRESS / ("short" if options.short else "full")
    if options.fresh:
        shutil.rmtree(folder, ignore_errors=True)
    rows = []
    for place in places():
        for name in options.only:
            count = COUNTS[name][options.short]
            if not count:
                continue
            rows.append(measured(name, count, place, folder / f"{name.replace(' ', '-')}.json"))
            print(json.dumps(rows[-1]), flush=True)
            if not options.short:
                replace_rows(RESULTS, rows[-1:], ("test",), "make faults")
    sys.exit(any(row["failed"] for row in rows))


if __name__ == "__main__":
    main()
