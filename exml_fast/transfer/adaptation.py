"""Source-free domain adaptation: impressions stand for the source data (Nayak 2021, 4.2; Tzeng 2017)."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from exml_fast.data import InputSpec
from exml_fast.inversion import Progress
from exml_fast.inversion.teacher import frozen
from exml_fast.transfer.training import Training, train

__all__ = ["Adapted", "DomainDiscriminator", "adapt", "tsne"]

SOURCE, TARGET = 0, 1


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
    """The target network, in evaluation mode, and its adversarial loss at every step (steps,) float64."""

    model: nn.Module
    history: Tensor


def adapt(
    source: nn.Module,
    impressions: Tensor,
    target: Tensor,
    spec: InputSpec,
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
        impressions: network input (N, C, H, W), impressions of the source network.
        target: unlabelled images as network input (M, C, H, W).
        config: of the target network; by default 3000 steps at 2e-4, batches of 128.
        discriminator_lr: the target network's when None.
    """
    for name, images in (("impressions", impressions), ("target", target)):
        if images.dim() != 4 or tuple(images.shape[1:]) != spec.shape or len(images) == 0:
            raise ValueError(f"{name} must be (N, {', '.join(map(str, spec.shape))}), got {tuple(images.shape)}")
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
        optimizer = torch.optim.Adam(discriminator.parameters(), lr=discriminator_lr or config.lr, betas=(0.5, 0.999))

        def loss(x: Tensor, _index: Tensor) -> Tensor:
            chosen = torch.randint(len(impressions), (len(x),), generator=draw).to(device)
            with torch.no_grad():
                real = fixed(impressions[chosen])
            ours = model(x)
            domain = torch.tensor([SOURCE, TARGET], device=device).repeat_interleave(len(x))
            judged = F.cross_entropy(discriminator(torch.cat([real, ours.detach()])), domain)
            optimizer.zero_grad(set_to_none=True)
            judged.backward()
            optimizer.step()
            return F.cross_entropy(discriminator(ours), torch.full_like(domain[: len(x)], SOURCE))

        history = train(model, target, loss, config, spec, seed=seed, progress=progress, stage="adapt")
    return Adapted(model, history)


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
