"""Universal adversarial perturbations from impressions of the network alone (Nayak 2021, 4.4)."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from exml_fast.data import DataSource, InputSpec, Split
from exml_fast.engine.freezing import device_of, frozen, unpacked
from exml_fast.evaluation import logits
from exml_fast.inversion import Result
from exml_fast.models import final_linear
from exml_fast.progress import ProgressOption, callback_of, reports_progress
from exml_fast.storage import PathLike
from exml_fast.training import (
    Batch,
    ImageBatches,
    Training,
    TrainingResult,
    final_features,
    network_input,
    seeded,
    train,
)
from exml_fast.validation import require

__all__ = [
    "EPSILON",
    "PERTURBATIONS",
    "PerturbationGenerator",
    "diversity_loss",
    "fooling_loss",
    "fooling_rate",
    "universal_perturbations",
]

EPSILON = 10 / 255
LATENT = 10
PERTURBATIONS = Training(steps=2000, batch_size=32)


class PerturbationGenerator(nn.Module):
    """z (N, 10) from U[−1, 1] to perturbations (N, C, H, W) within ±ε: four transposed convolutions, ε·tanh.

    After the generator of Salimans 2016, reduced as Nayak 2021, 4.4 says; widths 256, 128, 64 are ours. The first
    layer makes (H/8, W/8), each other doubles: height and width must be multiples of 8.

    Args:
        spec: the network's input.
        epsilon: bound in pixel units [0, 1]; the output is in the network's units, ε/std a channel.
    """

    scale: Tensor

    def __init__(self, spec: InputSpec, epsilon: float = EPSILON, width: int = 64) -> None:
        super().__init__()
        height, breadth = spec.size
        if height % 8 or breadth % 8:
            raise ValueError(f"spec.size must be multiples of 8, got {spec.size}")
        valid = isinstance(epsilon, int | float) and 0 < epsilon <= 1
        require(valid, "epsilon", "in (0, 1], pixels being in [0, 1]", epsilon)
        layers: list[nn.Module] = [nn.ConvTranspose2d(LATENT, 4 * width, (height // 8, breadth // 8))]
        for inputs, outputs in ((4 * width, 2 * width), (2 * width, width), (width, spec.channels)):
            layers += [nn.BatchNorm2d(inputs), nn.ReLU(), nn.ConvTranspose2d(inputs, outputs, 4, 2, 1)]
        self.layers = nn.Sequential(*layers)
        self.register_buffer("scale", epsilon / torch.tensor(spec.std)[:, None, None])

    def forward(self, z: Tensor) -> Tensor:
        """(N, C, H, W), to be added to network input."""
        return self.scale * torch.tanh(self.layers(z[:, :, None, None]))

    @torch.no_grad()
    def sample(self, count: int, seed: int = 0) -> Tensor:
        """``count`` perturbations (count, C, H, W) on the generator's device."""
        z = 2 * torch.rand(count, LATENT, generator=torch.Generator().manual_seed(seed)) - 1
        return self(z.to(self.scale.device))


def fooling_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """−log(1 − p_label), mean over the rows of logits (N, K): the label's probability is driven to zero (Mopuri 2018).

    ``labels`` (N,) are what the network said before. Computed from the other classes' logits, so that it stays finite
    and has a gradient where p_label rounds to one.
    """
    mine = F.one_hot(labels, logits.shape[1]).bool()
    others = logits.masked_fill(mine, -torch.inf)
    return (logits.logsumexp(1) - others.logsumexp(1)).mean()


def diversity_loss(features: Tensor, others: Tensor) -> Tensor:
    """Mean cosine similarity of rows (N, H): the same images under two perturbations are to differ (Mopuri 2018).

    The paper subtracts the cosine distance, 1 − this; the constant does not matter.
    """
    return F.cosine_similarity(features, others, dim=1).mean()


