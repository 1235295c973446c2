"""Images of judged quality: ours beside the published-style DeepInversion loop at its own length, in one run.

    python benches/judged_quality.py cifar10 --cifar10 cifar10.npz --weights weights --judges judges --work work
    python benches/judged_quality.py efficientnet-lite0 --work work

Both make the same number of images of the same classes from the same network. The published loop takes the published
number of steps. It stops several times on the way, and ours runs from start to end at each stop, set-up included, so
that both are timed under the same load. Networks that no choice of settings has seen then classify the images, as
pictures with pixels in [0, 1]. Times are those of one thread: CPU time of the process, and time on the clock.

The loop is that of :class:`inversion.Published`, with a published recipe; --published bn=10 changes a field of it. A
run that is interrupted continues from the folder --work. Where the whole loop takes hours, --sample 20 times 20 of its
steps in every round and image size, and multiplies. Our engine then makes the loop's images: it computes the same loss
with the same optimiser (python_tests/test_benches.py), in float32.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import torch
import torch.nn.functional as F
from deep_inversion import SPEC, network
from inversion_contenders import Draw, Problem, Published
from inversion_teachers import LITE0_SPEC, efficientnet_lite
from judges import judges
from measure import RESULTS, write_results
from time_to_accuracy import changed
from torch import Tensor, nn
from torchvision.utils import save_image

import exml_fast as xf
from exml_fast.checkpoint import Checkpoint, fingerprint
from exml_fast.evaluation import evaluate
from exml_fast.inversion import Recipe, recipes

ROUNDS = 5


@dataclass
class Contest:
    """A teacher, both recipes, and the networks that judge."""

    name: str
    teacher: nn.Module
    spec: xf.InputSpec
    classes: list[int]
    per_class: int
    published: Recipe
    ours: Recipe
    precision: str
    load_judges: Callable[[], dict[str, Any]]
    """Networks that no choice of settings has seen. They are loaded, or trained, when all images are there."""
    seen: dict[str, Any]
    """Networks that choices of settings have seen: the teacher, and a relative of it."""

    @cached_property
    def judges(self) -> dict[str, Any]:
        return self.load_judges()

    @property
    def labels(self) -> Tensor:
        return torch.tensor(self.classes).repeat(self.per_class)


@dataclass
class Spent:
    """Seconds of one thread."""

    cpu: float = 0.0
    wall: float = 0.0

    def __add__(self, other: Spent) -> Spent:
        return Spent(self.cpu + other.cpu, self.wall + other.wall)


class Clock:
    """``with Clock() as clock: …``, then ``clock.spent``."""

    def __enter__(self) -> Clock:
        self._cpu, self._wall = time.process_time(), time.perf_counter()
        return self

    def __exit__(self, *error: object) -> None:
        self.spent = Spent(time.process_time() - self._cpu, time.perf_counter() - self._wall)


def stages_of(recipe: Recipe) -> list[Recipe]:
    """The recipe of each image size, the smallest size first."""
    stages = [recipe.replace(coarse_steps=())]
    while recipe.optimisation.coarse_steps:
        recipe = recipe.coarser()
        stages.insert(0, recipe.replace(coarse_steps=()))
    return stages


def draws(recipe: Recipe, seed: str) -> Iterator[Draw]:
    """Shift and flip of each step."""
    source, jitter = Random(seed), recipe.augmentation.jitter
    while True:
        down, right = source.randint(-jitter, jitter), source.randint(-jitter, jitter)
        yield down, right, recipe.augmentation.flip and source.random() < 0.5


class PublishedRun:
    """The published-style loop, in pieces. ``images`` are (N, C, H, W), normalised."""

    def __init__(self, contest: Contest, seed: int, folder: Path | None = None) -> None:
        self.contest, self.seed = contest, seed
        self.stages = stages_of(contest.published)
        self.total = sum(stage.optimisation.steps for stage in self.stages)
        self.spent, self.stage, self.step = Spent(), 0, 0
        self.ours: list[Spent] = []
        weights = [value for value in contest.teacher.state_dict().values() if value.is_floating_point()]
        identity = fingerprint([*weights, contest.labels], [contest.published.to_dict(), seed])
        path = None if folder is None else folder / f"{contest.name}-{seed}.published.pt"
        self.checkpoint = Checkpoint(path, identity)
        height, width = (size >> (len(self.stages) - 1) for size in contest.spec.size)
        start = torch.randn(len(contest.labels), 3, height, width, generator=torch.Generator().manual_seed(seed))
        state = self.checkpoint.load()
        if state is None:
            self._begin(start)
        else:
            self.stage, self.step, self.spent = state["stage"], state["step"], Spent(*state["spent"])
            self.ours = [Spent(*spent) for spent in state["ours"]]
            self._begin(state["x"])
            self.loop.optimizer.load_state_dict(state["optimizer"])

    def _begin(self, images: Tensor) -> None:
        """The loop of this stage, from these images."""
        recipe, size = self.stages[self.stage], (images.shape[2], images.shape[3])
        self.rates = recipe.optimisation.learning_rates().tolist()
        drawn = lambda: islice(draws(recipe, f"{self.seed}/{self.stage}"), self.step, None)  # noqa: E731
        spec = replace(self.contest.spec, size=size)
        self.loop = Published(Problem(self.contest.teacher, spec, recipe, self.contest.labels, images, drawn))

    @property
    def steps(self) -> int:
        """Steps taken so far."""
        return self.step + sum(stage.optimisation.steps for stage in self.stages[: self.stage])

    def run(self, until: int) -> None:
        """Continue to step ``until`` of all stages. The state is saved once a minute."""
        with self.checkpoint:
            while self.steps < until:
                with Clock() as clock:
                    self._advance()
                self.spent += clock.spent
                self.checkpoint.keep(self._state)

    def _advance(self) -> None:
        if self.step == len(self.rates):
            self.stage, self.step = self.stage + 1, 0
            self._begin(F.interpolate(self.loop.x.detach(), scale_factor=2, mode="nearest"))
        self.loop.optimizer.param_groups[0]["lr"] = self.rates[self.step]
        self.loop.step()
        self.step += 1

    def timed(self, spent: Spent) -> None:
        """Add the time of our images at the end of a piece, and write the state."""
        self.ours.append(spent)
        self.checkpoint.keep(self._state, write=True)

    def _state(self) -> dict[str, Any]:
        return {
            "stage": self.stage, "step": self.step, "spent": astuple(self.spent),
            "ours": [astuple(spent) for spent in self.ours],
            "x": self.loop.x.detach().clone(), "optimizer": self.loop.optimizer.state_dict(),
        }  # fmt: skip

    @property
    def result(self) -> xf.Result:
        """The images as pictures: clamped to the range of pixels."""
        spec, images = self.contest.spec, self.loop.x.detach().clone()
        found = xf.Result(images, self.contest.labels, None, spec, {}, self.spent.wall)
        return replace(found, images=spec.normalize(found.pixels()))


class SampledRun:
    """The same loop, of which only ``sample`` steps of each image size are timed in each piece."""

    def __init__(self, contest: Contest, seed: int, folder: Path | None, sample: int) -> None:
        self.contest, self.seed, self.sample = contest, seed, sample
        self.folder = None if folder is None else folder / f"{contest.name}-{seed}.published"
        self.spent, self.ours = Spent(), list[Spent]()
        self.stages = stages_of(contest.published)

    def run(self) -> None:
        """Time a sample of all sizes; ``spent`` grows by the share of the whole loop that a piece has."""
        for number, stage in enumerate(self.stages):
            alone = replace(self.contest, published=stage, spec=self._spec(number))
            loop = PublishedRun(alone, self.seed)
            loop.run(1)  # allocates the memory
            with Clock() as clock:
                loop.run(1 + self.sample)
            share = stage.optimisation.steps / self.sample / ROUNDS
            self.spent += Spent(share * clock.spent.cpu, share * clock.spent.wall)

    def _spec(self, stage: int) -> xf.InputSpec:
        height, width = (size >> (len(self.stages) - 1 - stage) for size in self.contest.spec.size)
        return replace(self.contest.spec, size=(height, width))

    def timed(self, spent: Spent) -> None:
        """Add the time of our images at the end of a piece."""
        self.ours.append(spent)

    @property
    def result(self) -> xf.Result:
        """The images as pictures, made by our engine."""
        contest = self.contest
        found = xf.invert(
            contest.teacher, contest.classes, per_class=contest.per_class, recipe=contest.published, spec=contest.spec,
            seed=self.seed, precision="float32", checkpoint_dir=self.folder,
        )  # fmt: skip
        return replace(found, images=contest.spec.normalize(found.pixels()))


def ours(contest: Contest, seed: int) -> tuple[xf.Result, Spent]:
    """Our images, and the time of the whole call."""
    with Clock() as clock:
        result = xf.invert(
            contest.teacher, contest.classes, per_class=contest.per_class, recipe=contest.ours, spec=contest.spec,
            seed=seed, precision=contest.precision,
        )  # fmt: skip
    return result, clock.spent


def race(
    contest: Contest, seed: int, folder: Path | None, sample: int | None = None
) -> tuple[xf.Result, xf.Result, dict[str, Any]]:
    """Images of both, and the row of this seed without the judgement."""
    published = PublishedRun(contest, seed, folder) if sample is None else SampledRun(contest, seed, folder, sample)
    while len(published.ours) < ROUNDS:
        if isinstance(published, PublishedRun):
            published.run(published.total * (len(published.ours) + 1) // ROUNDS)
        else:
            published.run()
        published.timed(ours(contest, seed)[1])
        count, last = len(published.ours), published.ours[-1]
        print(f"seed {seed}, {count} of {ROUNDS}: published {published.spent}; ours {last}", flush=True)
    images, spent = ours(contest, seed)
    times = [*published.ours, spent]
    cpu, wall = statistics.median(t.cpu for t in times), statistics.median(t.wall for t in times)
    row = {
        "seed": seed, "published_seconds": published.spent.cpu, "ours_seconds": cpu,
        "faster": published.spent.cpu / cpu, "published_wall_seconds": published.spent.wall,
        "ours_wall_seconds": wall, "faster_wall": published.spent.wall / wall, "sampled_steps": sample,
        "ours_runs": len(times), "ours_cpu_of_runs": [round(t.cpu, 3) for t in times],
    }  # fmt: skip
    return published.result, images, row


def judged(contest: Contest, images: xf.Result) -> dict[str, float]:
    """Top-1 agreement of every network, in percent."""
    found = evaluate(images, contest.judges | contest.seen).judges
    return {name: 100 * scores["top1"] for name, scores in found.items()}


def summary_of(contest: Contest, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The first row: means over the seeds."""

    def mean(values: list[float]) -> float:
        return statistics.fmean(values)

    sides = ("published", "ours")
    agreement = {
        side: {name: mean([row["agreement"][side][name] for row in rows]) for name in rows[0]["agreement"][side]}
        for side in sides
    }
    timed = ("published_seconds", "ours_seconds", "published_wall_seconds", "ours_wall_seconds")
    seconds = {name: mean([row[name] for row in rows]) for name in timed}
    return {
        "cell": contest.name, "faster": seconds["published_seconds"] / seconds["ours_seconds"],
        "faster_wall": seconds["published_wall_seconds"] / seconds["ours_wall_seconds"], **seconds,
        "agreement": agreement, "unseen": list(contest.judges), "seeds": [row["seed"] for row in rows],
        "judged": {side: mean([agreement[side][name] for name in contest.judges]) for side in sides},
        "sampled_steps": [row["sampled_steps"] for row in rows],
        "images": len(contest.labels), "size": contest.spec.size[0], "precision": contest.precision,
        "published_steps": [stage.optimisation.steps for stage in stages_of(contest.published)],
        "ours_steps": [stage.optimisation.steps for stage in stages_of(contest.ours)],
        "published_recipe": contest.published.to_dict(), "ours_recipe": contest.ours.to_dict(),
        "accuracy_of_judges": {
            name: 100 * judge.card.training["accuracy"]
            for name, judge in contest.judges.items() if isinstance(judge, xf.Expert) and judge.card.training
        },
    }  # fmt: skip


