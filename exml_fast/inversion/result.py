"""What an inversion gives."""

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
    """Synthetic images with what they were asked to be. All tensors are on the CPU."""

    images: Tensor
    """(N, C, H, W) float32, normalised: the network's input."""
    labels: Tensor
    """(N,) int64 class ids."""
    targets: Tensor | None
    """Soft targets (N, K) float32 over the logits, or None if the labels were the targets."""
    spec: InputSpec
    history: dict[str, Tensor]
    """Each term, unweighted, and "loss", their weighted sum: (steps,) float64, means over the images that were still
    being optimised; cut off after the last step that any image took."""
    seconds: float
    summary: dict[str, Any] = field(default_factory=dict)
    """JSON values: recipe, seed, images, steps (and steps_per_image), images_per_second, teacher_accuracy and
    confidence (of the label, or of a soft target's argmax; without augmentation), stopped, absent (terms left out for
    want of BatchNorm), device."""
    logits: Tensor | None = None
    """(N, K) float32: what the network says of the images, without augmentation."""

    def __len__(self) -> int:
        return len(self.images)

    def soft_labels(self, temperature: float = 1.0) -> Tensor:
        """softmax(logits / τ), (N, K). ValueError where the logits were not kept."""
        if self.logits is None:
            raise ValueError("the network's logits were not kept with these images")
        return (self.logits / temperature).softmax(1)

    def pixels(self) -> Tensor:
        """(N, C, H, W) float32 in [0, 1]: denormalised and clamped."""
        return self.spec.denormalize(self.images).clamp(0, 1)

    def save_grid(self, path: PathLike, columns: int | None = None) -> None:
        """Write all images as one picture (its suffix says the format), ``columns`` a row; about square when None."""
        from torchvision.utils import save_image

        if len(self) == 0:
            raise ValueError("there are no images to draw")
        columns = columns or math.ceil(math.sqrt(len(self)))
        with atomic_path(path) as temporary:
            save_image(self.pixels(), temporary, nrow=columns, padding=2, pad_value=1.0)

    def save(self, folder: PathLike) -> None:
        """Write ``images.safetensors`` and ``result.json`` into ``folder``, which is made if need be."""
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
