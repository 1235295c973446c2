"""Tables of time and memory: ops, whole steps, precision, impressions, a student."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from exml_fast.storage import load_json
from readme_tables.common import clean, number, source, table

# What each op computes, and where it comes from.
OPS = {
    "bn_match": ("distance between an activation's channel statistics and given statistics",
                 "Yin 2020, Eq. 4; Carta 2022, 4.1; Ye 2022, Eq. 7"),
    "frozen_bn_act": ("normalisation, residual, activation, and the input's channel statistics, in one pass",
                      "Yin 2020, Eq. 4"),
    "match_statistics": ("the distances of all layers' statistics in one launch", "as `bn_match`"),
    "image_prior": ("total variation, blur residual and l2 norm of images", "Yin 2020, Eq. 3; Carta 2022, 4.1"),
    "soft_cross_entropy": ("temperature-softened cross-entropy with indices or soft targets", "Nayak 2021, Eq. 2"),
    "jensen_shannon": ("competition of student and teacher: one minus their Jensen–Shannon divergence",
                       "Yin 2020, Eq. 8"),
    "dirichlet_targets": ("Dirichlet draws from class similarities, exact for concentrations of 0.01 and less",
                          "Nayak 2021, Alg. 1"),
    "jitter_flip": ("shift, flip, cast and change of memory format", "Yin 2020, B.1"),
    "adam_clip_": ("one step of Adam on the images and the clip to their range, in place", "Yin 2020, Eq. 16"),
    "lane_conv2d": ("convolution of few channels, one image in each lane of a vector (CPU)", "ours"),
    "winograd_conv2d": ("3×3 convolution by F(4×4, 3×3), weights transformed once (CPU)", "Lavin 2016"),
    "frozen_conv2d": ("convolution with constant, prepared weights; saves no activation", "ours"),
    "average_pool2d": ("means of windows that do not overlap, in channels_last (CPU)", "`torch.nn.AvgPool2d`"),
}  # fmt: skip


def over_pytorch(row: dict[str, Any]) -> float | None:
    """How many times as fast as plain PyTorch an op was."""
    names = ("published", "pytorch", "torch.optim", "torch.distributions")
    return next((row["times_faster"][name] for name in names if name in row["times_faster"]), None)


def over_best(row: dict[str, Any]) -> float | None:
    """How many times as fast as torch.compile an op was, or as eager PyTorch where compiling gains nothing."""
    return min(row["times_faster"].values()) if "compiled" in row["times_faster"] else None


def case_of(row: dict[str, Any]) -> str:
    size = " × ".join(map(str, row["shape"])) if "shape" in row else f"{row['layers']} layers"
    what = [size, *(row[key] for key in ("layer", "activation", "memory_format", "target") if key in row)]
    dtype = row.get("to", row["dtype"])
    return ", ".join([*what, *([dtype] if dtype != "float32" else [])])


def ops(path: Path) -> str:
    """Medians over the cases of each op (shapes, memory formats and dtypes), and the worst case."""

    def summary(own: list[dict[str, Any]], over: Callable[[dict[str, Any]], float | None]) -> list[str]:
        known = {case_of(row): value for row in own if (value := over(row)) is not None}
        if not known:
            return ["–", "–"]
        worst = min(known, key=lambda case: known[case])
        return [f"{statistics.median(known.values()):.1f}×", f"{known[worst]:.1f}×: {worst}"]

    results, rows = load_json(path), []
    for name, (computes, origin) in OPS.items():
        own = [row for row in results["rows"] if row["op"] == name]
        rows.append([f"`{name}`", computes, origin, *summary(own, over_pytorch), *summary(own, over_best)])
    header = ["op", "computes", "source", "over PyTorch: median", "worst case", "over the best ¹: median", "worst case"]
    lines = table(header, rows).replace("| --- | ---: | ---: |", "| --- | --- | --- |", 1)
    note = (
        "¹ torch.compile, or eager PyTorch where that is faster: there compiling only copies it.\n"
        "PyTorch is the published hook's formula for `bn_match`, `frozen_bn_act` and `match_statistics`, and "
        "torch.optim without its fused kernel for `adam_clip_`. The [table of all cases](#the-ops-alone) has more "
        "contenders."
    )
    return lines + "\n\n" + note + "\n\n" + source(path, results)


def all_ops(path: Path) -> str:
    results = load_json(path)
    rows = []
    for row in results["rows"]:
        others = row["times_faster"]
        memory = row.get("peak_mb")
        rows.append(
            [
                f"`{row['op']}` {case_of(row)}",
                number(row["ms"]["exml_fast"]["median"], 2, " ms"),
                number(over_pytorch(row), 1, "×"),
                number(others.get("var_mean"), 1, "×"),
                number(others.get("compiled"), 1, "×"),
                "–" if memory is None else f"{memory['exml_fast']:.1f} / {max(memory.values()):.1f} MB",
            ]
        )
    header = ["forward + backward", "time", "speed-up over PyTorch ²", "over `var_mean`", "over torch.compile"]
    notes = (
        "² `bn_match`, `frozen_bn_act`, `match_statistics`: the published hook's formula; `image_prior`, "
        "`soft_cross_entropy`, `jensen_shannon`: the eager formula; `lane_conv2d`, `winograd_conv2d`, "
        "`frozen_conv2d`: torch's convolution; `average_pool2d`: torch's pooling; `jitter_flip`: torch.roll and flip; "
        "`adam_clip_` (one step): torch.optim.Adam and the clip; "
        "`dirichlet_targets` (one draw): torch.distributions.\n"
        "³ Of the op / of the contender that needs most."
    )
    return table([*header, "peak memory ³"], rows) + "\n\n" + notes + "\n\n" + source(path, results)


def fastest(path: Path) -> str:
    """Each network in its faster dtype; docs/results.md has both."""
    best: dict[str, dict[str, Any]] = {}
    for row in steps_of(clean(path)):
        other = best.get(row["teacher"])
        if other is None or row["engine_ms"] < other["engine_ms"]:
            best[row["teacher"]] = row
    return inversion(path, list(best.values()))


def steps_of(results: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows with a step of the engine; those that say which option of torch.compile was fastest have none.

    Earlier files have the bare network in the dtype of each row, where later ones have it in the faster dtype.
    """
    rows = [row for row in results["rows"] if row.get("engine_ms") is not None]
    for row in rows:
        if "floor_ms" in row:
            both = {other["dtype"]: other["floor_ms"] for other in rows if other["teacher"] == row["teacher"]}
            row["bare"] = min(both, key=lambda dtype: both[dtype])
            row["bare_ms"] = both[row["bare"]]
            times = row["alternatives_ms"]
            row["alternative"] = min(times, key=lambda name: times[name]) if times else None
    return rows


