"""A whole run on MNIST NC with the published settings (Carta 2022, App. B.1): ours against a typical published loop.

    python benches/ex_model.py
    python benches/ex_model.py --experts FOLDER    # trained LeNet-5 instead of random weights; also with early stopping

The run has five LeNet-5 experts. Their 5000, 2500, 1666, 1250 and 1000 images take 3000 steps each, in batches of 256,
and each expert takes 30,000 distillation steps. The benchmark times a step of each kind, in interleaved rounds, and
computes the time of the run from it; for ours it adds the time to prepare the experts. Times are CPU time of one
thread, because other load on the machine changes it less than wall-clock time.

- published: eager PyTorch as published code is written. Every step draws its crop and clips in Python, the network
  computes gradients of its weights, norms are sums of tensors, and `.item()` follows. Distillation samples, augments
  and evaluates both teachers for every batch.
- ours: `exml_fast.Synthesizer` and `exml_fast.ExModelDistillation`, through their public interfaces.

Both take the same number of steps of the same loss (python_tests/test_benches.py). Early stopping ends an image
(published: a batch) once the expert gives its class a probability of 0.99 (Carta 2022, sec. 5.1).
"""

from __future__ import annotations

import argparse
import copy
import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from measure import RESULTS, as_row, rotating, write_results
from torch import Tensor, nn

from exml_fast import DistillationConfig, ExModelDistillation, ExpertStream, InputSpec, Synthesizer, recipes
from exml_fast.continual import Card, Expert, Strategy
from exml_fast.inversion import Result
from exml_fast.models import create

SPEC = InputSpec(1, (32, 32), (0.1307,), (0.3081,))
EXPERTS, CLASSES = 5, 10
CONFIG = DistillationConfig()
RECIPE = recipes.get("model_inversion/mnist").replace(stop_confidence=None)
PAD, BLUR_SIDE, BLUR_SIGMA = 4, 3, 1.0
BLOCK = 50


def random_experts() -> list[Expert]:
    """LeNet-5 with ten logits and random weights, two classes each."""
    ids, names = tuple(range(CLASSES)), tuple(map(str, range(CLASSES)))
    experts = []
    for i in range(EXPERTS):
        card = Card("lenet5", {"num_classes": CLASSES}, ids, (2 * i, 2 * i + 1), names, SPEC)
        experts.append(Expert(create("lenet5", num_classes=CLASSES), card))
    return experts