def picture(path: Path, sides: list[xf.Result], each: int, scale: int) -> None:
    """Both sets of images, a row each: the published loop above, ours below. The format is that of the suffix."""
    rows = torch.cat([F.interpolate(side.pixels()[:each], scale_factor=scale) for side in sides])
    save_image(rows, path, nrow=each, padding=2, pad_value=1.0)


# The contests.


def cifar10(args: argparse.Namespace) -> Contest:
    """100 images of the published ResNet-20."""
    teacher = network(20, args.weights)

    def unseen() -> dict[str, Any]:
        return dict(judges(args.judges, None if args.cifar10 is None else xf.data.load(str(args.cifar10))))

    return Contest(
        "cifar10", teacher, SPEC, list(range(10)), 10, recipes.get("deep_inversion/cifar10"),
        recipes.get("deep_inversion/cifar10-quick"), "bfloat16", unseen,
        {"ResNet-56": network(56, args.weights), "ResNet-20 (teacher)": teacher},
    )  # fmt: skip


LITE0 = [1, 130, 301, 323, 340, 386, 387, 985]  # goldfish, flamingo, ladybug, monarch, zebra, elephant, panda, daisy


def efficientnet_lite0(args: argparse.Namespace) -> Contest:
    """Eight images of EfficientNet-Lite0. Lite1 was seen by the choice of our recipes, Lite2 was not."""
    teacher = efficientnet_lite(0)
    own = {number: replace(LITE0_SPEC, size=(size, size)) for number, size in ((1, 240), (2, 260))}
    # Schedule, momenta and the weight of the first layer are those of the published code.
    published = recipes.get("deep_inversion/imagenet-multiresolution").replace(
        warmup=100, decay="cosine", adam_betas=(0.5, 0.9), bn_first=10.0
    )
    return Contest(
        "efficientnet-lite0", teacher, LITE0_SPEC, LITE0, 1, published, recipes.get("deep_inversion/imagenet-quick"),
        "bfloat16", lambda: {"EfficientNet-Lite2": (efficientnet_lite(2), own[2])},
        {"EfficientNet-Lite1": (efficientnet_lite(1), own[1]), "EfficientNet-Lite0 (teacher)": teacher},
    )  # fmt: skip


