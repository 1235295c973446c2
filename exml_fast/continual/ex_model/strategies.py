"""Where an ex-model's images come from: inverted from the expert, or borrowed from elsewhere (Carta 2022, sec. 4)."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from exml_fast.checkpoint import fingerprint
from exml_fast.continual.expert import Expert
from exml_fast.data import DataSource, ImageData, ImageSource, InputSpec, images_and_labels
from exml_fast.data.buffer import balanced_indices
from exml_fast.data.procedural import images_at_once
from exml_fast.inversion import Parametrisation, Recipe, Result, Synthesizer, recipes
from exml_fast.progress import Progress
from exml_fast.storage import PathLike
from exml_fast.validation import require_count

__all__ = [
    "AdaptiveInversion", "AuxiliaryData", "DataImpression", "DrawnInversion", "ModelInversion", "Procedural", "Replay",
    "Strategy",
]  # fmt: skip


class Strategy(abc.ABC):
    """A source of labelled images for one expert (Carta 2022, Eq. 5; Alg. 1, line 3)."""

    once: ClassVar[bool] = False
    """The images do not depend on the expert: the buffer is filled at the first expert, every expert sees all of it,
    and an image's label is the class of its highest target."""
    competes: ClassVar[bool] = False
    """:meth:`samples` uses the ex-model so far, ``rival``; other strategies are given None."""

    @abc.abstractmethod
    def samples(
        self,
        expert: Expert,
        count: int,
        generator: torch.Generator,
        *,
        rival: Expert | None = None,
        progress: Progress | None = None,
        checkpoint_dir: PathLike | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Images that the expert has learned, or labels.

        Args:
            expert: the network as it was given, which must not be changed.
            count: how many images; a strategy may return fewer where there are no more (:class:`AuxiliaryData` raises
                ValueError instead).
            generator: all randomness comes from it.
            rival: the ex-model so far, None at the first expert.
            progress: called as the work goes on.
            checkpoint_dir: a folder for the state of strategies that can be interrupted.

        Returns:
            Normalised images (count, C, H, W) float32 for the expert's input, and global class ids (count,) int64.
        """

    @abc.abstractmethod
    def describe(self) -> dict[str, Any]:
        """Name, settings and a fingerprint of given images, as plain JSON values: they identify a run's checkpoint."""


def balanced_labels(classes: tuple[int, ...], count: int) -> Tensor:
    """``count`` global ids, each class equally often; where that does not divide, the first classes have one more."""
    return torch.tensor(classes, dtype=torch.int64).repeat(-(-count // len(classes)))[:count].sort().values


class _Inversion(Strategy):
    """Images optimised until the expert recognises its own classes in them, equally many of each class."""

    name: str

    def __init__(self, recipe: str | Recipe, **overrides: Any) -> None:
        self.recipe = recipes.get(recipe).overridden(**overrides)
        self.last: Result | None = None
        """The latest inversion, with its history and summary."""

    def samples(
        self,
        expert: Expert,
        count: int,
        generator: torch.Generator,
        *,
        rival: Expert | None = None,
        progress: Progress | None = None,
        checkpoint_dir: PathLike | None = None,
    ) -> tuple[Tensor, Tensor]:
        """See :class:`Strategy` and :meth:`exml_fast.inversion.Synthesizer.run`."""
        return self._invert(self.recipe, None, expert, count, generator, progress, checkpoint_dir)

    def _invert(
        self,
        recipe: Recipe,
        student: nn.Module | None,
        expert: Expert,
        count: int,
        generator: torch.Generator,
        progress: Progress | None,
        checkpoint_dir: PathLike | None,
    ) -> tuple[Tensor, Tensor]:
        labels = balanced_labels(expert.classes, count)
        seed = int(torch.randint(2**62, (), generator=generator))
        self.last = self._synthesizer(expert, recipe).run(
            labels, seed=seed, classes=expert.classes, student=student, start=self._start(expert, labels, generator),
            progress=progress, checkpoint_dir=checkpoint_dir,
        )  # fmt: skip
        return self.last.images, self.last.labels

    def _synthesizer(self, expert: Expert, recipe: Recipe) -> Synthesizer:
        return Synthesizer(expert.model, expert.input_spec, recipe, units=expert.units)

    def _start(self, expert: Expert, labels: Tensor, generator: torch.Generator) -> Tensor | None:
        """What the optimisation starts from; noise when None."""
        return None

    def describe(self) -> dict[str, Any]:
        """Name and recipe."""
        return {"strategy": self.name, "recipe": self.recipe.to_dict()}


class ModelInversion(_Inversion):
    """Model Inversion: cross-entropy against the class, image priors, BatchNorm statistics (Carta 2022, sec. 4).

    ``recipe`` is a name or a Recipe, ``overrides`` are fields of it.
    """

    name = "model_inversion"

    def __init__(self, recipe: str | Recipe = "model_inversion", **overrides: Any) -> None:
        super().__init__(recipe, **overrides)


class DrawnInversion(_Inversion):
    """Model Inversion of the parameters of drawings (a parametrisation, as :class:`exml_fast.data.PenStrokes`).

    The optimisation of a class starts from the drawings with its highest logits among ``pool`` random drawings.
    ``recipe`` and ``overrides`` are those of :class:`ModelInversion`.
    """

    name = "drawn_inversion"

    def __init__(
        self,
        parametrisation: Parametrisation,
        recipe: str | Recipe = "drawn_inversion",
        pool: int = 8000,
        **overrides: Any,
    ) -> None:
        super().__init__(recipe, **overrides)
        require_count("pool", pool)
        self.parametrisation, self.pool = parametrisation, pool

    def _synthesizer(self, expert: Expert, recipe: Recipe) -> Synthesizer:
        return Synthesizer(
            expert.model, expert.input_spec, recipe, units=expert.units, parametrisation=self.parametrisation
        )

    def _start(self, expert: Expert, labels: Tensor, generator: torch.Generator) -> Tensor:
        spec, device = expert.input_spec, next(expert.model.parameters()).device
        pool = self.parametrisation.parameters(max(self.pool, len(labels)), spec, generator)
        block = images_at_once(spec)
        seen = torch.cat(
            [expert.logits(self.parametrisation.render(z.to(device), spec)).cpu() for z in pool.split(block)]
        )
        start = torch.empty(len(labels), pool.shape[1])
        for unit in labels.unique().tolist():
            wanted = labels == unit
            start[wanted] = pool[seen[:, expert.positions((unit,))[0]].topk(int(wanted.sum())).indices]
        return start

    def describe(self) -> dict[str, Any]:
        """Name, recipe and parametrisation."""
        return {**super().describe(), "pool": self.pool, "parametrisation": self.parametrisation.describe()}


class AdaptiveInversion(_Inversion):
    """Model Inversion of images that the ex-model so far classifies differently from the expert (Yin 2020, Eq. 8).

    ``compete`` is the weight of the competition, by default the recipe's own or, if that is 0, Yin 2020's 10 for
    CIFAR-10; ``overrides`` are fields of the recipe. With a recipe of DeepInversion it is Adaptive DeepInversion ED.
    """

    name = "adaptive_inversion"
    competes = True

    def __init__(
        self, recipe: str | Recipe = "model_inversion", compete: float | None = None, **overrides: Any
    ) -> None:
        super().__init__(recipe, **overrides)
        weight = compete if compete is not None else self.recipe.competition.compete or 10.0
        if not weight > 0:
            raise ValueError(f"compete must be positive, got {compete!r}")
        self.recipe = self.recipe.replace(compete=weight)

    def samples(
        self,
        expert: Expert,
        count: int,
        generator: torch.Generator,
        *,
        rival: Expert | None = None,
        progress: Progress | None = None,
        checkpoint_dir: PathLike | None = None,
    ) -> tuple[Tensor, Tensor]:
        """See :class:`Strategy`. ValueError if the ex-model lacks units of the expert."""
        if rival is None:
            return self._invert(
                self.recipe.replace(compete=0.0), None, expert, count, generator, progress, checkpoint_dir
            )
        layers = [rival.model, _Columns(rival.positions(expert.units))]
        if rival.input_spec != expert.input_spec:
            layers.insert(0, _Converted(rival.input_spec, expert.input_spec))
        return self._invert(self.recipe, nn.Sequential(*layers), expert, count, generator, progress, checkpoint_dir)


class _Converted(nn.Module):
    """Converts images from one network's input to another's."""

    def __init__(self, spec: InputSpec, given: InputSpec) -> None:
        super().__init__()
        self.spec, self.given = spec, given

    def forward(self, images: Tensor) -> Tensor:
        return self.spec.convert(images, self.given)


class _Columns(nn.Module):
    """Selects logits, in a given order."""

    columns: Tensor

    def __init__(self, columns: Tensor) -> None:
        super().__init__()
        self.register_buffer("columns", columns)

    def forward(self, logits: Tensor) -> Tensor:
        return logits[:, self.columns]


class DataImpression(_Inversion):
    """Data Impression: soft targets from a Dirichlet distribution of class similarities (Carta 2022, sec. 4).

    The label of an image is the argmax of its target among the expert's classes.
    """

    name = "data_impression"

    def __init__(self, recipe: str | Recipe = "data_impressions", **overrides: Any) -> None:
        super().__init__(recipe, **overrides)
        targets = self.recipe.classification.targets
        if targets != "dirichlet":
            raise ValueError(f"recipe {self.recipe.name!r} has targets {targets!r}, expected 'dirichlet'")


class AuxiliaryData(Strategy):
    """Images of another domain, labelled by the expert: the argmax over its own classes.

    Args:
        images: (N, c, h, w), uint8 or float in [0, 1], or a data set or DataLoader of such; fitted to the expert's
            input (InputSpec.fit).
        name: for :meth:`describe`.
        pool: how many random images are labelled for one expert; from them the samples are chosen, balanced over
            the labels as far as the labels allow.
    """

    def __init__(self, images: Tensor | DataSource, name: str = "auxiliary", pool: int = 20000) -> None:
        if not isinstance(images, Tensor):
            images, _ = images_and_labels(images)
        if images.dim() != 4 or len(images) == 0:
            raise ValueError(f"images must be (N, c, h, w) with N > 0, got shape {tuple(images.shape)}")
        if images.dtype != torch.uint8 and not images.is_floating_point():
            raise ValueError(f"images must be uint8 or float in [0, 1], got {images.dtype}")
        if images.is_floating_point() and not bool(((images >= 0) & (images <= 1)).all()):
            low, high = images.aminmax()
            raise ValueError(f"images must be in [0, 1], got values from {float(low):g} to {float(high):g}")
        require_count("pool", pool)
        self.images, self.name, self.pool = images, name, pool

    def samples(
        self,
        expert: Expert,
        count: int,
        generator: torch.Generator,
        *,
        rival: Expert | None = None,
        progress: Progress | None = None,
        checkpoint_dir: PathLike | None = None,
    ) -> tuple[Tensor, Tensor]:
        """See :class:`Strategy`. Nothing is saved. ValueError if there are fewer than ``count`` images."""
        if count > len(self.images):
            raise ValueError(f"count is {count}, but there are only {len(self.images)} auxiliary images")
        pool = torch.randperm(len(self.images), generator=generator)[: max(self.pool, count)]
        chunks = pool.split(1000)
        labels = []
        for i, index in enumerate(chunks):
            labels.append(expert.predict(expert.input_spec.prepare(self.images[index])).cpu())
            if progress is not None:
                progress("auxiliary", i + 1, len(chunks), {})
        every = torch.cat(labels)
        chosen = balanced_indices(every, count, generator)
        return expert.input_spec.prepare(self.images[pool[chosen]]), every[chosen]

    def describe(self) -> dict[str, Any]:
        """Name, images and settings."""
        images = {"images": len(self.images), "sha256": self._sha256}
        return {"strategy": "auxiliary", "name": self.name, **images, "pool": self.pool}

    @cached_property
    def _sha256(self) -> str:
        return _fingerprint(self.images)


class Procedural(Strategy):
    """Random images of a source, labelled by the expert: the argmax over its own classes.

    No image is optimised and no data are used. The ex-model learns the experts' logits on images that cover much more
    than any class, so these logits must be comparable (:class:`ResponseCalibration`).
    """

    once = True

    def __init__(self, source: ImageSource) -> None:
        self.source = source

    def samples(
        self,
        expert: Expert,
        count: int,
        generator: torch.Generator,
        *,
        rival: Expert | None = None,
        progress: Progress | None = None,
        checkpoint_dir: PathLike | None = None,
    ) -> tuple[Tensor, Tensor]:
        """See :class:`Strategy`. Nothing is saved."""
        images = self.source.draw(count, expert.input_spec, generator)
        return images, expert.predict(images).cpu()

    def describe(self) -> dict[str, Any]:
        """Name and source."""
        return {"strategy": "procedural", **self.source.describe()}


class Replay(Strategy):
    """Replay ED: real training images of the expert's classes, as balanced as the classes allow (Carta 2022, sec. 5).

    This is not data-free: it shows what the distillation reaches with the data. ``parts`` holds the data of each expert
    by the SHA-256 on its card, for experts with the same classes and different images (new instances).
    """

    def __init__(self, data: ImageData, parts: Mapping[str, ImageData] | None = None) -> None:
        self.data, self.parts = data, dict(parts or {})

    def samples(
        self,
        expert: Expert,
        count: int,
        generator: torch.Generator,
        *,
        rival: Expert | None = None,
        progress: Progress | None = None,
        checkpoint_dir: PathLike | None = None,
    ) -> tuple[Tensor, Tensor]:
        """See :class:`Strategy`. Nothing is saved. No more images than there are of the expert's classes."""
        data = self.parts.get(expert.card.sha256, self.data)
        own = data.train.of_classes(expert.classes)
        chosen = own.subset(balanced_indices(own.labels, min(count, len(own)), generator))
        return expert.input_spec.prepare(chosen.images), chosen.labels

    def describe(self) -> dict[str, Any]:
        """Name, data set and its images, and how many experts have data of their own."""
        data = {"data": self.data.name, "images": len(self.data.train), "parts": len(self.parts)}
        return {"strategy": "replay", **data, "sha256": self._sha256}

    @cached_property
    def _sha256(self) -> str:
        splits = [self.data.train, *(part.train for _, part in sorted(self.parts.items()))]
        return _fingerprint(*(tensor for split in splits for tensor in (split.images, split.labels)))


def _fingerprint(*tensors: Tensor) -> str:
    return fingerprint(tensors, [(str(tensor.dtype), list(tensor.shape)) for tensor in tensors])