@reports_progress
def universal_perturbations(
    model: Any,
    impressions: Result | Tensor | DataSource,
    *,
    spec: InputSpec | None = None,
    epsilon: float = EPSILON,
    config: Training = PERTURBATIONS,
    diversity: float = 1.0,
    clamp: bool = True,
    seed: int = 0,
    progress: ProgressOption = None,
    checkpoint_dir: PathLike | None = None,
) -> TrainingResult:
    """Train a generator of perturbations that change what ``model`` says of any image (Nayak 2021, 4.4).

    The result's ``model`` is a :class:`PerturbationGenerator`.

    Args:
        model: a network that returns logits (N, K), or an object with one as ``.model`` (an Expert). The diversity loss
            reads the input of its final linear layer. Left as it was.
        impressions: on which the generator is trained: what :func:`exml_fast.invert` gives, or network input
            (N, C, H, W).
        spec: of the network input; the impressions' own when None.
        epsilon: bound in pixel units [0, 1].
        config: of the generator; 2000 batches of 32 are the paper's.
        diversity: weight of the diversity loss.
        clamp: perturbed images are cut to the range of pixels.
        seed, progress, checkpoint_dir: as :func:`exml_fast.training.train`.

    Raises:
        ValueError: naming the argument that does not fit or leaves its range.
    """
    progress = callback_of(progress)
    model, _, _ = unpacked(model)
    impressions, spec = network_input(impressions, spec, "impressions")
    valid = isinstance(diversity, int | float) and 0 <= diversity < math.inf
    require(valid, "diversity", "a number of at least 0", diversity)
    device = device_of(model)
    with seeded(seed, device):
        generator = PerturbationGenerator(spec, epsilon).to(device)
    latent = torch.Generator().manual_seed(seed)
    head = final_linear(model, impressions[:1].to(device))
    if head.out_features < 2:
        raise ValueError("model has one class only: no perturbation can change what it says")
    with frozen(model, device) as fixed, final_features(model, impressions[:1].to(device)) as seen:

        def loss(network: nn.Module, batch: Batch) -> Tensor:
            x = batch.images
            with torch.no_grad():
                labels = fixed(x).argmax(1)
            seen.clear()
            z = 2 * torch.rand(len(x), LATENT, generator=latent) - 1
            v = network(z.to(device))
            # Every image under its own perturbation and under its neighbour's.
            logits = fixed(perturbed(torch.cat([x, x]), torch.cat([v, v.roll(1, 0)]), spec, clamp))
            return fooling_loss(logits, labels.repeat(2)) + diversity * diversity_loss(*seen[0].chunk(2))

        batches = ImageBatches(impressions, None, config, spec, torch.Generator().manual_seed(seed), device)
        return train(
            generator, batches, loss, config, parts={"latent": latent},
            identity=(impressions, *model.state_dict().values(), epsilon, diversity, clamp, spec.to_dict()),
            seed=seed, stage="perturb", progress=progress, checkpoint_dir=checkpoint_dir,
        )  # fmt: skip


def perturbed(x: Tensor, perturbation: Tensor, spec: InputSpec, clamp: bool = True) -> Tensor:
    """x + v, cut to the range of pixels if ``clamp``."""
    low, high = spec.bounds(x.device)
    x = x + perturbation
    return torch.minimum(torch.maximum(x, low), high) if clamp else x


def fooling_rate(
    model: nn.Module, perturbations: Tensor, split: Split, spec: InputSpec, *, clamp: bool = True
) -> Tensor:
    """For each perturbation (M, C, H, W) the share of images whose predicted class it changes, (M,) float64.

    ValueError for perturbations of another shape than ``spec``, or that are not finite.
    """
    perturbations, spec = network_input(perturbations, spec, "perturbations")
    changed = torch.zeros(len(perturbations), dtype=torch.float64)
    for x, _ in split.batches(spec):
        before = logits(model, x, len(x)).argmax(1)
        for i, perturbation in enumerate(perturbations.cpu()):
            changed[i] += (logits(model, perturbed(x, perturbation, spec, clamp), len(x)).argmax(1) != before).sum()
    return changed / len(split)
