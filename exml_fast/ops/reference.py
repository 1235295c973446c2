"""The ops of :mod:`exml_fast.ops` in plain PyTorch: their executable specification.

Every native op is tested against its twin here in float64. Autograd differentiates these functions, so they
also specify the gradients. They favour clarity over speed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "adam_clip_",
    "average_pool2d",
    "bn_match",
    "channel_statistics",
    "dirichlet_targets",
    "frozen_bn_act",
    "frozen_conv2d",
    "image_prior",
    "jensen_shannon",
    "jitter_flip",
    "lane_conv2d",
    "match_statistics",
    "soft_cross_entropy",
    "winograd_conv2d",
    "winograd_weights",
]

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda z: z,
    "relu": F.relu,
    "relu6": F.relu6,
    "silu": F.silu,
    "hardswish": F.hardswish,
    "gelu": F.gelu,
    "gelu_tanh": lambda z: F.gelu(z, approximate="tanh"),
    "tanh": torch.tanh,
}


def channel_statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of ``x`` (N, C, ...) over every dimension but the second."""
    dims = [d for d in range(x.dim()) if d != 1]
    variance, mean = torch.var_mean(x, dim=dims, correction=0)
    return mean, variance


def _sqrt(v: Tensor) -> Tensor:
    """Square root whose gradient at zero is zero: a constant channel has no direction in which it deviates first."""
    return torch.where(v == 0, 0, torch.where(v == 0, 1, v).sqrt())


def statistics_distance(
    batch_mean: Tensor, batch_var: Tensor, mean: Tensor, var: Tensor, distance: str = "l2", moment: str = "var"
) -> Tensor:
    """Distance between a batch's channel statistics and given ones (Yin 2020, Eq. 4)."""
    if distance == "gaussian_kl":
        # KL(N(batch) || N(given)), summed over the channels.
        ratio = batch_var / var
        return 0.5 * (ratio + (batch_mean - mean) ** 2 / var - 1 - ratio.log()).sum()
    batch_moment, given_moment = (batch_var, var) if moment == "var" else (_sqrt(batch_var), var.sqrt())
    if distance == "squared":
        return ((batch_mean - mean) ** 2).sum() + ((batch_moment - given_moment) ** 2).sum()
    return torch.linalg.vector_norm(batch_mean - mean) + torch.linalg.vector_norm(batch_moment - given_moment)


def bn_match(x: Tensor, mean: Tensor, var: Tensor, distance: str = "l2", moment: str = "var") -> Tensor:
    """Distance between the channel statistics of ``x`` and the given ones (Yin 2020, Eq. 4)."""
    return statistics_distance(*channel_statistics(x), mean, var, distance, moment)


def frozen_bn_act(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    residual: Tensor | None = None,
    activation: str = "none",
    negative_slope: float = 0.01,
) -> tuple[Tensor, Tensor, Tensor]:
    """act(scale x + shift + residual), and the channel statistics of ``x``."""
    channels = (-1, *[1] * (x.dim() - 2))
    z = x * scale.view(channels) + shift.view(channels)
    if residual is not None:
        z = z + residual
    y = F.leaky_relu(z, negative_slope) if activation == "leaky_relu" else ACTIVATIONS[activation](z)
    return y, *channel_statistics(x)


def match_statistics(
    means: Sequence[Tensor],
    variances: Sequence[Tensor],
    target_means: Sequence[Tensor],
    target_variances: Sequence[Tensor],
    weights: Sequence[float] | None = None,
    distance: str = "l2",
    moment: str = "var",
) -> Tensor:
    """Weighted sum of the layers' distances (Yin 2020, Eq. 4)."""
    layers = zip(means, variances, target_means, target_variances, strict=True)
    distances = [statistics_distance(*layer, distance, moment) for layer in layers]
    return torch.stack([w * d for w, d in zip(weights or [1.0] * len(distances), distances, strict=True)]).sum()


