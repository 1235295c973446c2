"""Analytic learning: features of the first task and a ridge regression that never sees an image twice (Zhuang 2022)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from exml_fast.continual.class_incremental.learner import Learner, LearnerSettings
from exml_fast.continual.class_incremental.lesson import BATCH, Lesson
from exml_fast.validation import Count, Positive, settings

__all__ = ["Analytic", "AnalyticSettings"]


@settings
class AnalyticSettings(LearnerSettings):
    """Settings of :class:`Analytic`.

    Attributes:
        width: random features, relu(V φ) with a fixed random V, of which the regression is linear.
        ridge: weight of the squared coefficients, for one image.
    """

    width: Count = 1024
    ridge: Positive = 1e-3


class Analytic(Learner[AnalyticSettings]):
    """Ridge regression of the labels, from sums over the images of all tasks.

    The network is that of the first task. W = (Σ x xᵀ + λ N I)⁻¹ Σ x yᵀ over all N images so far, where x are random
    features of an image and of its mirror image, and y is its one-hot label. The sums are all that is kept, and they
    give the same W as all images together (Zhuang 2022, Theorem 1). It needs no image of earlier tasks, real or
    synthetic.
    """

    settings = AnalyticSettings

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._products: Tensor | None = None
        self._targets: Tensor | None = None
        self._count = 0
        self._coefficients: Tensor | None = None

    def teach(self, lesson: Lesson) -> nn.Module:
        """The network stays as it is."""
        return lesson.network.eval()

    def after(self, lesson: Lesson, network: nn.Module) -> None:
        """Add the task's images to the sums."""
        width = self.config.width
        products = torch.zeros(width, width) if self._products is None else self._products
        targets = torch.zeros(width, 0) if self._targets is None else self._targets
        products, targets = products.double(), F.pad(targets.double(), (0, lesson.known - targets.shape[1]))
        for images, labels in zip(lesson.split.images.split(BATCH), lesson.split.labels.split(BATCH), strict=True):
            x = self._expanded(lesson.features(network, torch.cat([images, images.flip(3)])))
            y = F.one_hot(labels.repeat(2), lesson.known).double()
            products, targets = products + x.T @ x, targets + x.T @ y
        self._products, self._targets = products.float(), targets.float()
        self._count += 2 * len(lesson.split)
        self._coefficients = None

    def answers(self, images: Tensor) -> Tensor:
        """The class with the highest regression."""
        assert self._products is not None and self._targets is not None
        if self._coefficients is None:
            damped = self._products.double()
            damped.diagonal().add_(self.config.ridge * self._count)
            self._coefficients = torch.linalg.solve(damped, self._targets.double())
        return (self._expanded(self.features(images)) @ self._coefficients).argmax(1)

    @property
    def nbytes(self) -> int:
        """Size of the sums."""
        return sum(sums.nbytes for sums in (self._products, self._targets) if sums is not None)

    def memory(self) -> dict[str, Any]:
        """The sums."""
        return {"products": self._products, "targets": self._targets, "count": self._count}

    def load_memory(self, state: Mapping[str, Any]) -> None:
        """See :meth:`memory`."""
        self._products, self._targets = (
            None if sums is None else sums.cpu() for sums in (state["products"], state["targets"])
        )
        self._count, self._coefficients = state["count"], None

    def _expanded(self, found: Tensor) -> Tensor:
        """Random features (N, width) of features (N, D), float64; the same in every process."""
        random = torch.randn(found.shape[1], self.config.width, generator=torch.Generator().manual_seed(self.seed))
        return (F.normalize(found, dim=1) @ random).relu().double()
