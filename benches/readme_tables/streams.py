"""Tables of ex-model streams (Carta 2022), the demo, and merging."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from exml_fast.continual import METHODS
from exml_fast.data import SOURCES
from exml_fast.reproduction.published import published
from exml_fast.storage import load_json
from readme_tables.common import OUR_SETTINGS, number, reached, source, table
from readme_tables.headlines import best_of_carta


def distillation_steps(settings: dict[str, Any]) -> int:
    """Steps for each expert; earlier files call them iterations."""
    found = settings["distillation"]
    return int(found["steps"] if "steps" in found else found["iterations"])


def demo(path: Path) -> str:
    """The demo's run of seed 0; with runs of further seeds beside it, the accuracy of each and their mean."""
    files = [path, *sorted(path.parent.glob(f"{path.stem}-seed-*.json"))]
    results, *more = [load_json(file) for file in files]
    rows = []
    for row in results["rows"]:
        others = [next(other["ours"] for other in run["rows"] if other["cell"] == row["cell"]) for run in more]
        accuracies = [row["ours"], *others, *([statistics.mean([row["ours"], *others])] if more else [])]
        shown = [number(value, 1, " %") for value in accuracies]
        rows.append([row["name"], *shown, number(row["seconds"], 0, " s"), number(row["peak_mb"], 0, " MB")])
    seeds = [f"seed {run['settings']['seed']}" for run in (results, *more)]
    header = ["scikit-learn's digits: accuracy", *seeds, "mean"] if more else ["scikit-learn's digits", "accuracy"]
    cut: dict[str, list[str]] = {}
    for row in results["rows"]:
        if row["kind"] == "strategy":
            cut.setdefault(row["note"], []).append(row["name"])
    note = [" ".join(f"{' and '.join(names)}: {text}." for text, names in cut.items())]
    note += [budgets] if (budgets := unequal_budgets(results)) else []
    note += ["Time and memory are those of seed 0."] if more else []
    sources = [source(file, run) for file, run in zip(files, (results, *more), strict=True)]
    return "\n\n".join([table([*header, "time", "peak memory"], rows), *note, *sources])


def unequal_budgets(results: dict[str, Any]) -> str:
    """Images and time of the methods that learn from several experts; "" if all have the same."""
    budgets: dict[str, list[dict[str, Any]]] = {}
    for row in results["rows"]:
        if row["kind"] == "strategy" and "joint expert" not in row["name"]:
            settings = results["settings"]["random_images" if METHODS[row["slug"]].source else "distillation"]
            images = f"{settings['buffer_size']} images"
            images += f" in {settings['views']} views each" if settings.get("views", 1) > 1 else ""
            budgets.setdefault(images, []).append(row)
    if len(budgets) < 2:
        return ""
    parts = []
    for images, rows in budgets.items():
        seconds = " and ".join(dict.fromkeys(number(row["seconds"], 0) for row in rows))
        parts.append(f"{' and '.join(row['name'] for row in rows)} learned from {images} in {seconds} s")
    return f"The rows do not have equal budgets: {', '.join(parts)}."


def carta(path: Path) -> str:
    results = load_json(path)
    settings, rows = results["settings"], []
    for row in results["rows"]:
        ours = reached(row) + (" ¹" if row["reduced"] else "")
        rows.append([row["cell"].split("/", 2)[-1], number(row["paper"]), ours, number(row["seconds"] / 60, 1, " min")])
    shorter = f"\n\n¹ {distillation_steps(settings)} distillation steps for each expert; the paper takes 30,000."
    what = "five experts of two classes each" if settings["scenario"] == "new-classes" else "one expert of ten classes"
    header = [f"MNIST, {what}: accuracy in %", "Carta 2022, Table 2", f"ours, {settings['seeds']} seeds", "time"]
    footnote = shorter if any(row["reduced"] for row in results["rows"]) else ""
    oracle = next(row for row in results["rows"] if row["name"] == "Oracle")
    if settings["scenario"] == "joint" and oracle["ours"] > oracle["paper"] + 1:
        footnote += (
            f"\n\nOur expert has {oracle['ours']:.1f} %, the paper's {oracle['paper']:.1f} %: the students cannot be "
            "compared directly."
        )
    return table(header, rows) + footnote + "\n\n" + source(path, results)