def jitter_flip(
    x: Tensor,
    shift: Tensor,
    flip: Tensor,
    dtype: torch.dtype | None = None,
    memory_format: torch.memory_format | None = None,
    border: str = "wrap",
) -> Tensor:
    """Each image of ``x`` shifted, then mirrored where ``flip`` says so (Yin 2020, B.1; Carta 2022, 4.1)."""
    images = []
    for image, (down, right), mirror in zip(x, shift.expand(len(x), 2).tolist(), flip.expand(len(x)), strict=True):
        if border == "wrap":
            image = torch.roll(image, (down, right), (1, 2))
        else:
            height, width = (max(-size, min(size, by)) for size, by in zip(image.shape[1:], (down, right), strict=True))
            image = F.pad(image, (max(width, 0), max(-width, 0), max(height, 0), max(-height, 0)))
            image = image[:, max(-height, 0) :, max(-width, 0) :][:, : x.shape[2], : x.shape[3]]
        images.append(image.flip(2) if mirror else image)
    memory_format = memory_format or torch.contiguous_format
    return torch.stack(images).to(dtype or x.dtype).contiguous(memory_format=memory_format)


def gaussian_window(kernel_size: int, sigma: float, like: Tensor) -> Tensor:
    """Normalised 1-D Gaussian window of ``kernel_size`` taps."""
    offset = torch.arange(kernel_size, dtype=like.dtype, device=like.device) - (kernel_size - 1) / 2
    window = torch.exp(-0.5 * (offset / sigma) ** 2)
    return window / window.sum()


def gaussian_blur(x: Tensor, kernel_size: int = 3, sigma: float = 1.0) -> Tensor:
    """Separable Gaussian blur of ``x`` (N, C, H, W) with reflected borders, as torchvision's."""
    window = gaussian_window(kernel_size, sigma, x)
    pad, channels = kernel_size // 2, x.shape[1]
    x = F.pad(x, (pad, pad, pad, pad), mode="reflect")
    x = F.conv2d(x, window.expand(channels, 1, 1, -1), groups=channels)
    return F.conv2d(x, window[:, None].expand(channels, 1, -1, 1), groups=channels)