CONTESTS = {"cifar10": cifar10, "efficientnet-lite0": efficientnet_lite0}


def main() -> None:
    """Run the benchmark; see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("contest", choices=list(CONTESTS))
    parser.add_argument("--cifar10", type=Path, help=".npz of real images, to train judges that are missing")
    parser.add_argument("--weights", type=Path, help="folder of the files of the published CIFAR-10 ResNets")
    parser.add_argument("--judges", type=Path, help="folder of the judges for CIFAR-10; see judges.py")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--sample", type=int, help="time so many steps of the published loop in each of five rounds")
    parser.add_argument("--published", nargs="+", default=[], metavar="NAME=VALUE", help="fields of the loop's recipe")
    parser.add_argument("--work", type=Path, help="folder from which an interrupted run continues")
    parser.add_argument("--picture", type=Path, help="draw images of the first seed into this file")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON files")
    args = parser.parse_args()
    if args.contest == "cifar10" and (args.weights is None or args.judges is None):
        parser.error("cifar10 needs --weights and --judges")
    torch.set_num_threads(1)
    contest = CONTESTS[args.contest](args)
    contest.published = contest.published.replace(**changed({}, args.published))
    ours(replace(contest, ours=contest.ours.replace(steps=1, coarse_steps=())), seed=0)  # load libraries
    rows: list[dict[str, Any]] = []
    for seed in args.seeds:
        published, images, row = race(contest, seed, args.work, args.sample)
        row["agreement"] = {"published": judged(contest, published), "ours": judged(contest, images)}
        rows.append({"cell": f"{contest.name}/seed {seed}", **row})
        print(row["agreement"], flush=True)
        write_results(args.results / f"judged-quality-{contest.name}.json", [summary_of(contest, rows), *rows])
        if args.picture is not None and seed == args.seeds[0]:
            picture(args.picture, [published, images], min(10, len(images)), max(1, 64 // contest.spec.size[0]))


if __name__ == "__main__":
    main()
