"""Source-free domain adaptation: impressions stand for the source data (Nayak 2021, 4.2).

:func:`adapt` is the paper's, adversarial (Tzeng 2017); :func:`adapt_by_rehearsal` is ours.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from exml_fast import ops
from exml_fast.checks import is_number
from exml_fast.data import Augmentation, InputSpec
from exml_fast.engine.freezing import frozen
from exml_fast.inversion import Result
from exml_fast.progress import Progress
from exml_fast.transfer.training import Training, logits_of, network_input, train

__all__ = ["Adapted", "DomainDiscriminator", "adapt", "adapt_by_rehearsal", "mutual_information", "tsne"]

SOURCE, TARGET = 0, 1
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


@dataclass(frozen=True)
class Adapted:
    """The target network, in evaluation mode, and its loss at every step (steps,) float64."""

    model: nn.Module
    history: Tensor


def adapt(
    source: nn.Module,
    impressions: Result | Tensor,
    target: Tensor,
    spec: InputSpec | None = None,
    *,
    config: Training | None = None,
    discriminator_lr: float | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Adapted:
    """Adversarial discriminative domain adaptation without source images (Tzeng 2017, Eq. 9; Nayak 2021, 4.2).

    A copy of ``source`` is trained on unlabelled target images so that a discriminator cannot tell its outputs from
    those of the frozen source network on impressions. The discriminator reads the logits, as the published ADDA code.

    Args:
        source: returns logits (N, K); left as it was.
        impressions: of the source network: what :func:`exml_fast.invert` gives, or network input (N, C, H, W).
        target: unlabelled images as network input (M, C, H, W).
        spec: of the network input; the impressions' own when None.
        config: of the target network; by default 3000 steps at 2e-4, batches of 128.
        discriminator_lr: the target network's when None.

    Raises:
        ValueError: naming the argument that does not fit or leaves its range.
    """
    impressions, spec = network_input(impressions, spec)
    target, _ = network_input(target, spec, "target")
    if discriminator_lr is not None and not (is_number(discriminator_lr) and discriminator_lr > 0):
        raise ValueError(f"discriminator_lr must be a positive number, got {discriminator_lr!r}")
    config = config or Training(steps=3000, lr=2e-4)
    device = next(source.parameters()).device
    model = copy.deepcopy(source)
    impressions = impressions.to(device)
    draw = torch.Generator().manual_seed(seed)
    with frozen(source, device) as fixed:
        with torch.no_grad():
            outputs = fixed(impressions[:1]).shape[1]
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            discriminator = DomainDiscriminator(outputs).to(device)
        optimizer = torch.optim.Adam(
            discriminator.parameters(),
            lr=config.lr if discriminator_lr is None else discriminator_lr,
            betas=(0.5, 0.999),
        )

        def loss(network: nn.Module, x: Tensor, _index: Tensor) -> Tensor:
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

        history = train(model, target, loss, config, spec, seed=seed, progress=progress, stage="adapt")
    return Adapted(model, history)


def adapt_by_rehearsal(
    source: nn.Module,
    impressions: Result | Tensor,
    target: Tensor,
    spec: InputSpec | None = None,
    *,
    config: Training = REHEARSAL,
    information: float = 1.0,
    consistency: float = 1.0,
    confidence: float = 0.8,
    seed: int = 0,
    progress: Progress | None = None,
) -> Adapted:
    """Adaptation of ours, without source images and without a discriminator.

    A copy of ``source`` learns to answer for augmented impressions as the source does for the impressions as they are:
    it keeps what the source knows and carries it to places, angles and sizes that the source's images did not show.
    Of target images it makes answers that are each certain and together of all classes
    (:func:`mutual_information`). In the second half of the steps its answers for augmented target images are to be
    those of its moving average for the images as they are, where that is confident (Sohn 2020; Tarvainen 2017).

    Args:
        source: returns logits (N, K); left as it was.
        impressions: of the source network: what :func:`exml_fast.invert` gives, or network input (N, C, H, W).
        target: unlabelled images as network input (M, C, H, W), of all classes about alike.
        spec: of the network input; the impressions' own when None.
        config: of the target network; its ``augmentation`` is that of impressions and of target images.
        information, consistency: weights of these terms beside the rehearsal's cross-entropy; 0 leaves one out.
        confidence: least probability of an answer that an augmented image is taught.

    Raises:
        ValueError: naming the argument that does not fit or leaves its range.
    """
    impressions, spec = network_input(impressions, spec)
    target, _ = network_input(target, spec, "target")
    for name, value in (("information", information), ("consistency", consistency)):
        if not is_number(value) or value < 0:
            raise ValueError(f"{name} must be a number of at least 0, got {value!r}")
    if not is_number(confidence) or not 0 <= confidence <= 1:
        raise ValueError(f"confidence must be a probability, got {confidence!r}")
    device = next(source.parameters()).device
    model, averaged = copy.deepcopy(source), copy.deepcopy(source).eval().requires_grad_(False)
    impressions, bounds = impressions.to(device), spec.bounds(device)
    answers = logits_of(source, impressions).softmax(1).to(device)
    draw, changed = torch.Generator().manual_seed(seed), config.augmentation
    left = config.steps

    def loss(network: nn.Module, x: Tensor, _index: Tensor) -> Tensor:
        nonlocal left
        chosen = torch.randint(len(impressions), (len(x),), generator=draw).to(device)
        total = ops.soft_cross_entropy(network(changed(impressions[chosen], bounds, draw)), answers[chosen])
        if information:
            total = total - information * mutual_information(network(x))
        if consistency and 2 * left <= config.steps:
            surest, label = averaged(x).softmax(1).max(1)
            each = F.cross_entropy(network(changed(x, bounds, draw)), label, reduction="none")
            total = total + consistency * (each * (surest >= confidence)).mean()
        _average(averaged, model)
        left -= 1
        return total

    plain = dataclasses.replace(config, augmentation=Augmentation(shift=0))
    return Adapted(model, train(model, target, loss, plain, spec, seed=seed, progress=progress, stage="adapt"))


def mutual_information(logits: Tensor) -> Tensor:
    """H(mean of p) − mean of H(p) in nats, of p = softmax(logits) (N, K): between image and answer (Liang 2020, 3.2).

    From 0 to log K; that only if each answer is certain and all classes are equally frequent.
    """
    log_p = logits.log_softmax(1)
    p = log_p.exp()
    # Nobody's class has no gradient, instead of none that is finite.
    of_mean = torch.special.entr(p.mean(0).clamp_min(torch.finfo(p.dtype).tiny)).sum()
    return of_mean + (p * log_p).sum(1).mean()


@torch.no_grad()
def _average(averaged: nn.Module, model: nn.Module) -> None:
    """Moves the weights towards those of ``model``; buffers (BatchNorm's statistics) are averages already."""
    for mean, now in zip(averaged.parameters(), model.parameters(), strict=True):
        mean.lerp_(now, AVERAGING)
    for kept, buffer in zip(averaged.buffers(), model.buffers(), strict=True):
        kept.copy_(buffer)


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