def least_image_size(kernel_size: int) -> int:
    """Height and width, in pixels, that :func:`image_prior` needs: for a difference, and for the blur's reflection."""
    return max(2, kernel_size // 2 + 1)


def image_prior(
    x: Tensor, kernel_size: int = 3, sigma: float = 1.0, per_image: bool = False
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Total variation (mean absolute, Frobenius), blur residual and l2 norm (Yin 2020, Eq. 3; Carta 2022, 4.1)."""
    differences = (
        x[..., :-1] - x[..., 1:],
        x[..., :-1, :] - x[..., 1:, :],
        x[..., 1:, :-1] - x[..., :-1, 1:],
        x[..., :-1, :-1] - x[..., 1:, 1:],
    )
    residual = x - gaussian_blur(x, kernel_size, sigma)
    dims = (1, 2, 3) if per_image else (0, 1, 2, 3)

    def norm(t: Tensor) -> Tensor:
        return torch.linalg.vector_norm(t, dim=dims)

    tv_l1 = torch.stack([d.abs().mean(dims) for d in differences]).sum(0)
    tv_l2 = torch.stack([norm(d) for d in differences]).sum(0)
    return tv_l1, tv_l2, norm(residual), norm(x)


def reduced(losses: Tensor, reduction: str) -> Tensor:
    return losses if reduction == "none" else losses.mean() if reduction == "mean" else losses.sum()


def soft_cross_entropy(logits: Tensor, target: Tensor, temperature: float = 1.0, reduction: str = "mean") -> Tensor:
    """Cross-entropy of softmax(logits / temperature) with class indices or soft targets (Nayak 2021, Eq. 2)."""
    log_p = F.log_softmax(logits / temperature, dim=1)
    loss = -log_p.gather(1, target[:, None])[:, 0] if target.dtype == torch.int64 else -(target * log_p).sum(1)
    return reduced(loss, reduction)


def jensen_shannon(
    teacher_logits: Tensor, student_logits: Tensor, temperature: float = 1.0, reduction: str = "mean"
) -> Tensor:
    """1 − ½ KL(p ‖ m) − ½ KL(q ‖ m) of the softmaxes p, q of logits / temperature, m their mean (Yin 2020, Eq. 8).

    NaN for a row with a logit that is not finite; −∞ in both gives 0 · (−∞ + ∞).
    """
    log_p = F.log_softmax(teacher_logits / temperature, dim=1)
    log_q = F.log_softmax(student_logits / temperature, dim=1)
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    divergence = log_p.exp() * (log_p - log_m) + log_q.exp() * (log_q - log_m)
    return reduced(1 - divergence.sum(1) / 2, reduction)


def adam_clip_(
    x: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    step: Tensor | float,
    lr: Tensor | float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    low: Tensor | None = None,
    high: Tensor | None = None,
    active: Tensor | None = None,
) -> Tensor:
    """One step of Adam on the active images of ``x`` and the clip of each channel to its range (Yin 2020, Eq. 16)."""
    beta1, beta2 = betas
    rows = slice(None) if active is None else active
    g, m, v = grad[rows].to(x.dtype), exp_avg[rows], exp_avg_sq[rows]
    m = beta1 * m + (1 - beta1) * g
    v = beta2 * v + (1 - beta2) * g * g
    new = x[rows] - lr * (m / (1 - beta1**step)) / ((v / (1 - beta2**step)).sqrt() + eps)
    per_channel = [1, -1] + [1] * (x.dim() - 2)
    if low is not None:
        new = torch.maximum(new, low.to(x.dtype).view(per_channel))
    if high is not None:
        new = torch.minimum(new, high.to(x.dtype).view(per_channel))
    x[rows], exp_avg[rows], exp_avg_sq[rows] = new, m, v
    return x


def dirichlet_targets(
    similarity: Tensor, classes: Tensor, betas: Tensor, generator: torch.Generator | None = None
) -> Tensor:
    """One Dirichlet(betas[n] * similarity[classes[n]]) draw a row (Nayak 2021, Alg. 1).

    A gamma variate of a small shape underflows, so its logarithm is drawn: log G(a) = log G(a + 1) + log(U) / a.
    """
    alpha = (betas[:, None] * similarity[classes]).double()
    log_gamma = torch._standard_gamma(alpha + 1, generator=generator).log()
    uniform = torch.rand(alpha.shape, generator=generator, dtype=alpha.dtype, device=alpha.device)
    return torch.softmax(log_gamma + torch.log1p(-uniform) / alpha, dim=1).to(similarity.dtype)


def lane_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None = None, padding: tuple[int, int] = (0, 0)) -> Tensor:
    """Convolution of stride 1 and one group."""
    return F.conv2d(x, weight, bias, padding=padding)


WINOGRAD = ((1 / 4, 0, 0), (-1 / 6, -1 / 6, -1 / 6), (-1 / 6, 1 / 6, -1 / 6), (1 / 24, 1 / 12, 1 / 6),
            (1 / 24, -1 / 12, 1 / 6), (0, 0, 1))  # fmt: skip


def winograd_weights(weight: Tensor) -> Tensor:
    """(K, C, 3, 3) to (K/32, 6, 6, C, 32) float32: G w Gᵀ (Lavin 2016, Eq. 12) in panels, K filled up with zeros."""
    rows = torch.tensor(WINOGRAD, dtype=torch.float64)
    both = torch.kron(rows, rows).to(weight.device, torch.float32)
    padded = F.pad(weight.float().flatten(2), (0, 0, 0, 0, 0, -len(weight) % 32))
    panels = padded.unflatten(0, (-1, 32)).permute(0, 3, 2, 1)  # (K/32, 9, C, 32)
    return (both @ panels.flatten(2)).unflatten(2, panels.shape[2:]).unflatten(1, (6, 6))


def winograd_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    padding: tuple[int, int] = (0, 0),
    panels: Tensor | None = None,
    adjoint_panels: Tensor | None = None,
) -> Tensor:
    """3×3 convolution of stride 1 and one group; the transformed weights are not read."""
    return F.conv2d(x, weight, bias, padding=padding)


def frozen_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
    **_prepared: object,
) -> Tensor:
    """Convolution with constant weights; how they are prepared plays no role."""
    return F.conv2d(x, weight, bias, stride, padding, dilation, groups)


def average_pool2d(x: Tensor, kernel: tuple[int, int]) -> Tensor:
    """Means of windows that do not overlap."""
    return F.avg_pool2d(x, kernel)