def images_of_each() -> list[int]:
    """Number of images of each expert (Alg. 1)."""
    return [CONFIG.buffer_size // (i + 1) for i in range(EXPERTS)]


def batches(images: int) -> int:
    return math.ceil(images / RECIPE.optimisation.batch_size)


# Published style.


class PublishedInversion:
    """A step of inversion."""

    def __init__(self, model: nn.Module, labels: Tensor, start: Tensor) -> None:
        self.model, self.labels, self.recipe = copy.deepcopy(model), labels, RECIPE
        self.model.requires_grad_(True).eval()
        self.x = start.clone().requires_grad_()
        self.optimizer = torch.optim.Adam([self.x], RECIPE.optimisation.lr)
        line = torch.exp(-torch.arange(-(BLUR_SIDE // 2), BLUR_SIDE // 2 + 1).float().square() / (2 * BLUR_SIGMA**2))
        line = line / line.sum()
        self.kernel = torch.outer(line, line)[None, None]

    def loss(self, down: int, right: int) -> Tensor:
        recipe, x = self.recipe, self.x
        height, width = x.shape[2:]
        cropped = F.pad(x, [PAD] * 4)[:, :, PAD - down : PAD - down + height, PAD - right : PAD - right + width]
        loss = F.cross_entropy(self.model(cropped) / recipe.classification.temperature, self.labels)
        side = BLUR_SIDE // 2
        blurred = F.conv2d(F.pad(x, [side] * 4, mode="reflect"), self.kernel)
        loss = loss + recipe.priors.blur * torch.sum((x - blurred) ** 2, (1, 2, 3)).mean()
        return loss + recipe.priors.l2 * torch.sum(x**2, (1, 2, 3)).mean()

    def __call__(self) -> float:
        down, right = (int(torch.randint(-PAD, PAD + 1, (1,))) for _ in range(2))
        self.optimizer.zero_grad()
        self.model.zero_grad()
        loss = self.loss(down, right)
        loss.backward()
        self.optimizer.step()
        limit = float(self.recipe.pixels.clip or 0)
        self.x.data = torch.clamp(self.x.data, -limit, limit)
        return loss.item()


class PublishedDistillation:
    """A step of distillation: targets of each unit, MSE over the known units, cross-entropy (Eq. 6 to 10)."""

    def __init__(
        self, student: nn.Module, expert: Expert, previous: nn.Module | None, known: list[int], images: Tensor,
        labels: Tensor,
    ) -> None:  # fmt: skip
        self.student, self.previous, self.config = copy.deepcopy(student).train(), previous, CONFIG
        self.expert = copy.deepcopy(expert.model).eval()
        self.classes, self.known, self.images, self.labels = list(expert.classes), known, images, labels
        self.optimizer = torch.optim.SGD(self.student.parameters(), lr=CONFIG.training.lr)
        self.low = float(SPEC.bounds()[0])

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        target, mask = torch.zeros(len(x), CLASSES), torch.zeros(CLASSES)
        with torch.no_grad():
            target[:, self.classes] += self.expert(x)[:, self.classes]
            mask[self.classes] += 1
            if self.previous is not None:
                target[:, self.known] += self.previous(x)[:, self.known]
                mask[self.known] += 1
        seen = sorted({*self.classes, *self.known})
        logits = self.student(x)
        mse = (((logits - target) ** 2) * mask).sum(1) / mask.sum()
        return mse.mean() + self.config.lambda_ce * F.cross_entropy(logits[:, seen], y)

    def __call__(self) -> float:
        index = torch.randint(len(self.images), (self.config.training.batch_size,))
        x = F.pad(self.images[index], [PAD] * 4, value=self.low)
        down, right = (int(torch.randint(0, 2 * PAD + 1, (1,))) for _ in range(2))
        loss = self.loss(x[:, :, down : down + 32, right : right + 32], self.labels[index])
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item()


# Ours.


class OwnInversion:
    """Milliseconds of a step of the Synthesizer, measured over the second of two blocks."""

    def __init__(self, model: nn.Module, labels: Tensor, precision: str) -> None:
        recipe = RECIPE.replace(steps=2 * BLOCK)
        begun = time.process_time()
        self.synthesizer = Synthesizer(model, SPEC, recipe, block=BLOCK, precision=precision)
        self.prepared = time.process_time() - begun
        self.labels = labels

    def __call__(self) -> float:
        stamps: list[float] = []
        self.synthesizer.run(self.labels, progress=lambda *_: stamps.append(time.process_time()))
        return 1e3 * (stamps[1] - stamps[0]) / BLOCK


class OwnDistillation(Strategy):
    """Milliseconds of a step for the first and for the second expert, measured over the second of two blocks."""

    def __init__(self, experts: list[Expert], images: Tensor, labels: Tensor, block: int = 100) -> None:
        self.experts, self.images, self.labels, self.block = experts[:2], images, labels, block
        self.config = CONFIG.replace(steps=2 * block)

    def samples(self, expert: Expert, count: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """The method of a strategy: returns the given images."""
        own = torch.isin(self.labels, torch.tensor(expert.classes))
        return self.images[own][:count].repeat(2, 1, 1, 1)[:count], self.labels[own][:count].repeat(2)[:count]

    def describe(self) -> dict[str, Any]:
        return {"strategy": "bench"}

    def __call__(self) -> list[float]:
        stamps: dict[str, list[float]] = {}

        def progress(stage: str, *_: Any) -> None:
            stamps.setdefault(stage, []).append(time.process_time())

        ExModelDistillation(self, self.config).run(ExpertStream(self.experts), progress=progress)
        return [1e3 * (at[1] - at[0]) / self.block for stage, at in stamps.items() if stage.endswith("distil")]


def cpu_ms(step: Callable[[], Any], count: int) -> float:
    begun = time.process_time()
    for _ in range(count):
        step()
    return 1e3 * (time.process_time() - begun) / count


def hours(inversion_ms: float, steps: list[float], distillation_ms: tuple[float, float], prepared: float) -> float:
    """Hours of the run.

    ``steps`` counts the inversion steps of batches for each expert, ``distillation_ms`` is the time of a step for the
    first and for later experts, and ``prepared`` the seconds to prepare an expert.
    """
    first, later = distillation_ms
    distilled = CONFIG.training.steps * (first + (EXPERTS - 1) * later)
    return (inversion_ms * sum(steps) + distilled + 1e3 * prepared * EXPERTS) / 3600e3


def early_stop(experts: list[Expert]) -> dict[str, list[float]]:
    """Inversion steps of batches for each expert with early stopping, estimated from one batch of each expert.

    Ours stops single images, published code whole batches.
    """
    recipe = RECIPE.replace(stop_confidence=0.99)
    steps: dict[str, list[float]] = {"published": [], "ours": []}
    for expert, count in zip(experts, images_of_each(), strict=True):
        labels = torch.tensor(expert.classes).repeat(recipe.optimisation.batch_size // 2)
        found: Result = Synthesizer(expert.model, SPEC, recipe, units=expert.units).run(labels, classes=expert.classes)
        taken = len(next(iter(found.history.values())))
        steps["published"].append(taken * batches(count))
        steps["ours"].append(found.summary["steps_per_image"] * batches(count))
    return steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=RESULTS / "ex-model-cpu.json")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--experts", type=Path, help="folder of five LeNet-5 experts of MNIST")
    parser.add_argument("--precisions", nargs="+", default=["float32", "auto"])
    parser.add_argument("--note", default="", help="other load on the machine during the run")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    experts = list(ExpertStream(arguments.experts)) if arguments.experts else random_experts()
    model = experts[0].model
    labels = torch.tensor(experts[0].classes).repeat(RECIPE.optimisation.batch_size // 2)
    start = torch.randn(len(labels), *SPEC.shape)
    images, of = torch.randn(CONFIG.buffer_size, *SPEC.shape), torch.arange(CONFIG.buffer_size) % CLASSES
    published = PublishedInversion(model, labels, start)
    own = {precision: OwnInversion(model, labels, precision) for precision in arguments.precisions}
    known = list(experts[0].classes)
    student = create("lenet5", num_classes=CLASSES)
    first = PublishedDistillation(student, experts[0], None, [], images, of % 2)
    later = PublishedDistillation(student, experts[1], copy.deepcopy(student).eval(), known, images, of % 4)
    distillation = OwnDistillation(experts, images, of)
    # One run of our distillation measures both times.
    latest = [0.0, 0.0]

    def own_first() -> float:
        latest[:] = distillation()
        return latest[0]

    laters: list[float] = []
    contenders: dict[str, Callable[[], float]] = {
        "published inversion": partial(cpu_ms, published, 10),
        "published distillation, first expert": partial(cpu_ms, first, 50),
        "published distillation, later experts": partial(cpu_ms, later, 50),
        **{f"own inversion, {precision}": inversion for precision, inversion in own.items()},
        "own distillation, first expert": own_first,
    }
    for warm_up in contenders.values():
        warm_up()

    def both() -> float:
        value = own_first()
        laters.append(latest[1])
        return value

    contenders["own distillation, first expert"] = both
    timings = as_row(rotating(contenders, arguments.rounds))
    timings["own distillation, later experts"] = as_row(rotating({"later": iter(laters).__next__}, arguments.rounds))[
        "later"
    ]
    print({name: round(t["median"], 3) for name, t in timings.items()})

    def median(name: str) -> float:
        return timings[name]["median"]

    steps = [float(RECIPE.optimisation.steps * batches(count)) for count in images_of_each()]
    plans = {"all steps": {"published": steps, "ours": steps}}
    if arguments.experts:
        plans["stop at 0.99"] = early_stop(experts)
    rows = []
    for plan, wanted in plans.items():
        for precision in arguments.precisions:
            theirs = hours(
                median("published inversion"), wanted["published"],
                (median("published distillation, first expert"), median("published distillation, later experts")), 0.0,
            )  # fmt: skip
            ours = hours(
                median(f"own inversion, {precision}"), wanted["ours"],
                (median("own distillation, first expert"), median("own distillation, later experts")),
                own[precision].prepared,
            )  # fmt: skip
            rows.append(
                {
                    "cell": f"MNIST NC, {plan}", "precision": own[precision].synthesizer.teacher.precision,
                    "asked": precision, "published_hours": round(theirs, 4), "ours_hours": round(ours, 4),
                    "times_faster": round(theirs / ours, 3), "inversion_steps": round(sum(wanted["published"])),
                    "own_inversion_steps": round(sum(wanted["ours"])),
                    "distillation_steps": CONFIG.training.steps * EXPERTS, "rounds": arguments.rounds,
                    "step_cpu_ms": timings, "weights": "trained" if arguments.experts else "random",
                    "note": arguments.note,
                }
            )  # fmt: skip
            print(f"{plan}, {precision}: {theirs:.2f} h published, {ours:.2f} h ours, {theirs / ours:.2f} times faster")
    write_results(arguments.json, rows)


if __name__ == "__main__":
    main()
