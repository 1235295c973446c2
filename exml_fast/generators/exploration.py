"""The two phases of the knowledge delegator: who sees which images, and which gradient goes where (Ye 2022, Alg. 1)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from exml_fast.checkpoint import load_state, state_of
from exml_fast.data import InputSpec
from exml_fast.engine import FrozenTeacher
from exml_fast.engine.conv_plan import Plan
from exml_fast.engine.statistics import LayerStatistics
from exml_fast.engine.substitution import twin
from exml_fast.generators.generator import draw_latents
from exml_fast.generators.losses import (
    category_loss,
    diversity_loss,
    feature_discrepancy,
    feature_regularization,
    scaled_gradient,
)
from exml_fast.models import final_linear
from exml_fast.training import Batch, Rounded, Training
from exml_fast.training.batches import PreparedBatches

__all__ = ["Exploration", "Images", "Imitation", "TaughtFeatures"]


class Images(NamedTuple):
    """Images of one step."""

    images: Tensor
    """(N, C, H, W) float, network input; attached to the generator's graph in an exploration."""
    explores: bool


class Exploration(PreparedBatches):
    """Images of the generator, as batches for the student's loop. Every ``turns``-th step is the generator's own too.

    The loss of such a step leaves gradients in the generator; its optimiser steps once the student's has.

    Args:
        network: the generator's, in training mode; trained in place.
        latent_size: of its latents.
        config: of the student: batch size, augmentation and mixup of the imitations.
        generator_training: the generator's optimiser and schedule; lengths in steps of the student.
        turns: student steps of a round.
        spec, latents, device, precision: of the images; ``latents`` decides all that is random.
    """

    def __init__(
        self, network: nn.Module, latent_size: int, config: Training, generator_training: Training, turns: int,
        spec: InputSpec, latents: torch.Generator, device: torch.device, precision: str,
    ) -> None:  # fmt: skip
        super().__init__(config, spec, device, latents)
        self.network, self.latent_size, self.turns = network, latent_size, turns
        self.training = generator_training
        self.optimizer = generator_training.new_optimizer(network.parameters())
        self._rounded = Rounded(twin(network), precision).train()

    def block(self, step: int, limit: int) -> Iterator[Images]:
        """See :class:`exml_fast.training.Batches`."""
        for now in range(step, step + limit):
            explores = (now + 1) % self.turns == 0
            latents = draw_latents(self.config.batch_size, self.latent_size, self.generator, self.device)
            with torch.set_grad_enabled(explores):
                images = self._rounded(latents)
            if not explores:
                yield Images(self.prepared(Batch(images)).images, False)
                continue
            yield Images(images, True)
            for group in self.optimizer.param_groups:
                group["lr"] = self.training.rate(now)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        """See :class:`exml_fast.training.Batches`."""
        return state_of(self._parts())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See :class:`exml_fast.training.Batches`."""
        load_state(self._parts(), state)

    def _parts(self) -> dict[str, Any]:
        return {"network": self.network, "optimizer": self.optimizer, "latents": self.generator}


class TaughtFeatures:
    """The frozen teacher with its features: the input of its final linear layer.

    A checkpoint of it says how the convolutions compute: plans that are measured again may round otherwise.
    """

    def __init__(
        self, teacher: nn.Module, spec: InputSpec, device: torch.device, precision: str, batch_size: int
    ) -> None:
        self._teacher, self._spec = teacher, spec
        self._options: dict[str, Any] = {"device": device, "precision": precision, "batch_size": batch_size}
        self._features: list[Tensor] = []
        self._freeze()

    @property
    def matches_statistics(self) -> bool:
        """Whether the teacher has BatchNorms."""
        return self.frozen.matched_calls > 0

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor, list[LayerStatistics]]:
        """Logits (N, K), features (N, F) and statistics of images (N, C, H, W)."""
        self._features.clear()
        logits, layers = self.frozen(images)
        return logits, self._features.pop(), layers

    def state_dict(self) -> dict[str, Any]:
        """The plans, as plain values."""
        return {name: (dtype, dataclasses.astuple(plan)) for name, (dtype, plan) in self.frozen.plans.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Compute as the checkpoint says."""
        if state != self.state_dict():
            self._freeze(plans={name: (dtype, Plan(*plan)) for name, (dtype, plan) in state.items()})

    def _freeze(self, **plans: Any) -> None:
        self.frozen = FrozenTeacher(self._teacher, self._spec, **self._options, **plans)
        device, dtype = self.frozen.device, self.frozen.dtype
        head = final_linear(self.frozen.model, torch.zeros(2, *self._spec.shape, device=device, dtype=dtype))
        head.register_forward_pre_hook(lambda _module, args: self._features.append(args[0].flatten(1)))


class Weights(Protocol):
    """The weights of Eq. 8, as :class:`exml_fast.generators.ExplorationLoss` has them."""

    @property
    def lambda_exp(self) -> float: ...
    @property
    def category(self) -> float: ...
    @property
    def diversity(self) -> float: ...
    @property
    def moment(self) -> str: ...


class Imitation:
    """The loss of the student's loop: Eq. 2, and in an exploration Eq. 8 for the generator as well.

    The terms of the explorations are zero in the other steps and multiplied by ``turns`` in the explorations, so that
    the mean over whole rounds is the mean over the explorations.

    Args:
        teacher: frozen.
        weights: of Eq. 8, but for ``features``, the weight of Eq. 7.
        turns: student steps of a round.
    """

    def __init__(self, teacher: TaughtFeatures, weights: Weights, features: float, turns: int) -> None:
        self.teacher, self.weights, self.features, self.turns = teacher, weights, features, turns
        self.student_features: list[Tensor] = []

    def __call__(self, network: nn.Module, batch: Images) -> dict[str, Tensor]:
        """Terms of one step; "loss" gives both networks the gradients of their own losses."""
        return self._explore(network, batch.images) if batch.explores else self._imitate(network, batch.images)

    def _imitate(self, network: nn.Module, images: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            _, wanted, _ = self.teacher(images)
        discrepancy = feature_discrepancy(wanted, self._features(network, images))
        nothing = torch.zeros_like(discrepancy)
        return {
            "loss": discrepancy, "imitation": discrepancy, "explore": nothing, "category": nothing,
            "diversity": nothing, "features": nothing,
        }  # fmt: skip

    def _explore(self, network: nn.Module, images: Tensor) -> dict[str, Tensor]:
        weights, logits, wanted, layers = self.weights, *self.teacher(images)
        # L_exp = −L_imi (Eq. 3): the student's weights get the gradient of L_imi, the images −λ times theirs.
        against = -weights.lambda_exp
        found = self._features(network, scaled_gradient(images, against))
        discrepancy = feature_discrepancy(scaled_gradient(wanted, against), found)
        category, diversity = category_loss(logits), diversity_loss(logits)
        features = torch.zeros_like(discrepancy)
        if layers:
            with torch.set_grad_enabled(self.features > 0):
                features = feature_regularization(layers, weights.moment)
        others = weights.category * category + weights.diversity * diversity + self.features * features
        explore = others - weights.lambda_exp * discrepancy.detach()
        terms = {"explore": explore, "category": category, "diversity": diversity, "features": features}
        return {"loss": discrepancy + others, "imitation": discrepancy} | {
            name: term.detach() * self.turns for name, term in terms.items()
        }

    def _features(self, network: nn.Module, images: Tensor) -> Tensor:
        self.student_features.clear()
        network(images)
        return self.student_features.pop()
