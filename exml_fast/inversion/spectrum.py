"""Steps on images as natural images vary: long waves more than short ones, the colours of a pixel together."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["NaturalSpectrum"]


class NaturalSpectrum:
    """A symmetric linear map P that turns white noise into noise with the second-order statistics of natural images.

    Adam works on z where the image is P z. All coordinates of z are of one size, as Adam takes them to be, so that a
    step is a natural image and not pixel noise (Olah 2017, "Feature Visualization", on preconditioning; Field 1987 on
    the spectrum). That changes no optimum, but which one is found; with a clip, which is of the images, it also shifts
    the optima at the bounds. P keeps the variance of white noise.

    Args:
        exponent: γ of the amplitudes f^−γ of waves of frequency f, 0 (all alike) to 4; about 1 for natural images.
        correlation: of the channels of a pixel, in [0, 1); 0: none.
        shape: (C, H, W) of the images.
        device: where they are.
    """

    def __init__(
        self, exponent: float, correlation: float, shape: tuple[int, int, int], device: torch.device | str = "cpu"
    ) -> None:
        channels, height, width = shape
        frequency = torch.hypot(torch.fft.fftfreq(height)[:, None], torch.fft.fftfreq(width)[None])
        frequency = frequency.clamp_min(1 / max(height, width))  # the mean as the longest wave
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
