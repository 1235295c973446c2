"""A preconditioner with the statistics of natural images: strong long waves, and correlated colours."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["NaturalSpectrum"]


class NaturalSpectrum:
    """A symmetric linear map P that turns white noise into noise with the second-order statistics of natural images.

    The image is P z, and Adam works on z. Adam takes equal steps in all coordinates of z, so a step on the image looks
    like a natural image and not like pixel noise (Olah 2017, "Feature Visualization", on preconditioning; Field 1987 on
    the spectrum). P does not change the optima, but it changes which optimum is found. With a clip of the images it
    also shifts optima at the bounds. P keeps the variance of white noise.

    Args:
        exponent: γ in the amplitudes f^−γ of waves of frequency f, from 0 (equal amplitudes) to 4; about 1 for natural
            images.
        correlation: of the channels of a pixel, in [0, 1).
        shape: (C, H, W) of the images.
        device: of the images.
    """

    def __init__(
        self, exponent: float, correlation: float, shape: tuple[int, int, int], device: torch.device | str = "cpu"
    ) -> None:
        channels, height, width = shape
        frequency = torch.hypot(torch.fft.fftfreq(height)[:, None], torch.fft.fftfreq(width)[None])
        frequency = frequency.clamp_min(1 / max(height, width))  # the mean counts as the longest wave
        amplitude = frequency**-exponent
        amplitude = amplitude / amplitude.square().mean().sqrt()
        self.amplitude = amplitude[:, : width // 2 + 1].to(device)
        # The root of (1 − c) I + c 11ᵀ, which has the eigenvalues 1 − c + c C (along 1) and 1 − c.
        along, across = (1 - correlation + correlation * channels) ** 0.5, (1 - correlation) ** 0.5
        self.mixing = (across * torch.eye(channels) + (along - across) / channels).to(device)

    def __call__(self, x: Tensor) -> Tensor:
        """P x for ``x`` (N, C, H, W) float32: a new contiguous tensor."""
        waves = torch.fft.irfft2(torch.fft.rfft2(x) * self.amplitude, s=x.shape[-2:])
        return torch.matmul(self.mixing, waves.flatten(2)).view(x.shape)