def compiled(row: dict[str, Any]) -> str:
    """The option of torch.compile that was fastest, and its quartiles."""
    if not row["alternative"]:
        return ""
    low, high = row["spread"].get("alternative", (None, None))
    return f" ({row['alternative']}" + (f"; {low:.1f} to {high:.1f} ms)" if low is not None else ")")


def step_name(row: dict[str, Any]) -> str:
    return f"{row['teacher']} {row['size']}², batch {row['batch']}, {row['dtype']}"


def inversion(path: Path, shown: Sequence[dict[str, Any]] | None = None) -> str:
    results = load_json(path)
    steps = steps_of(results)
    bounds_path = path.with_name(path.name.replace("inversion", "roofline"))
    bounds = load_json(bounds_path) if bounds_path.exists() else {"rows": []}
    ideal = {(row["teacher"], row["batch"], row["dtype"]): row for row in bounds["rows"]}
    bounded, rows = bool(bounds["rows"]), []
    for row in steps if shown is None else shown:
        engine, setup = row["engine_ms"], row["setup_s"]
        low, high = row["spread"]["engine"]
        faster = {
            kind: None if row[f"{kind}_ms"] is None else row[f"{kind}_ms"] / engine
            for kind in ("reference", "alternative")
        }
        bound = ideal.get((row["teacher"], row["batch"], row["dtype"]), {})
        rows.append(
            [
                step_name(row),
                f"{engine:.1f} ms ({low:.1f} to {high:.1f})",
                number(faster["reference"], 2, "×"),
                number(faster["alternative"], 2, "×") + compiled(row),
                f"{engine / row['bare_ms']:.2f}× ({row['bare']})",
                number(engine / convolutions, 2, "×") if (convolutions := row.get("convolutions_ms")) else "–",
                *([number(bound.get("ideal_ms"), 1, " ms")] * bounded),
                " / ".join(number(row[f"{kind}_peak_mb"], 0) for kind in ("engine", "alternative", "reference"))
                + " MB",
                f"{number(setup['engine'], 1)} / {number(setup.get('alternative'), 0)} s",
            ]
        )
    header = ["one step", "time (quartiles)", "over published ⁴", "over torch.compile ⁵", "time / bare network ⁶"]
    header += ["time / its convolutions ⁷", *["direct convolutions ⁸"] * bounded, "peak memory ⁹", "set-up ¹⁰"]
    same = all("plain_ms" in row for row in steps)
    reuse = "All contenders run in the engine's reused memory" if same else (
        "Ours and the bare network run in the engine's reused memory, the other two with the C library's allocation"
    )  # fmt: skip
    half = any("float16" in name or "autocast" in name for row in steps for name in row.get("alternatives_ms", ()))
    dtypes = "float32, cast weights and autocast" if half else "float32, as this CPU emulates bfloat16"
    sources = [source(path, results)] + ([source(bounds_path, bounds)] if bounded else [])
    notes = [
        f"{reuse}. Medians of {steps[0]['rounds']} interleaved rounds"
        + ("; the published loop and the C library's allocation take part in every third." if same else "."),
        "⁴ Published style: hooks, weight gradients, "
        + ("float16 autocast." if results["machine"]["gpu"] else "float32."),
        "⁵ The same loss, compiled with the network frozen. The brackets name the fastest option, and its quartiles. "
        "Options: " + (f"{dtypes}, then max-autotune, and that with freezing." if same else "dtypes."),
        "⁶ Forward and input gradient of the network alone in eager PyTorch, BatchNorm folded, in the faster dtype.",
        "⁷ Forward and input gradient of the convolutions of our copy alone, each by the algorithm that the step uses.",
        *bounded
        * [
            "⁸ Computed (`benches/roofline.py`): direct convolutions at the speed of a large matrix product, and each "
            "activation moved once. A step with Winograd's convolutions can be faster, because they need fewer "
            "products. The machine's load was another."
        ],
        "⁹ Without weights and images: ours / torch.compile / published.",
        "¹⁰ Before the first step: ours / torch.compile.",
        f"Weights: {weights_of(steps)}.",
    ]
    parts = [table(header, rows), "\n".join(notes), *sources]
    return "\n\n".join([*parts, reuse_alone(steps)] if same and shown is None else parts)