def calibrated(path: Path) -> str:
    """Methods first; studies of the same experts share the baselines."""
    results = load_json(path)
    found = {row["cell"]: row for row in results["rows"]}
    rows = []
    for row in sorted(found.values(), key=lambda row: row["kind"] != "strategy"):
        ours = row["kind"] == "strategy"
        known = SOURCES[METHODS[row["slug"]].source or ""].domain if ours else "–"
        name = row["cell"].split("/", 2)[-1] + (" ¹¹" if ours else "")
        rows.append([name, known, reached(row), number(row["seconds"] / 60, 1, " min")])
    batch_norm = any(values["arguments"].get("batch_norm") for values in results["details"].values())
    experts = "LeNet-5 with BatchNorm" if batch_norm else "LeNet-5"
    header = [f"MNIST, five {experts} of two classes each: accuracy in %", "knowledge of the domain"]
    seeds = f"{results['rows'][0]['seeds']} seeds"
    shares = {
        (METHODS["inverted-strokes"].settings | values["random_images"])["background_share"]
        for values in results["details"].values()
        if any(METHODS[name].inverts_source for name in values["strategies"])
    }
    inverted = "".join(f", {1 - share:.0%} of them inverted from the experts" for share in sorted(shares))
    views = max(values.get("random_images", {}).get("views", 1) for values in results["details"].values())
    forms = f", each in {views} views" if views > 1 else ""
    images = f"5000 in the buffer{forms}{inverted}"
    note = f"¹¹ Calibrated responses to random images: {images}. "
    if not batch_norm:  # the paper has no such experts
        best = best_of_carta("mnist/NC")[1]
        note += f"The best method of Carta 2022 without the experts' data reaches {best:.1f} % with its own experts. "
    note += "Some settings were chosen with these test digits ([which](ex_model.md#limitations))."
    return table([*header, seeds, "time"], rows) + "\n\n" + note + "\n\n" + source(path, results)


def cifar10(path: Path) -> str:
    """Our methods first, in every scenario; with what was shorter than published."""
    results = load_json(path)
    rows, notes = [], []
    for row in sorted(results["rows"], key=lambda row: row["kind"] != "strategy"):
        name = row["cell"].split("/", 1)[1] + (OUR_SETTINGS if row["kind"] == "strategy" else "")
        rows.append([name, number(row["paper"]), reached(row)])
        rows[-1].append(number(row["seconds"] / 60, 1, " min"))
        if row["kind"] == "strategy":
            scenario = row["cell"].split("/")[1]
            best, accuracy = best_of_carta(f"cifar10/{scenario}")
            notes.append(f"{scenario}: {row['note']}. The paper's best method here is {best} ({accuracy:.1f} %).")
            notes.append("Images and students are made by settings of ours (`calibrated/cifar10`).")
    seeds = results["rows"][0]["seeds"]
    scenarios = {row["cell"].split("/")[1] for row in results["rows"]}
    experts = ", one slim ResNet-18 of ten classes" if scenarios == {"Joint"} else ""
    header = [f"CIFAR-10{experts}, reduced: accuracy in %", "Carta 2022, Table 2"]
    header += ["one seed" if seeds == 1 else f"{seeds} seeds", "time"]
    return table(header, rows) + "\n\n" + " ".join(dict.fromkeys(notes)) + "\n\n" + source(path, results)


def rates(path: Path) -> str:
    """Experts trained as the text of Carta 2022, App. A says, beside those of its table (docs/results.md)."""
    by_table, by_text = load_json(path.with_name("carta2022-table2-mnist-nc.json")), load_json(path)
    theirs = {row["cell"]: row for row in by_table["rows"]}
    (settings,) = by_text["details"].values()
    rows = [
        [row["cell"].split("/", 2)[-1], number(row["paper"])] + [reached(found) for found in (theirs[row["cell"]], row)]
        for row in by_text["rows"]
    ]
    paper = published("mnist", "new-classes")
    assert paper is not None
    usual = paper.epochs
    trained = [f"experts at {s['expert_lr']}, {s['epochs'] or usual} epochs" for s in (by_table["settings"], settings)]
    length = (by_text["rows"][0]["seeds"], distillation_steps(settings))
    shown = (by_table["settings"]["seeds"], distillation_steps(by_table["settings"]))
    if length != shown:
        raise ValueError(f"{path.name}: seeds and steps are {length}, those of the table in docs/results.md {shown}")
    note = f"{length[0]} seeds; {length[1]} distillation steps for each expert."
    header = ["MNIST NC: accuracy in %", "Carta 2022, Table 2", *trained]
    return table(header, rows) + "\n\n" + note + "\n\n" + source(path, by_text)


def strategies(path: Path) -> str:
    """Strategies that are not in docs/results.md, beside those that are, on the same experts."""
    shown, others = load_json(path.with_name("carta2022-table2-mnist-nc.json")), load_json(path)
    settings = [shown["settings"], *others["details"].values()]
    steps = {distillation_steps(each) for each in settings}
    found = [row for results in (shown, others) for row in results["rows"] if row["kind"] == "strategy"]
    seeds = {row["seeds"] for row in found}
    oracles = [row["ours"] for results in (shown, others) for row in results["rows"] if row["name"] == "Oracle"]
    if len(steps) > 1 or len(seeds) > 1 or abs(oracles[0] - oracles[1]) > 0.05:
        raise ValueError(
            f"{path.name}: steps {steps}, seeds {seeds} and oracles {oracles} differ from the table in docs/results.md"
        )
    rows = [[row["cell"].split("/", 2)[-1], number(row["paper"]), reached(row)] for row in found]
    note = f"{seeds.pop()} seeds; {steps.pop()} distillation steps for each expert, the paper takes 30,000."
    header = ["MNIST NC: accuracy in %", "Carta 2022, Table 2", "ours"]
    note += " The first three rows come from [results.md](results.md), the others from the command below."
    return table(header, rows) + "\n\n" + note + "\n\n" + source(path, others)


