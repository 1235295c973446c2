"""The table of headlines: our best figures beside the published ones."""

from __future__ import annotations

import re
import statistics
from dataclasses import dataclass
from pathlib import Path

from exml_fast.reproduction.published import published
from exml_fast.reproduction.study_settings import SCENARIOS
from exml_fast.storage import load_json
from readme_tables.common import clean, number, table


@dataclass(frozen=True)
class Headline:
    """A row of the table of headlines."""

    what: str
    file: str
    cell: str
    """Of our figure."""
    published: str | None
    """The paper's figure: a cell of the same file, or the best method of Carta 2022 in a scenario, as "mnist/NC"."""
    teacher: str
    """Cell of the teacher's accuracy, or of the experts' ensemble."""
    page: str
    known: str = "–"
    """What was known of the domain, besides the networks."""
    tested: bool = False
    """Whether settings were chosen with these test images, too."""
    chosen: int = 1
    """Number of seeds that took part in a choice: the first of each file. They are left out."""
    own: bool = False
    """Whether a method of ours takes the place of the paper's."""
    comparable: bool = True
    """Whether the paper's figure is of the same task. A row that is not comparable is never bold."""


ROBUST = "nayak2021-table4-mnist"


HEADLINES = [
    Headline("LeNet-5 → half a LeNet-5, MNIST", "nayak2021-table1", "ZSKD", "ZSKD", "Teacher-CE", "transfer",
             "dark background", tested=True),
    Headline("the same, Fashion-MNIST", "nayak2021-table2", "ZSKD", "ZSKD", "Teacher-CE", "transfer",
             "natural spectrum", tested=True),
    Headline("AlexNet → half an AlexNet, CIFAR-10", "calibrated-cifar10-zskd", "ZSKD", "ZSKD", "Teacher-CE", "transfer",
             "natural spectrum", tested=True, own=True),
    Headline("MNIST network adapted to USPS", "nayak2021-table5-mnist-usps", "Rehearsal/Avg", "Ours/Avg",
             "Baseline/Avg", "transfer", "unlabelled USPS images", tested=True, chosen=0, own=True),
    Headline("USPS network adapted to MNIST", "nayak2021-table5-usps-mnist", "Rehearsal/Avg", "Ours/Avg",
             "Baseline/Avg", "transfer", "unlabelled MNIST images", tested=True, chosen=0, own=True),
    Headline("a robust LeNet-5 → half a LeNet-5, MNIST under PGD", ROBUST, "robust Student under attack/pgd A_adv",
             "robust Student/pgd A_adv", "robust Teacher/pgd A_adv", "transfer", own=True, comparable=False),
    Headline("five experts of two classes each, MNIST", "calibrated-mnist-nc-inverted", "MNIST/NC/Inverted Strokes ED",
             "mnist/NC", "MNIST/NC/Ensemble Avg.", "ex_model", "pen drawings", tested=True, own=True,
             comparable=False),
    Headline("the same, experts with BatchNorm", "calibrated-mnist-nc-bn-inverted", "MNIST/NC/Inverted Strokes ED",
             None, "MNIST/NC/Ensemble Avg.", "ex_model", "pen drawings", tested=True, own=True),
]  # fmt: skip


OWN = (
    "§ A method of ours in place of the paper's. In the row of CIFAR-10 the images are DeepInversion's by our recipe, "
    "not Data Impressions."
)


# Rows of the README, and a name that needs no row before it.
FULL_NAME = "five experts of two classes each, with BatchNorm, MNIST"


FIVE = (
    "LeNet-5 → half a LeNet-5, MNIST",
    "AlexNet → half an AlexNet, CIFAR-10",
    "USPS network adapted to MNIST",
    "five experts of two classes each, MNIST",
    "the same, experts with BatchNorm",
)


def best_of_carta(scenario: str) -> tuple[str, float]:
    """Name and accuracy of the best method of Carta 2022 without the experts' data in a scenario, as "mnist/NC"."""
    data, _, short = scenario.partition("/")
    found = published(data, next(name for name, shown in SCENARIOS.items() if shown == short))
    assert found is not None
    methods = {name: value for name, value in found.paper.items() if name.startswith(("Model", "Data", "Auxiliary"))}
    best = max(methods, key=lambda name: methods[name])
    return best, methods[best]