def weights_of(steps: Sequence[dict[str, Any]]) -> str:
    """Which networks have random weights, and which others."""
    found: dict[str, list[str]] = {}
    for row in steps:
        names = found.setdefault(row["weights"], [])
        if row["teacher"] not in names:
            names.append(row["teacher"])
    return "; ".join(f"{', '.join(names)}: {weights}" for weights, names in found.items())


def reuse_alone(steps: Sequence[dict[str, Any]]) -> str:
    """Time and memory of each contender with the C library's allocation, over those in reused memory."""
    kinds = {"engine": "ours", "alternative": "torch.compile", "bare": "bare network", "reference": "published"}
    rows = []
    for row in steps:
        plain, peaks = row["plain_ms"], row["plain_peak_mb"]
        ratios = [number(plain[kind] / row[f"{kind}_ms"], 2, "×") if kind in plain else "–" for kind in kinds]
        over = number(plain["alternative"] / plain["engine"], 2, "×") if "alternative" in plain else "–"
        memory = " / ".join(number(peaks.get(kind), 0) for kind in ("engine", "alternative", "reference")) + " MB"
        rows.append([step_name(row), *ratios, over, memory])
    header = ["the C library's allocation: time over that in reused memory", *kinds.values()]
    return table([*header, "then ours over torch.compile", "then peak memory ⁹"], rows)


def precision(path: Path) -> str:
    """Both precisions of each network, with the difference of the same seeds."""
    results, asked = load_json(path), {"teacher": 1, "judge": 1, "objective": 2}

    def value(row: dict[str, Any], key: str, digits: int) -> str:
        spread, difference, error = (row[f"{key}_{name}"] for name in ("std", "difference", "difference_error"))
        text = f"{row[key]:.{digits}f}" + ("" if spread is None else f" ± {spread:.{digits}f}")
        compared = row["precision"] != "float32" and error is not None
        return text + (f" ({difference:+.{digits}f} ± {error:.{digits}f})" if compared else "")

    rows = [
        [
            f"{row['network']}, {row['images']} images, {row['steps']} steps, {row['precision']}",
            *(value(row, key, digits) for key, digits in asked.items()),
            number(row["seconds"], 0, " s"),
        ]
        for row in results["rows"]
    ]
    others = " and ".join(dict.fromkeys(row["asked"] for row in results["rows"]))
    note = (
        "Mean and deviation over seeds; in brackets the mean difference from float32 with the same seeds, and twice "
        f"its standard error. {not_excluded(results['rows'])}"
    )
    header = [
        f"{results['rows'][0]['seeds']} seeds",
        "recognised by the teacher, in %",
        f"by {others}, in %",
        "objective",
        "time of a seed",
    ]
    return table(header, rows) + "\n\n" + note + "\n\n" + source(path, results)