def buffer_sizes(path: Path) -> str:
    """Strategies by the buffer's size."""
    results = load_json(path)
    found: dict[str, dict[int, float]] = {}
    for row in results["rows"]:
        if row["kind"] == "strategy":
            found.setdefault(row["name"], {})[row["buffer_size"]] = row["ours"]
    sizes = sorted({size for ours in found.values() for size in ours})
    rows = [[name, *(number(ours[size]) for size in sizes)] for name, ours in found.items()]
    note = next(row["note"] for row in results["rows"] if row["kind"] == "strategy")
    seeds = results["rows"][0]["seeds"]
    header = ["MNIST NC: accuracy in %, by images in the buffer", *map(str, sizes)]
    return table(header, rows) + f"\n\n{seeds} seed{'s' if seeds > 1 else ''}; {note}. " + source(path, results)


def merging(path: Path) -> str:
    """Baselines that merge weights: accuracy on all classes, and among those of the task, by source of images."""
    results = load_json(path)
    found = {(row["name"], row["images"]): row for row in results["rows"]}
    sources = [source for source in dict.fromkeys(images for _, images in found) if source]

    def cell(row: dict[str, Any] | None) -> str:
        return "–" if row is None else f"{number(row['accuracy'])} / {number(row.get('task_accuracy'))}"

    rows = [
        [name, *([cell(found[name, ""])] * len(sources) if (name, "") in found else
                 [cell(found.get((name, source))) for source in sources])]
        for name in dict.fromkeys(name for name, _ in found)
    ]  # fmt: skip
    network = path.stem.removeprefix("merging-").replace("-batch-norm", ", LeNet-5 with BatchNorm")
    header = [f"{network}: class- / task-incremental accuracy in %", *(f"images: {source}" for source in sources)]
    note = f"{results['rows'][0]['seeds']} seeds; five experts of two classes each, which start from common weights."
    return table(header, rows) + "\n\n" + note + "\n\n" + source(path, results)


def calibration(path: Path) -> str:
    """Ensembles by source; ex-models below."""
    results = load_json(path)
    name = path.stem.removeprefix("calibration-")
    sources = [s for s in dict.fromkeys(row["source"] for row in results["rows"]) if s in SOURCES]
    text = []
    for kind, title in (("ensemble", "ensemble of the experts' own logits"), ("ex-model", "ex-model, few steps")):
        found = {(row["what"], row["source"]): row["accuracy"] for row in results["rows"] if row["kind"] == kind}
        if not found:
            continue
        rows = []
        for what in dict.fromkeys(what for what, _ in found):
            single = [value for (w, source), value in found.items() if w == what and source not in sources]
            rows.append([what, *(number(v) for v in (single * 3 if single else [found[what, s] for s in sources]))])
        text.append(table([f"{name}, {title}: accuracy in %", *sources], rows))
    return "\n\n".join([*text, source(path, results)])


def ex_model(path: Path) -> str:
    results = load_json(path)
    rows = [
        [f"{row['cell']}, {row['asked']}", number(row["published_hours"], 2, " h"), number(row["ours_hours"], 2, " h"),
         number(row["times_faster"], 2, "×")]
        for row in results["rows"]
    ]  # fmt: skip
    first = results["rows"][0]
    steps = first["step_cpu_ms"]
    parts = ", ".join(
        f"{what} {steps[f'published {key}']['median']:.1f} and {steps[f'own {mine}']['median']:.1f} ms"
        for what, key, mine in (
            ("inversion of 256 images", "inversion", f"inversion, {results['rows'][-1]['asked']}"),
            ("distillation from the first expert", "distillation, first expert", "distillation, first expert"),
            ("distillation from later experts", "distillation, later experts", "distillation, later experts"),
        )
    )
    counted = {(row["own_inversion_steps"], row["inversion_steps"]) for row in results["rows"]}
    fewer = ", ".join(f"{own} for {theirs}" for own, theirs in sorted(counted) if own < theirs)
    note = (
        "Computed from the time of single steps, not run as a whole. Published and ours: "
        f"{parts}. {first['weights'].capitalize()} weights."
    )
    note += f" Ours stops image by image and takes fewer steps of inversion ({fewer})." if fewer else ""
    note += f" Other load: {first['note']}." if first["note"] else ""
    header = ["a whole run, CPU time of one thread", "published style", "ours", "speed-up"]
    return table(header, rows) + "\n\n" + note + "\n\n" + source(path, results)
