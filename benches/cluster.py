"""Synthesis and learning past one machine: faults, overheads, large manifests, a large catalogue, and their cost.

    python benches/cluster.py --results benches/results/cluster.json            # all parts; about an hour on two cores
    python benches/cluster.py --small                                           # the same in small
    python benches/cluster.py --parts manifest,catalogue --results FILE         # some parts; other rows of FILE stay
    python benches/cluster.py --parts images --device cuda --results FILE       # seconds an image on another device
    python benches/cluster.py --cost benches/results/cluster.json               # the cost model of docs/scale.md

- chaos: 200 shards on a Ray cluster of four nodes on this machine. A node (raylet and workers) is killed by SIGKILL
  every few seconds, 20 times, and another one joins. In the middle the driver is killed and resumed. The shards' files
  are compared with those of one process.
- overhead: what a Ray task costs beside its shard, and real shards of about ten seconds through Ray and in one process.
- manifest: opening a manifest of 1,000,000 entries, and the resumption of a finished job of as many files.
- torchrun: a student of two gloo ranks, of which one is killed, against an unkilled run.
- catalogue: listing, finding and verifying 10,000 experts.
- images: seconds and bytes an image of ResNet-50 at 224×224 (random weights, which cost the same).
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from cluster_cost import cost_table
from measure import replace_rows

from exml_fast.continual import Catalogue, Expert
from exml_fast.data import InputSpec, Shards
from exml_fast.data.manifest import LINE, Entry, Manifest
from exml_fast.data.shards import MANIFEST_FILE, shard_path
from exml_fast.distributed import LocalExecutor, RayExecutor, make_shard, prepare, resume
from exml_fast.distributed.run import _missing
from exml_fast.inversion import Synthesizer, recipes
from exml_fast.models import create
from exml_fast.storage import load_json

SMALL_IMAGES = InputSpec(1, (32, 32), (0.5,), (0.25,))
IMAGENET = InputSpec(3, (224, 224), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
NODES = 4
# Ray's control service must notice a dead node between two kills.
QUICK_HEALTH_CHECKS = {"health_check_period_ms": 500, "health_check_failure_threshold": 3}


def teacher(classes: int = 10) -> Expert:
    """A LeNet-5 with random weights."""
    torch.manual_seed(0)
    return Expert.wrap(create("lenet5", num_classes=classes), SMALL_IMAGES, range(classes), architecture="lenet5")


def digests(folder: Path) -> dict[str, str]:
    files = sorted(folder.glob("shards/*/*.safetensors"))
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def job(folder: Path, shards: int, seconds: float) -> dict[str, Any]:
    """Prepare a job whose shards take about so many seconds each in one process; its settings."""
    settings: dict[str, Any] = {"per_shard": 32, "recipe": "model_inversion", "shards": shards}
    probe = folder.with_name(f"{folder.name}-probe")
    prepare(probe, teacher(), **settings, steps=40)
    make_shard(str(probe), 0)
    begun = time.perf_counter()
    make_shard(str(probe), 1)
    settings["steps"] = max(10, round(40 * seconds / (time.perf_counter() - begun)))
    shutil.rmtree(probe)
    prepare(folder, teacher(), **settings)
    return settings


# Faults of a cluster.


def descendants(pid: int) -> list[int]:
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except FileNotFoundError:
        return []
    return [pid, *(found for child in children for found in descendants(int(child)))]


def kill_node(cluster: Any, node: Any) -> int:
    """SIGKILL the node's raylet and all its workers; the number of processes."""
    raylet = node.all_processes["raylet"][0].process.pid
    pids = descendants(raylet)
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    cluster.remove_node(node, allow_graceful=False)
    return len(pids)


def driver(folder: Path, address: str, log: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "exml_fast", "synthesize", "--out", str(folder), "--resume", "--executor", "ray"]
    with open(log, "ab") as file:
        return subprocess.Popen([*command, "--address", address], stdout=file, stderr=file)


