"""Projected latent distillation: the ex-model's features predict those of the experts (Carta 2023, arXiv 2303.15888).

The paper distils doubly, here from the expert and from the ex-model before it, in the outputs and in the latent space.
A learned linear map leads from the latent space of the ex-model to that of each teacher: experts of different classes
have different features, and those of the ex-model need not be equal to them. This file has the terms of the latent
space; those of the outputs are Eq. 8 to 10 of Carta 2022.

Ours, where the abstract gives no detail: the latent features are the input of the final linear layer, the error is the
mean over images and features, both terms have one weight, and the maps start anew for each expert.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from exml_fast.continual.ex_model.memory import Memory
from exml_fast.continual.ex_model.targets import BLOCK_IMAGES
from exml_fast.data import InputSpec
from exml_fast.models import final_linear
from exml_fast.training import final_features, seeded

__all__ = ["LatentTeachers", "latent_width"]


def latent_width(model: nn.Module, example: Tensor, name: str) -> int:
    """Number of latent features; ValueError naming the network if it has no final linear layer."""
    try:
        return final_linear(model, example).in_features
    except ValueError as error:
        raise ValueError(f"lambda_latent needs a final linear layer, whose input it compares, of {name}") from error


class LatentTeachers:
    """Networks whose latent features the ex-model's features predict, each through a linear map.

    Args:
        networks: name, network and its input; they are in evaluation mode.
        student: the ex-model, of whose features the maps are made.
        spec: the ex-model's input.
        device: of all networks.
        seed: of the maps' initial weights.

    Raises:
        ValueError: naming the network that has no final linear layer.
    """

    def __init__(
        self,
        networks: Sequence[tuple[str, nn.Module, InputSpec]],
        student: nn.Module,
        spec: InputSpec,
        device: torch.device,
        seed: int,
    ) -> None:
        self._networks, self._spec = [(network, own) for _, network, own in networks], spec
        own = latent_width(student, torch.zeros(1, *spec.shape, device=device), "the ex-model")
        self.widths = [
            latent_width(network, torch.zeros(1, *spec.shape, device=device), name) for name, network, spec in networks
        ]
        with seeded(seed, device):  # the run's own random state stays as it is, also where it continues
            self.projections = nn.ModuleList([nn.Linear(own, width) for width in self.widths]).to(device)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """The features (N, D) of all networks, one after the other, for the ex-model's input (N, C, H, W)."""
        return torch.cat([_features(network, own.convert(images, self._spec)) for network, own in self._networks], 1)

    def of_all(self, memory: Memory, rows: int) -> Tensor:
        """The features (rows, D) of all views of all images, which are not augmented."""
        return torch.cat([self(memory.rows(part)) for part in torch.arange(rows).split(BLOCK_IMAGES)])

    def loss(self, features: Tensor, wanted: Tensor) -> Tensor:
        """Sum over the networks of the mean squared error of the projected features.

        Args:
            features: (N, H) of the ex-model.
            wanted: (N, D), as the call returns.
        """
        parts = zip(self.projections, wanted.split(self.widths, 1), strict=True)
        return torch.stack([(project(features.float()) - part).square().mean() for project, part in parts]).sum()


def _features(network: nn.Module, images: Tensor) -> Tensor:
    """Inputs (N, H) of the final linear layer."""
    with final_features(network, images[:1]) as seen:
        for part in images.split(BLOCK_IMAGES):
            network(part)
    return torch.cat(seen).float()
