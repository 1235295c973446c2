"""The images of benches/compression.py: each set is made once for a network and a seed, and shared by all tasks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from time_to_accuracy import locked
from torch import Tensor, nn

import exml_fast as xf
from exml_fast.data import ImageData, ImageSource, NaturalFields, Noise, Photographs
from exml_fast.inversion import Result
from exml_fast.transfer import export, load_pruned

IMAGES = ("noise", "natural-fields", "photographs", "deep-inversion", "adaptive", "real")
SYNTHETIC = ("deep-inversion", "adaptive")
NOISE_IMAGES = 4096
RECIPE = "deep_inversion/cifar10-transferable"
# Images of each class, and changes of the recipe, so that a set takes about 15 core minutes.
SETS: dict[str, tuple[int, dict[str, Any]]] = {
    "resnet20": (300, {}),
    "resnet56": (150, {"steps": 50, "lr": 0.15}),
    "expert": (30, {"steps": 50, "lr": 0.15}),
}
# The network with which adaptive images compete: without some of its filters, after short learning.
STUDENT: dict[str, Any] = {"ratio": 0.2, "target": "filters"}
STUDENT_STEPS = 100


@dataclass(frozen=True)
class Domain:
    """A network, its data, and where its images are kept."""

    name: str
    title: str
    model: nn.Module
    spec: xf.InputSpec
    data: ImageData
    photographs: tuple[Path, ...]
    folder: Path

    def images(self, name: str, seed: int) -> Tensor | ImageSource | Result:
        """A set of images, made now if it does not exist."""
        if name == "noise":
            return Noise().draw(NOISE_IMAGES, self.spec, torch.Generator().manual_seed(seed))
        if name == "natural-fields":
            return NaturalFields()
        if name == "photographs":
            return Photographs(self.photographs)
        if name == "real":
            return self.spec.prepare(self.data.train.images)
        return self.synthetic(name, seed)

    def synthetic(self, name: str, seed: int) -> Result:
        """A set out of the network; "adaptive" is one half of "deep-inversion" and as many images that compete."""
        place = self.folder / "images" / self.name / f"{name}-seed{seed}"
        with locked(place.with_suffix(".lock"), wait=True):
            if not (place / "result.json").is_file():
                checkpoints = place.with_suffix(".checkpoints")
                per_class, changes = SETS[self.name]
                if name == "deep-inversion":
                    made = self._inverted(RECIPE, per_class, seed, checkpoints, changes)
                else:
                    first = self.synthetic("deep-inversion", seed)
                    half = len(first) // 2
                    tuning = xf.Distillation().replace(
                        steps=STUDENT_STEPS, batch_size=128, lr=0.01, schedule="cosine", lambda_features=300.0
                    )
                    kept = checkpoints / "student.pt"
                    if not kept.is_file():
                        pruned = xf.prune(
                            self.model, first, spec=self.spec, seed=seed, fine_tuning=tuning,
                            checkpoint_dir=checkpoints / "student", **STUDENT,
                        )  # fmt: skip
                        export(pruned, kept)
                    student = load_pruned(kept, self.model)
                    found = self._inverted(
                        f"adaptive_{RECIPE}", (per_class + 1) // 2, seed + 1, checkpoints, changes, student=student
                    )
                    made = Result(
                        torch.cat([first.images[:half], found.images]), torch.cat([first.labels[:half], found.labels]),
                        None, self.spec, {}, first.seconds / 2 + found.seconds, found.summary,
                        torch.cat([first.logits[:half], found.logits]),
                    )  # fmt: skip
                made.save(place)
        return Result.load(place)

    def _inverted(self, recipe: str, per_class: int, seed: int, folder: Path, changes: Any, **more: Any) -> Result:
        return xf.invert(
            self.model, per_class=per_class, recipe=recipe, spec=self.spec, seed=seed, checkpoint_dir=folder,
            **changes, **more,
        )  # fmt: skip