def states(folder: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of every finished file."""
    found = {}
    for file in folder.glob("shards/*/0*.safetensors"):
        status = file.stat()
        found[file.name] = status.st_ino, status.st_mtime_ns
    return found


def chaos(work: Path, shards: int, kills: int, every: float, seconds: float) -> dict[str, Any]:
    from ray.cluster_utils import Cluster

    settings = job(work / "one", shards, seconds)
    begun = time.perf_counter()
    resume(work / "one", executor=LocalExecutor(0))
    alone = time.perf_counter() - begun
    prepare(work / "cluster", teacher(), **settings)
    node = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
    head = {"num_cpus": 0, "object_store_memory": 80 * 2**20, "_system_config": QUICK_HEALTH_CHECKS}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    killed = processes = made_twice = in_flight = 0
    try:
        nodes = [cluster.add_node(**node) for _ in range(NODES)]
        begun = time.perf_counter()
        running = driver(work / "cluster", cluster.address, work / "driver.log")
        last, resumed = time.perf_counter(), False
        before: dict[str, tuple[int, int]] = {}
        while running.poll() is None or not resumed:
            time.sleep(0.2)
            there = states(work / "cluster")
            if not resumed and len(there) >= shards // 2:
                running.kill()
                running.wait()
                before, resumed = states(work / "cluster"), True
                running = driver(work / "cluster", cluster.address, work / "driver.log")
            elif running.poll() is not None and not resumed:
                raise RuntimeError(f"the driver ended early: {(work / 'driver.log').read_text()[-2000:]}")
            if there and killed < kills and time.perf_counter() - last >= every:
                processes += kill_node(cluster, nodes.pop(killed % NODES))
                nodes.append(cluster.add_node(**node))
                killed, last = killed + 1, time.perf_counter()
        if running.returncode:
            raise RuntimeError(f"the driver failed: {(work / 'driver.log').read_text()[-2000:]}")
        wall = time.perf_counter() - begun
        after = states(work / "cluster")
        made_twice = sum(after[name] != state for name, state in before.items())
        in_flight = NODES
    finally:
        cluster.shutdown()
    lines = os.path.getsize(work / "cluster" / MANIFEST_FILE) // LINE - 1
    entered = len(Manifest(work / "cluster" / MANIFEST_FILE, Shards(work / "cluster").digest, shards))
    one, several = digests(work / "one"), digests(work / "cluster")
    return {
        "part": "chaos", "shards": shards, "nodes": NODES, "nodes_killed": killed, "processes_killed": processes,
        "seconds_between_kills": every, "lost": len(one.keys() - several.keys()),
        "entered_twice": lines - entered,
        "different_bytes": sum(several.get(name) != found for name, found in one.items()),
        "finished_when_driver_was_killed": len(before), "made_twice_after_driver": made_twice,
        "most_in_flight": in_flight, "seconds": wall, "seconds_in_one_process": alone,
    }  # fmt: skip


# Overheads.


def overhead(work: Path, tasks: int, shards: int, seconds: float) -> dict[str, Any]:
    """A task on a finished shard does nothing but hash its file: the rest of its time is Ray's."""
    import ray

    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="error")
    try:
        settings = job(work / "here", shards, seconds)
        prepare(work / "ray", teacher(), **settings)
        warm = settings | {"shards": 1, "steps": 1}
        prepare(work / "warm", teacher(), **warm)
        begun = time.perf_counter()
        resume(work / "warm", executor=RayExecutor())  # starts the worker, which imports the package
        start = time.perf_counter() - begun
        here, there = [], []
        for index in range(shards):
            begun = time.perf_counter()
            make_shard(str(work / "here"), index)
            here.append(time.perf_counter() - begun)
            with RayExecutor() as executor:
                executor.open(str(work / "ray"), prepare(work / "ray", teacher(), **settings))
                begun = time.perf_counter()
                executor.submit(index)
                while not executor.finished(60.0):
                    pass
                there.append(time.perf_counter() - begun)
        folder = str(work / "here")
        begun = time.perf_counter()
        for _ in range(tasks):
            make_shard(folder, 0)
        alone = (time.perf_counter() - begun) / tasks
        task = ray.remote(make_shard).options(num_cpus=1)
        ray.get(task.remote(folder, 0))
        begun = time.perf_counter()
        flying = [task.remote(folder, 0) for _ in range(tasks)]
        ray.get(flying)
        each = (time.perf_counter() - begun) / tasks
    finally:
        ray.shutdown()
    shard = statistics.median(here)
    return {
        "part": "overhead", "tasks": tasks, "milliseconds_a_task": 1e3 * max(0.0, each - alone),
        "seconds_to_start_a_worker": start, "shard_seconds": shard,
        "percent_of_a_shard": 100 * max(0.0, each - alone) / shard,
        "percent_of_ten_seconds": 100 * max(0.0, each - alone) / 10,
        "shards_here": here, "shards_by_ray": there,
        "percent_by_whole_shards": 100 * (sum(there) / sum(here) - 1),
    }  # fmt: skip


