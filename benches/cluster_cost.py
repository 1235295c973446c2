"""The cost of 1.2 million ImageNet images on many GPUs, from the parts measured in ``benches/results/cluster.json``."""

from __future__ import annotations

import math
from typing import Any

__all__ = ["cost_rows", "cost_table", "fault_table", "first_limits"]

IMAGES = 1_200_000
WORKERS = (1, 64, 1024)
IMAGES_A_SHARD = 84  # the batch of the recipes
# NVIDIA's data sheet: dense bfloat16 products of an H200 SXM a second, and the share of them that is assumed for a GPU
# on which nothing was measured.
H200_FLOPS, ASSUMED_SHARE = 989e12, 0.25

Row = dict[str, Any]


def devices(rows: list[Row]) -> list[tuple[str, str, float, int]]:
    """Device, recipe, seconds an image and bytes an image: extrapolated from a short run, or estimated for an H200.

    The run takes a share of the recipe's steps on a small batch (benches/cluster.py). The estimate is by products.
    """
    found = []
    for row in (row for row in rows if row["part"] == "images"):
        name = f"{row['threads']} CPU core" if row["device"] == "cpu" else row["device"]
        found.append((f"{name}, extrapolated", row["recipe"], row["seconds_an_image"], row["bytes_an_image"]))
        if row["device"] == "cpu" and not any("H200" in str(other.get("device")) for other in rows):
            estimate = row["flops_an_image"] / (H200_FLOPS * ASSUMED_SHARE)
            found.append(("H200, estimated", row["recipe"], estimate, row["bytes_an_image"]))
    return sorted(found, key=lambda device: device[0])


def cost_rows(rows: list[Row]) -> list[Row]:
    """Hours, device-hours, and load of driver and storage for each device, recipe and number of workers.

    A worker makes its share of the shards, ceil(shards / workers), one after another, and waits for each task to be
    placed. The driver places the tasks of all workers, and enters their shards, one after another. Starting the workers
    and one resumption are added.
    """
    parts = {row["part"]: row for row in rows}
    overhead, manifest = parts["overhead"], parts["manifest"]
    shards = math.ceil(IMAGES / IMAGES_A_SHARD)
    task = overhead["milliseconds_a_task"] / 1e3
    serial = shards * (task + manifest["microseconds_to_add"] / 1e6)
    resume = manifest["seconds_to_resume"] * shards / manifest["entries"]
    costs = []
    for device, recipe, seconds, size in devices(rows):
        shard = IMAGES_A_SHARD * seconds
        for workers in WORKERS:
            work = math.ceil(shards / workers) * (shard + task)
            wall = overhead["seconds_to_start_a_worker"] + max(work, serial) + resume
            costs.append({
                "device": device, "recipe": recipe, "workers": workers, "shards": shards, "shard_seconds": shard,
                "hours": wall / 3600, "device_hours": workers * wall / 3600,
                "overhead_percent": 100 * (wall / (IMAGES * seconds / workers) - 1),
                "work_seconds": work, "driver_seconds": serial, "driver_percent": 100 * serial / wall,
                "megabytes_a_second": IMAGES * size / 1e6 / wall,
                "gigabytes": IMAGES * size / 1e9, "largest_cluster": math.floor(shard * shards / serial),
                "resume_seconds": resume,
            })  # fmt: skip
    return costs


