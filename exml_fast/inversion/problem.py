"""What one step of a run descends: the gradient of a recipe's objective for images of one network."""

from __future__ import annotations

import torch
from torch import Tensor

from exml_fast.data import InputSpec
from exml_fast.inversion.augmentation import Draws
from exml_fast.inversion.canvas import Canvas
from exml_fast.inversion.networks import Networks
from exml_fast.inversion.objective import Objective, Step
from exml_fast.inversion.rank_statistics import over_ranks
from exml_fast.inversion.recipes import Recipe
from exml_fast.inversion.set_statistics import SetStatistics
from exml_fast.ranks import Ranks

__all__ = ["Problem"]


class Problem:
    """A recipe for one network: its objective as a function of what the canvas holds."""

    def __init__(
        self, recipe: Recipe, spec: InputSpec, networks: Networks, objective: Objective, canvas: Canvas
    ) -> None:
        self.recipe, self.spec, self.networks = recipe, spec, networks
        self.objective, self.canvas = objective, canvas

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return self.networks.device

    def gradient(
        self,
        targets: Tensor,
        draws: Draws,
        x: Tensor,
        index: Tensor,
        earlier: SetStatistics | None = None,
        ranks: Ranks | None = None,
        whole: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Gradient of the objective at ``x`` (R, …), and the values of its terms (T,).

        Args:
            targets: (R,) int64 logit positions, or (R, K) soft targets.
            draws: of the augmentation; ``index``, int64 (1,), is the step whose draws are used.
            earlier: statistics of finished images, which join those of ``x``.
            ranks: over several ranks, ``x`` is a part of a batch of ``whole`` images.
        """
        leaf = x.detach().requires_grad_()
        images = self.canvas.images(leaf)
        inputs = self.recipe.augmentation(images, draws, index)
        logits, layers = self.networks.teacher(inputs)
        layers = layers if earlier is None else earlier.mixed(layers, len(x))
        if ranks is not None and ranks.count > 1:
            layers = over_ranks(layers, len(x), ranks)
        soft = targets.to(logits.dtype) if targets.is_floating_point() else targets
        student = None if self.networks.student is None else self.networks.student(inputs)[0].to(logits.dtype)
        total, values = self.objective(Step(images, inputs, logits, soft, layers, student, whole, index))
        (gradient,) = torch.autograd.grad(total, leaf)
        return gradient, values
