"""The result of an inversion."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from exml_fast.data import InputSpec
from exml_fast.storage import PathLike, atomic_path, load_json, load_tensors, save_json, save_tensors

__all__ = ["Result"]

TENSORS, CARD = "images.safetensors", "result.json"


@dataclass
class Result:
    """Synthetic images with their labels and targets. All tensors are on the CPU."""

    images: Tensor
    """(N, C, H, W) float32, normalised for the network's input."""
    labels: Tensor
    """(N,) int64 class ids."""
    targets: Tensor | None
    """Soft targets (N, K) float32 over the logits, or None if the labels were the targets."""
    spec: InputSpec
    history: dict[str, Tensor]
    """Each unweighted term, and "loss", their weighted sum: (steps,) float64, the means over the images that were still
    being optimised. The history ends with the last step that any image took."""
    seconds: float
    summary: dict[str, Any] = field(default_factory=dict)
    """JSON values: recipe, seed, images, steps (and steps_per_image), images_per_second, teacher_accuracy and
    confidence (of the label, or of a soft target's argmax; without augmentation), stopped, absent (terms omitted for a
    network without BatchNorm), parametrisation, device and precision."""
    logits: Tensor | None = None
    """(N, K) float32: the network's logits of the images, without augmentation."""

    def __len__(self) -> int:
        return len(self.images)

    def soft_labels(self, temperature: float = 1.0) -> Tensor:
        """softmax(logits / τ), (N, K). ValueError if the logits were not kept."""
        if self.logits is None:
            raise ValueError("the network's logits were not kept with these images")
        return (self.logits / temperature).softmax(1)

    def pixels(self) -> Tensor:
        """(N, C, H, W) float32 in [0, 1]: denormalised and clamped."""
        return self.spec.denormalize(self.images).clamp(0, 1)

    def save_grid(self, path: PathLike, columns: int | None = None) -> None:
        """Write all images into one picture with ``columns`` images a row; about square when None.

        The suffix of ``path`` decides the format. ValueError without images.
        """
        from torchvision.utils import save_image

        if len(self) == 0:
            raise ValueError("there are no images to draw")
        columns = columns or math.ceil(math.sqrt(len(self)))
        with atomic_path(path) as temporary:
            save_image(self.pixels(), temporary, nrow=columns, padding=2, pad_value=1.0)

    def save(self, folder: PathLike) -> None:
        """Write ``images.safetensors`` and ``result.json`` into ``folder``, which is created if it is missing."""
        tensors = {"images": self.images, "labels": self.labels}
        tensors |= {name: t for name in ("targets", "logits") if (t := getattr(self, name)) is not None}
        tensors |= {f"history.{name}": values for name, values in self.history.items()}
        save_tensors(Path(folder) / TENSORS, tensors)
        save_json(
            Path(folder) / CARD,
            {
                "spec": self.spec.to_dict(),
                "seconds": self.seconds,
                "terms": list(self.history),
                "summary": self.summary,
            },
        )

    @classmethod
    def load(cls, folder: PathLike) -> Result:
        """The inverse of :meth:`save`; ValueError naming what is missing or does not fit together."""
        card, tensors = load_json(Path(folder) / CARD), load_tensors(Path(folder) / TENSORS)
        try:
            history = {name: tensors[f"history.{name}"] for name in card["terms"]}
            result = cls(
                tensors["images"], tensors["labels"], tensors.get("targets"), InputSpec.from_dict(card["spec"]),
                history, card["seconds"], card["summary"], tensors.get("logits"),
            )  # fmt: skip
        except KeyError as error:
            raise ValueError(f"{folder} is not a saved inversion: {error} is missing") from error
        if result.images.shape[1:] != torch.Size(result.spec.shape) or len(result.labels) != len(result.images):
            raise ValueError(
                f"{folder}: images {tuple(result.images.shape)} and labels {tuple(result.labels.shape)} do not fit "
                f"{result.spec}"
            )
        return result