# Large lists.


def manifest(work: Path, entries: int) -> dict[str, Any]:
    """A finished job of so many shards, whose files are empty: a resumption opens none of them."""
    digest = "ab" * 32
    begun = time.perf_counter()
    with Manifest(work / MANIFEST_FILE, digest, entries) as made:
        for index in range(entries):
            made.add(Entry(index, 64, 1_000_000 + index, f"{index:064x}"))
    added = time.perf_counter() - begun
    for index in range(entries):
        path = shard_path(work, index)
        if index % 1000 == 0:
            path.parent.mkdir(parents=True)
        path.touch()
    begun = time.perf_counter()
    found = Manifest(work / MANIFEST_FILE, digest, entries)
    opened = time.perf_counter() - begun
    assert len(found) == entries and found[entries - 1].shard == entries - 1
    begun = time.perf_counter()
    with Manifest(work / MANIFEST_FILE, digest, entries) as again:
        assert _missing(work, again) == []
    resumed = time.perf_counter() - begun
    return {
        "part": "manifest", "entries": entries, "bytes": os.path.getsize(work / MANIFEST_FILE),
        "seconds_to_open": opened, "seconds_to_resume": resumed, "microseconds_to_add": 1e6 * added / entries,
    }  # fmt: skip


def catalogue(work: Path, experts: int) -> dict[str, Any]:
    """Copies of one expert under other names; the weights are hard links."""
    teacher().save(work / "first")
    for number in range(experts):
        folder = work / "experts" / f"expert_{number}"
        folder.mkdir(parents=True)
        shutil.copyfile(work / "first" / "card.json", folder / "card.json")
        os.link(work / "first" / "model.safetensors", folder / "model.safetensors")
    time.sleep(2.5)  # files that have just changed are not remembered

    def timed(call: Callable[[Catalogue], Any]) -> float:
        fresh = Catalogue(work / "experts")
        begun = time.perf_counter()
        call(fresh)
        return time.perf_counter() - begun

    def verify(found: Catalogue) -> None:
        assert found.verify() == {}

    return {
        "part": "catalogue", "experts": experts, "seconds_first_list": timed(len), "seconds_list": timed(len),
        "seconds_find": timed(lambda found: found.find(classes=["3"], architecture="lenet5")),
        "seconds_first_verify": timed(verify), "seconds_verify": timed(verify),
    }  # fmt: skip


# Students.