def headline(row: Headline, folder: Path) -> list[str]:
    """Our figure, of the seeds that took part in no choice, beside the paper's."""
    found = {cell["cell"]: cell for cell in clean(folder / f"{row.file}.json")["rows"]}
    ours, teacher = found[row.cell], found[row.teacher]
    values = ours["values"][row.chosen :]
    if len(values) < 2:
        raise ValueError(f"{row.what} cannot be a headline: {len(values)} of its seeds took part in no choice")
    paper = None
    if row.published is not None:
        paper = found[row.published]["paper"] if row.published in found else best_of_carta(row.published)[1]
    signs = " †" * ours["reduced"] + " ‡" * row.tested + " §" * row.own
    own = statistics.mean(teacher["values"][row.chosen :])
    accuracies = f"{number(teacher['paper'] if row.published else None)} / {number(own)}"
    mean = f"{statistics.mean(values):.1f}"
    mean = f"**{mean}**" if paper is not None and row.comparable and min(values) > paper else mean
    mean += f" ± {statistics.stdev(values):.1f}{signs}"
    return [row.what, row.known, number(paper), mean, str(len(values)), accuracies, f"[{row.page}]({row.page}.md)"]


def five_experts(folder: Path) -> str:
    """What others reach with the five experts of MNIST, of the seeds of the headline."""
    files = {name: clean(folder / f"{name}.json") for name in (
        "carta2022-table2-mnist-nc", "calibrated-mnist-nc-inverted")}  # fmt: skip
    rows = {row["name"]: row for file in files.values() for row in file["rows"]}
    found = {name: statistics.mean(row["values"][1:]) for name, row in rows.items()}
    papers = max((name for name in found if name.endswith(("Inversion", "Impression", "Data"))), key=found.__getitem__)
    length = re.search(r"\d+ of \d+ distillation steps", rows[papers]["note"])
    assert length is not None
    return (
        f"With our five experts of MNIST without BatchNorm the best of the paper's methods, {papers}, has "
        f"{found[papers]:.1f} % here ({length[0]}), and Min. Entropy, which keeps all experts, "
        f"{found['Min. Entropy']:.1f} %. The paper's experts were weaker, so its figure is not comparable with ours."
    )


def robust_student(folder: Path) -> str:
    """Why the published figure of the robust student is not comparable."""
    bound = load_json(folder / f"{ROBUST}.json")["settings"]["attack"]["epsilon"]
    return (
        f"Nayak 2021 distils the robust student without attacks and does not give the bound of PGD. Our robust student "
        f"is distilled under PGD, and the bound is {bound}: the figures are not comparable."
    )


def headlines(folder: Path) -> str:
    """Our figures beside the published ones; all of :data:`HEADLINES`."""
    header = ["trained without the teachers' data: accuracy in %", "known of the domain", "published ᵃ", "ours"]
    header += ["seeds ᵇ", "teacher, published / ours ᶜ", "page"]
    notes = (
        "ᵃ The paper's best figure without the teachers' data, images of other data sets included. The papers knew "
        "nothing of pen drawings or of the natural spectrum. Carta 2022 has no experts with BatchNorm on MNIST. "
        f"{robust_student(folder)} {five_experts(folder)}\n"
        "ᵇ Seed 0 took part in choices of settings and is left out. The pages have all seeds, and rows of one seed.\n"
        "ᶜ Of the adapted networks: before adaptation. Of five experts: the average of all of their outputs, where "
        "they may be kept. A better teacher than the paper's may explain a better student.\n"
        "† The run was shorter than published, or than our preset.\n"
        "‡ Some settings were chosen with these test images, on seed 0 or before, or the accuracy on them was printed "
        "beside the choice. The page says which.\n"
        f"{OWN} In the rows of five experts they are pen drawings and images inverted from the experts. The images of "
        "the other rows are Data Impressions, as in the paper, with settings of ours.\n"
        "Bold: the paper has a comparable figure, and every seed is above it."
    )
    return table(header, [headline(row, folder) for row in HEADLINES]) + "\n\n" + notes


def five_headlines(folder: Path) -> str:
    """The rows :data:`FIVE` of :func:`headlines`, with the names of their tasks in full."""
    lines = headlines(folder).splitlines()
    chosen = [next(line for line in lines if line.startswith(f"| {what} |")) for what in FIVE]
    shown = [line.replace("| the same, experts with BatchNorm |", f"| {FULL_NAME} |") for line in chosen]
    text = "\n".join([*lines[:2], *shown]).replace("](", "](docs/")
    notes = (
        "ᵃ The paper's best figure without the teachers' data. ᵇ Of the seeds that took part in no choice of settings. "
        "ᶜ Of the adapted network: before adaptation. Of five experts: the average of their outputs. Bold: the paper "
        "has a comparable figure, and every seed is above it.\n"
        f"† Shorter than published. ‡ Some settings were chosen with these test images. {OWN} {five_experts(folder)} "
        "All signs, and reservations: [results](docs/results.md#all-headlines)."
    )
    return f"{text}\n\n{notes}"
