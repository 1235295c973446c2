"""The result of an inversion."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from exml_fast.data import InputSpec, LabelledImages
from exml_fast.storage import PathLike, atomic_path, load_json, load_tensors, save_json, save_tensors

__all__ = ["Result"]

TENSORS, CARD = "images.safetensors", "result.json"
# Images in a notebook's cell, and the width to which small ones are enlarged.
SHOWN, SHOWN_PIXELS = 64, 96


@dataclass(repr=False)
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

    def __repr__(self) -> str:
        recipe = self.summary.get("recipe", {}).get("name", "no recipe")
        accuracy = self.summary.get("teacher_accuracy")
        recognised = "" if accuracy is None else f", {100 * accuracy:.1f} % recognised by the teacher"
        shape, classes = "×".join(map(str, self.images.shape[1:])), len(self.labels.unique())
        return (
            f"Result: {len(self)} images {shape} of {classes} classes{recognised}\n"
            f"recipe {recipe}, seed {self.summary.get('seed', 'unknown')}, {self.seconds:.1f} s"
        )

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

    def show(self, count: int = SHOWN, columns: int | None = None) -> None:
        """Show the first ``count`` images as a grid: in the cell of a notebook, otherwise in the system's viewer."""
        from PIL import Image

        png = self._png(count, columns)
        try:
            from IPython.core.getipython import get_ipython
            from IPython.display import Image as Cell
            from IPython.display import display
        except ImportError:
            shell = None
        else:
            shell = get_ipython()  # type: ignore[no-untyped-call, unused-ignore]
        if shell is not None and hasattr(shell, "kernel"):
            display(Cell(data=png))  # type: ignore[no-untyped-call, unused-ignore]
        else:
            with Image.open(io.BytesIO(png)) as image:
                image.show()

    def as_dataset(
        self,
        *,
        transform: Callable[[Tensor], Any] | None = None,
        pixels: bool = False,
        temperature: float | None = None,
    ) -> LabelledImages:
        """A data set of ``(image, label)`` for a DataLoader of your own.

        Args:
            transform: of each image (C, H, W).
            pixels: images in [0, 1], for a ``transform`` that normalises them; otherwise as the network takes them.
            temperature: labels are softmax(logits / τ), (K,) float32, instead of class ids.

        Raises:
            ValueError: for a ``temperature`` if the logits were not kept.
        """
        labels = self.labels if temperature is None else self.soft_labels(temperature)
        return LabelledImages(self.pixels() if pixels else self.images, labels, transform)

    def _repr_png_(self) -> bytes | None:
        """The first 64 images, which notebooks show as the value of a cell."""
        return self._png(SHOWN, None) if len(self) else None

    def _png(self, count: int, columns: int | None) -> bytes:
        """A grid of the first ``count`` images, small ones enlarged without smoothing."""
        from torchvision.utils import save_image

        if len(self) == 0 or count < 1:
            raise ValueError(f"count must be at least 1 of {len(self)} images, got {count}")
        shown = self.spec.denormalize(self.images[:count]).clamp(0, 1)
        factor = max(1, SHOWN_PIXELS // max(self.spec.size))
        shown = shown.repeat_interleave(factor, 2).repeat_interleave(factor, 3)
        written = io.BytesIO()
        columns = columns or math.ceil(math.sqrt(len(shown)))
        save_image(shown, written, format="png", nrow=columns, padding=2, pad_value=1.0)
        return written.getvalue()

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