def torchrun(work: Path, steps: int) -> dict[str, Any]:
    teacher().save(work / "teacher")
    prepare(work / "job", teacher(), shards=8, per_shard=16, recipe="model_inversion", steps=5)
    resume(work / "job", executor=LocalExecutor(0))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launcher, "--max-restarts", "3", "-m", "exml_fast", "distill", str(work / "teacher")]
    command += ["--images", str(work / "job"), "--steps", str(steps), "--threads", "1", "--seed", "1"]
    command += ["--distillation", "batch_size=16"]

    def run(out: Path, kill_at: int | None) -> tuple[float, list[int]]:
        begun = time.perf_counter()
        process = subprocess.Popen([*command, "--out", str(out)], stderr=subprocess.PIPE, text=True, stdout=-3)
        reached, killed = [], kill_at is None
        assert process.stderr is not None
        for line in process.stderr:
            if found := re.search(r"learn: (\d+)/", line):
                reached.append(int(found[1]))
                if not killed and kill_at is not None and reached[-1] >= kill_at:
                    os.kill(rank_process(process.pid, "1"), signal.SIGKILL)
                    killed = True
        assert process.wait() == 0 and killed
        return time.perf_counter() - begun, reached

    whole, _ = run(work / "whole", None)
    with_kill, reached = run(work / "killed", steps // 3)
    at = next(n for n, step in enumerate(reached) if step >= steps // 3)
    weights = [(work / name / "student" / "model.safetensors").read_bytes() for name in ("whole", "killed")]
    return {
        "part": "torchrun", "ranks": 2, "steps": steps, "killed_at": reached[at], "went_on_before": reached[at + 1],
        "equal": weights[0] == weights[1], "seconds": whole, "seconds_with_kill": with_kill,
    }  # fmt: skip


def rank_process(launcher: int, rank: str) -> int:
    for pid in descendants(launcher):
        pairs = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        if f"RANK={rank}".encode() in pairs:
            return pid
    raise RuntimeError(f"no process of rank {rank}")


# An image.


def images(device: str, count: int, share: float) -> list[dict[str, Any]]:
    """Seconds an image of two recipes, from runs of a ``share`` of their steps; forward products of both sizes."""
    from torch.utils.flop_counter import FlopCounterMode

    torch.manual_seed(0)
    network = create("torchvision/resnet50", num_classes=1000).eval()
    flops = {}
    for side in (112, 224):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            network(torch.zeros(1, 3, side, side))
        flops[side] = counter.get_total_flops()
    rows = []
    for name in ("deep_inversion/imagenet-transferable", "deep_inversion/imagenet-quick"):
        recipe = recipes.get(name)
        (coarse,), fine = recipe.optimisation.coarse_steps, recipe.optimisation.steps
        part = recipe.replace(
            coarse_steps=(max(1, round(share * coarse)),), steps=max(1, round(share * fine)), batch_size=count
        )
        synthesizer = Synthesizer(network, IMAGENET, part, device=device)
        synthesizer.run(list(range(count)), seed=0)  # prepares kernels and memory
        # Other load on the machine changes the CPU time of one thread less than its wall-clock time.
        begun = time.process_time()
        seconds = synthesizer.run(list(range(count)), seed=1).seconds
        if device == "cpu":
            seconds = time.process_time() - begun
        taken = part.optimisation.coarse_steps[0] * flops[112] + part.optimisation.steps * flops[224]
        whole = coarse * flops[112] + fine * flops[224]
        rows.append({
            "part": "images", "device": torch.cuda.get_device_name() if device.startswith("cuda") else "cpu",
            "threads": torch.get_num_threads(), "network": "resnet50", "recipe": name, "images_a_batch": count,
            "share_of_steps": share, "seconds_an_image": seconds / count * whole / taken,
            # Forward, and the gradient of the input, which costs as much.
            "flops_an_image": 2 * whole, "bytes_an_image": 3 * 224 * 224 + 4 * 1000 + 8,
        })  # fmt: skip
    return rows


PARTS = ("chaos", "overhead", "manifest", "torchrun", "catalogue", "images")


def measured(part: str, small: bool, device: str, work: Path) -> list[dict[str, Any]]:
    """The rows of a part."""
    work.mkdir(parents=True, exist_ok=True)
    calls: dict[str, Callable[[], Any]] = {
        "chaos": lambda: chaos(work, 24, 3, 6.0, 1.0) if small else chaos(work, 200, 20, 3.0, 1.0),
        "overhead": lambda: overhead(work, 100, 2, 2.0) if small else overhead(work, 1000, 6, 10.0),
        "manifest": lambda: manifest(work, 50_000 if small else 1_000_000),
        "torchrun": lambda: torchrun(work, 1500 if small else 3000),
        "catalogue": lambda: catalogue(work, 300 if small else 10_000),
        "images": lambda: images(device, 2 if small else 4, 0.005 if small else 0.02),
    }
    found = calls[part]()
    rows = found if isinstance(found, list) else [found]
    return [{**row, "small": small} for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=",".join(PARTS), help="comma-separated")
    parser.add_argument("--small", action="store_true", help="minutes instead of an hour")
    parser.add_argument("--device", default="cpu", help="of the part images")
    parser.add_argument("--results", type=Path, help="JSON file; rows of other parts in it are kept")
    parser.add_argument("--work", type=Path, help="folder for the files of the runs; a temporary one by default")
    parser.add_argument("--cost", type=Path, help="only print the cost model of this file")
    arguments = parser.parse_args()
    if arguments.cost:
        print(cost_table(load_json(arguments.cost)["rows"]))
        return
    unknown = set(arguments.parts.split(",")) - set(PARTS)
    if unknown:
        parser.error(f"--parts must be of {', '.join(PARTS)}, got {', '.join(sorted(unknown))}")
    torch.set_num_threads(1)
    for part in arguments.parts.split(","):
        with tempfile.TemporaryDirectory(dir=arguments.work) as folder:
            rows = measured(part, arguments.small, arguments.device, Path(folder) / part)
        for row in rows:
            print(" ".join(f"{name}={value}" for name, value in row.items()), flush=True)
        if arguments.results:
            command = f"python benches/cluster.py --results benches/results/{arguments.results.name}"
            replace_rows(arguments.results, rows, ("part", "device", "recipe"), command, arguments.device)


if __name__ == "__main__":
    main()
