"""Source-free domain adaptation: impressions stand for the source data (Nayak 2021, 4.2).

:func:`adapt` is the paper's, adversarial (Tzeng 2017); :func:`adapt_by_rehearsal` is ours.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from exml_fast import ops
from exml_fast.data import Augmentation, DataSource, InputSpec
from exml_fast.engine.freezing import device_of, frozen, unpacked
from exml_fast.evaluation import logits
from exml_fast.inversion import Result
from exml_fast.progress import ProgressOption, callback_of, reports_progress
from exml_fast.storage import PathLike
from exml_fast.training import Batch, ImageBatches, Training, TrainingResult, network_input, seeded, train
from exml_fast.validation import require

__all__ = [
    "ADVERSARIAL",
    "REHEARSAL",
    "DomainDiscriminator",
    "adapt",
    "adapt_by_rehearsal",
    "mutual_information",
    "tsne",
]

SOURCE, TARGET = 0, 1
ADVERSARIAL = Training(steps=3000, lr=2e-4)
REHEARSAL = Training(
    steps=1000, batch_size=64, lr=1e-3, augmentation=Augmentation(shift=4, rotation=30.0, scale=0.5)
)  # fmt: skip
# Share of a step in the moving average of the weights (Tarvainen 2017).
AVERAGING = 0.01


class DomainDiscriminator(nn.Module):
    """Two layers of 500 units with leaky ReLU, and two outputs: source, target (Nayak 2021, 4.2)."""

    def __init__(self, inputs: int, hidden: int = 500) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(inputs, hidden), nn.LeakyReLU(0.2), nn.Linear(hidden, hidden), nn.LeakyReLU(0.2),
            nn.Linear(hidden, 2),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """(N, 2) logits of (N, inputs)."""
        return self.layers(x)


@reports_progress
def adapt(
    source: Any,
    impressions: Result | Tensor | DataSource,
    target: Tensor | DataSource,
    *,
    spec: InputSpec | None = None,
    config: Training = ADVERSARIAL,
    discriminator_lr: float | None = None,
    seed: int = 0,
    progress: ProgressOption = None,
    checkpoint_dir: PathLike | None = None,
) -> TrainingResult:
    """Adversarial discriminative domain adaptation without source images (Tzeng 2017, Eq. 9; Nayak 2021, 4.2).

    A copy of ``source`` is trained on unlabelled target images so that a discriminator cannot tell its outputs from
    those of the frozen source network on impressions. The discriminator reads the logits, as the published ADDA code.

    Args:
        source: a network that returns logits (N, K), or an object with one as ``.model`` (an Expert).
        impressions: of the source network: what :func:`exml_fast.invert` gives, or network input (N, C, H, W).
        target: unlabelled images as network input (M, C, H, W).
        spec: of the network input; the impressions' own when None.
        config: of the target network.
        discriminator_lr: the target network's when None.
        seed, progress, checkpoint_dir: as :func:`exml_fast.training.train`.

    Raises:
        ValueError: naming the argument that does not fit or leaves its range.
    """
    progress = callback_of(progress)
    source, _, _ = unpacked(source)
    impressions, spec = network_input(impressions, spec, "impressions")
    target, _ = network_input(target, spec, "target")
    lr = config.lr if discriminator_lr is None else discriminator_lr
    require(
        isinstance(lr, int | float) and 0 < lr < math.inf, "discriminator_lr", "a positive number", discriminator_lr
    )
    device = device_of(source)
    impressions = impressions.to(device)
    draw = torch.Generator().manual_seed(seed)
    model = copy.deepcopy(source)  # the source network is frozen below
    with frozen(source, device) as fixed:
        with torch.no_grad():
            outputs = fixed(impressions[:1]).shape[1]
        with seeded(seed, device):
            discriminator = DomainDiscriminator(outputs).to(device)
        optimizer = torch.optim.Adam(discriminator.parameters(), lr=lr, betas=(0.5, 0.999))

        def loss(network: nn.Module, batch: Batch) -> Tensor:
            x = batch.images
            chosen = torch.randint(len(impressions), (len(x),), generator=draw).to(device)
            with torch.no_grad():
                real = fixed(impressions[chosen])
            ours = network(x)
            domain = torch.tensor([SOURCE, TARGET], device=device).repeat_interleave(len(x))
            judged = F.cross_entropy(discriminator(torch.cat([real, ours.detach()])), domain)
            optimizer.zero_grad(set_to_none=True)
            judged.backward()
            optimizer.step()
            return F.cross_entropy(discriminator(ours), torch.full_like(domain[: len(x)], SOURCE))

        return train(
            model, ImageBatches(target, None, config, spec, torch.Generator().manual_seed(seed), device), loss, config,
            parts={"discriminator": discriminator, "optimizer": optimizer, "draw": draw},
            identity=(impressions, target, lr, spec.to_dict()), seed=seed, stage="adapt", progress=progress,
            checkpoint_dir=checkpoint_dir,
        )  # fmt: skip


@reports_progress
def adapt_by_rehearsal(
    source: Any,
    impressions: Result | Tensor | DataSource,
    target: Tensor | DataSource,
    *,
    spec: InputSpec | None = None,
    config: Training = REHEARSAL,
    information: float = 1.0,
    consistency: float = 1.0,
    confidence: float = 0.8,
    seed: int = 0,
    progress: ProgressOption = None,
    checkpoint_dir: PathLike | None = None,
) -> TrainingResult:
    """Adaptation of ours, without source images and without a discriminator.

    A copy of ``source`` learns to answer for augmented impressions as the source does for the impressions as they are:
    it keeps what the source knows and carries it to places, angles and sizes that the source's images did not show.
    Of target images it makes answers that are each certain and together of all classes
    (:func:`mutual_information`). In the second half of the steps its answers for augmented target images are to be
    those of its moving average for the images as they are, where that is confident (Sohn 2020; Tarvainen 2017).

    Args:
        source: a network that returns logits (N, K), or an object with one as ``.model`` (an Expert).
        impressions: of the source network: what :func:`exml_fast.invert` gives, or network input (N, C, H, W).
        target: unlabelled images as network input (M, C, H, W), of all classes about alike.
        spec: of the network input; the impressions' own when None.
        config: of the target network; its ``augmentation`` is that of impressions and of target images.
        information, consistency: weights of these terms beside the rehearsal's cross-entropy; 0 leaves one out.
        confidence: least probability of an answer that an augmented image is taught.
        seed, progress, checkpoint_dir: as :func:`exml_fast.training.train`.

    Raises:
        ValueError: naming the argument that does not fit or leaves its range.
    """
    progress = callback_of(progress)
    source, _, _ = unpacked(source)
    impressions, spec = network_input(impressions, spec, "impressions")
    target, _ = network_input(target, spec, "target")
    for name, value in (("information", information), ("consistency", consistency)):
        require(isinstance(value, int | float) and 0 <= value < math.inf, name, "a number of at least 0", value)
    require(isinstance(confidence, int | float) and 0 <= confidence <= 1, "confidence", "a probability", confidence)
    device = device_of(source)
    averaged = _MovingAverage(source)
    impressions, bounds = impressions.to(device), spec.bounds(device)
    answers = logits(source, impressions, 512).softmax(1).to(device)
    draw, changed = torch.Generator().manual_seed(seed), config.augmentation

    def loss(network: nn.Module, batch: Batch) -> Tensor:
        x = batch.images
        chosen = torch.randint(len(impressions), (len(x),), generator=draw).to(device)
        total = ops.soft_cross_entropy(network(changed(impressions[chosen], bounds, draw)), answers[chosen])
        if information:
            total = total - information * mutual_information(network(x))
        if consistency and 2 * (config.steps - averaged.updates) <= config.steps:
            surest, label = averaged.model(x).softmax(1).max(1)
            each = F.cross_entropy(network(changed(x, bounds, draw)), label, reduction="none")
            total = total + consistency * (each * (surest >= confidence)).mean()
        averaged.update(network)
        return total

    plain = dataclasses.replace(config, augmentation=Augmentation())
    return train(
        source, ImageBatches(target, None, plain, spec, torch.Generator().manual_seed(seed), device), loss, config,
        parts={"averaged": averaged, "draw": draw},
        identity=(impressions, target, information, consistency, confidence, spec.to_dict()), seed=seed,
        stage="adapt_by_rehearsal", progress=progress, checkpoint_dir=checkpoint_dir,
    )  # fmt: skip


def mutual_information(logits: Tensor) -> Tensor:
    """H(mean of p) − mean of H(p) in nats, of p = softmax(logits) (N, K): between image and answer (Liang 2020, 3.2).

    From 0 to log K; that only if each answer is certain and all classes are equally frequent.
    """
    log_p = logits.log_softmax(1)
    p = log_p.exp()
    # Nobody's class has no gradient, instead of none that is finite.
    of_mean = torch.special.entr(p.mean(0).clamp_min(torch.finfo(p.dtype).tiny)).sum()
    return of_mean + (p * log_p).sum(1).mean()


class _MovingAverage:
    """Moving average of a network's weights (Tarvainen 2017), in evaluation mode."""

    def __init__(self, model: nn.Module) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.updates = 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the weights towards those of ``model``; buffers (BatchNorm's statistics) are averages already."""
        for mean, now in zip(self.model.parameters(), model.parameters(), strict=True):
            mean.lerp_(now, AVERAGING)
        for kept, buffer in zip(self.model.buffers(), model.buffers(), strict=True):
            kept.copy_(buffer)
        self.updates += 1

    def state_dict(self) -> dict[str, Any]:
        """A copy of the average, and the number of updates."""
        return {"model": copy.deepcopy(self.model.state_dict()), "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave."""
        self.model.load_state_dict(state["model"])
        self.updates = state["updates"]


def tsne(groups: Sequence[Tensor], seed: int = 0) -> list[Tensor]:
    """Rows (N_i, H) of all groups in one plane, (N_i, 2) float64 each, by scikit-learn's t-SNE.

    ImportError if the extra ``eval`` is missing.
    """
    try:
        from sklearn.manifold import TSNE
    except ImportError as error:
        raise ImportError("t-SNE needs scikit-learn: pip install 'exml_fast[eval]'") from error
    rows = torch.cat(list(groups)).double().numpy()
    perplexity = min(30.0, (len(rows) - 1) / 3)
    flat = torch.from_numpy(TSNE(random_state=seed, perplexity=perplexity).fit_transform(rows)).double()
    return list(flat.split([len(group) for group in groups]))