def cost_table(rows: list[Row]) -> str:
    """Markdown: a line for each device, recipe and number of workers."""
    lines = [
        "| device | recipe | workers | a shard | wall-clock | device-hours | overhead | driver busy | written |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for cost in cost_rows(rows):
        lines.append(
            f"| {cost['device']} | `{cost['recipe'].rpartition('/')[2]}` | {cost['workers']:,} | "
            f"{cost['shard_seconds']:,.1f} s | {_time(cost['hours'])} | {cost['device_hours']:,.1f} | "
            f"{cost['overhead_percent']:.1f} % | {cost['driver_percent']:.1f} % | "
            f"{cost['megabytes_a_second']:,.1f} MB/s |"
        )
    return "\n".join(lines)


def _time(hours: float) -> str:
    return f"{hours:,.1f} h" if hours >= 1 else f"{60 * hours:.1f} min"


def first_limits(rows: list[Row]) -> str:
    """Markdown: what limits the fastest row, in the order of the seconds that it costs, and what removes it."""
    costs = [cost for cost in cost_rows(rows) if cost["workers"] == max(WORKERS)]
    fast = min(costs, key=lambda cost: cost["shard_seconds"])
    parts = {row["part"]: row for row in rows}
    manifest, overhead = parts["manifest"], parts["overhead"]
    start, shards, workers = overhead["seconds_to_start_a_worker"], fast["shards"], fast["workers"]
    shard, work, driver = fast["shard_seconds"], fast["work_seconds"], fast["driver_seconds"]
    share = math.ceil(shards / workers)
    last = shard * (share - shards / workers)
    limits = [
        (driver - work, f"**The driver.** It places and enters {shards:,} shards one after another, "
         f"{overhead['milliseconds_a_task']:.1f} ms a task: {driver:.1f} s, where a worker's own shards take "
         f"{work:.1f} s. " + ("So the driver sets the wall-clock time. " if driver > work else "") + "One driver feeds "
         f"about {fast['largest_cluster']:,} such workers. {workers:,} workers need larger shards, of "
         f"{workers * driver / shards:.1f} s or more, or several jobs, each with a driver of its own."),
        (start, f"**Starting workers.** It took {start:.1f} s here. It happens once, so long jobs hardly notice it."),
        (last, f"**The last round.** Some workers make {share} shards of {shard:.1f} s and the others one shard less, "
         f"so {last:.2f} s are lost on average. Smaller shards shorten it, but load the driver more."),
        (fast["resume_seconds"], f"**The manifest.** {manifest['entries']:,} entries open in "
         f"{manifest['seconds_to_open']:.1f} s and resume in {manifest['seconds_to_resume']:.1f} s. This job has "
         f"{shards:,}, so resuming takes {fast['resume_seconds']:.2f} s."),
    ]  # fmt: skip
    ordered = [text for _, text in sorted(limits, key=lambda limit: -limit[0])]
    ordered.append(
        f"**Storage.** It has no limit in the model. The images are {fast['gigabytes']:.0f} GB in {shards:,} files, "
        f"and the storage must take {fast['megabytes_a_second']:,.0f} MB/s."
    )
    seconds = 3600 * fast["hours"]
    intro = (
        f"The fastest row ({fast['device']}, `{fast['recipe'].rpartition('/')[2]}`) takes {seconds:.1f} s on "
        f"{workers:,} workers, an overhead of {fast['overhead_percent']:.1f} %. Its limits, in the order of the "
        "seconds that they cost:"
    )
    return "\n".join([intro, "", *(f"{number}. {text}" for number, text in enumerate(ordered, 1))])


def fault_table(rows: list[Row]) -> str:
    """Markdown: what was tried, and what came of it."""
    parts = {row["part"]: row for row in rows}
    lines = ["| test | result |", "| --- | --- |"]
    if (row := parts.get("chaos")) is not None:
        lines.append(
            f"| {row['shards']} shards on {row['nodes']} Ray nodes, {row['nodes_killed']} times a node killed (SIGKILL "
            f"of raylet and workers, {row['processes_killed']} processes, one every "
            f"{row['seconds_between_kills']:g} s) | "
            f"lost {row['lost']}, entered twice {row['entered_twice']}, with other bytes than in one process "
            f"{row['different_bytes']} |"
        )
        lines.append(
            f"| driver killed with {row['finished_when_driver_was_killed']} shards finished, and resumed | finished "
            f"shards made again: {row['made_twice_after_driver']} |"
        )
    if (row := parts.get("overhead")) is not None:
        lines.append(
            f"| Ray beside the shard, {row['tasks']:,} tasks | {row['milliseconds_a_task']:.2f} ms a task, "
            f"{row['percent_of_ten_seconds']:.3f} % of ten seconds |"
        )
    if (row := parts.get("manifest")) is not None:
        lines.append(
            f"| manifest of {row['entries']:,} shards | opens in {row['seconds_to_open']:.1f} s, resumes in "
            f"{row['seconds_to_resume']:.1f} s |"
        )
    if (row := parts.get("torchrun")) is not None:
        same = "the same bytes as an unkilled run" if row["equal"] else "other bytes than an unkilled run"
        lines.append(
            f"| torchrun, {row['ranks']} gloo ranks, one killed after step {row['killed_at']} of {row['steps']} | "
            f"the run continued from a checkpoint before step {row['went_on_before']}; student has {same} |"
        )
    if (row := parts.get("catalogue")) is not None:
        lines.append(
            f"| catalogue of {row['experts']:,} experts | first list {row['seconds_first_list']:.1f} s, list "
            f"{row['seconds_list']:.1f} s, find {row['seconds_find']:.1f} s, first verification "
            f"{row['seconds_first_verify']:.0f} s, verification {row['seconds_verify']:.1f} s |"
        )
    return "\n".join(lines)