def not_excluded(rows: Sequence[dict[str, Any]]) -> str:
    """The differences of bfloat16 that its intervals show, and the losses with the judges that they do not exclude."""
    names = {"teacher": "recognised by the teacher", "judge": "recognised by the other network",
             "objective": "objective"}  # fmt: skip
    compared = [row for row in rows if row["precision"] != "float32" and row["judge_difference_error"] is not None]
    shown = [
        f"{row['network']}, {name}" for row in compared for key, name in names.items()
        if abs(row[f"{key}_difference"]) > row[f"{key}_difference_error"]
    ]  # fmt: skip
    losses = [row["judge_difference_error"] - row["judge_difference"] for row in compared]
    text = f"Intervals without 0: {'; '.join(shown) or 'none'}."
    if losses:
        text += " The intervals of the other networks do not exclude losses of up to "
        text += " and ".join(f"{loss:.0f}" for loss in losses) + " points."
    return text


def impressions(path: Path) -> str:
    """24,000 impressions of 1500 updates. The bench has a loop of its own around the engine's teacher."""
    results, by_hand = load_json(path), "fused teacher, loop of the bench"
    rows = [
        [f"{row['activation']}, {row['loop'].replace('engine', by_hand)}",
         number(row["update_cpu_ms"]["median"], 1, " ms"), number(row["cpu_minutes"], 0, " min"),
         number(row["times_faster"], 1, "×")]
        for row in results["rows"]
    ]  # fmt: skip
    header = ["LeNet-5, CPU time of one thread", "one update of a batch", "24,000 impressions", "speed-up"]
    return table(header, rows) + "\n\n" + source(path, results)


def student(path: Path) -> str:
    """A step of distillation; the same command at an earlier commit gives the column "before"."""
    results = load_json(path)
    cases = [row for row in results["rows"] if "ours" in row]
    earlier = path.with_name(f"{path.stem}-before.json")
    before = load_json(earlier) if earlier.exists() else {"rows": []}

    def key(row: dict[str, Any]) -> tuple[Any, ...]:
        return tuple(row[name] for name in ("network", "batch", "threads", "dtype"))

    def over(row: dict[str, Any] | None, name: str) -> float | None:
        return row[name]["step"]["median"] / row["ours"]["step"]["median"] if row and name in row else None

    old = {key(row): row for row in before["rows"] if "ours" in row}
    rows, parts = [], []
    names = list(cases[0]["ours"])
    for row in cases:
        what = f"{row['network']}, {row['batch']} images, {row['dtype']}"
        what += ", two threads" if row["threads"] == 2 else ""
        plain, ours = row["plain"]["step"], row["ours"]["step"]
        spread = f"{ours['median']:.0f} ({ours['low']:.0f} to {ours['high']:.0f})"
        ratios = [over(old.get(key(row)), "plain"), over(row, "plain"), over(row, "alternative")]
        rows.append([what, number(plain["median"], 0), spread, *(number(ratio, 2, "×") for ratio in ratios)])
        if row["threads"] == 1 and row["batch"] == 128:
            for name in ("plain", "ours"):
                parts.append([f"{what}: {name}", *(number(row[name][part]["median"], 1) for part in names)])
    header = [
        "a step of distillation",
        "plain, ms",
        "ours, ms",
        "over plain, before",
        "over plain",
        "over torch.compile",
    ]
    note = "Medians, of ours with quartiles. With one thread, times are CPU time of the process, with two wall time."
    if before["rows"]:
        note += f" *Before* is `{before['command']}` at commit {before['commit']}."
    shares = [sum(r["ours"][n]["median"] for n in names[:2]) / r["ours"]["step"]["median"] for r in cases]
    low, high = 100 * min(shares), 100 * max(shares)
    note += f" Rows and augmentation take {low:.1f} to {high:.1f} % of our steps: the most that a thread could gain"
    note += " which prepares them in the background."
    texts = [table(header, rows), note, table(["parts of a step, ms", *names], parts)]
    for row in results["rows"]:
        if found := row.get("scaling"):
            one, two, both = (found[f"{name}_ms"] for name in ("one_thread", "two_threads", "two_processes"))
            text = f"{found['network']}, {found['batch']} images, {found['dtype']}: "
            text += f"two threads take {one / two:.2f} times as many steps a second as one; "
            text += f"two processes of one thread side by side take {2 * one / both:.2f} "
            texts.append(text + "times as many.")
    return "\n\n".join([*texts, source(path, results)])
