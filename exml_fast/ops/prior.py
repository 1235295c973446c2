"""Natural-image priors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from exml_fast.ops._autograd import Derivative, once_differentiable
from exml_fast.ops._fake import accumulator, fake
from exml_fast.ops._registration import define, kernels


def image_prior(
    x: Tensor, kernel_size: int = 3, sigma: float = 1.0, per_image: bool = False
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Total variation, blur residual and l2 norm of images, all in one pass (Yin 2020, Eq. 3 and B.1; Carta 2022, 4.1).

    With d₁ … d₄ the differences between ``x`` and itself shifted by one pixel (horizontally, vertically, along the two
    diagonals) and G the Gaussian blur with reflected borders:

    - ``tv_l1`` = Σᵢ mean|dᵢ|
    - ``tv_l2`` = Σᵢ ‖dᵢ‖_F
    - ``blur`` = ‖x − G(x)‖_F
    - ``l2`` = ‖x‖_F

    Norms and means are over the whole batch, or over each image with ``per_image``. Carta 2022 uses
    squared norms, which follow from the results: Σₙ‖xₙ‖² = ``l2 ** 2``. Differentiable once. A norm's gradient at zero
    is zero.

    Args:
        x: (N, C, H, W), float32, bfloat16 or float64; contiguous and channels_last are read in place.
        kernel_size: odd, 1 to 15, of the blur.
        sigma: standard deviation of the blur in pixels.

    Returns:
        ``tv_l1, tv_l2, blur, l2``: scalars, or (N,) with ``per_image``; float32 (float64 for float64 ``x``).

    Raises:
        ValueError: naming the argument, for a wrong rank, dtype or kernel size, an empty batch, or images with fewer
            than 2 or ``kernel_size // 2 + 1`` pixels a side.
    """
    tv_l1, tv_l2, blur, l2 = _call(x, kernel_size, sigma, per_image).unbind(0)
    return tv_l1, tv_l2, blur, l2


class _ImagePrior(Derivative):
    op = "image_prior"

    @staticmethod
    def forward(ctx: Any, x: Tensor, kernel_size: int, sigma: float, per_image: bool) -> Tensor:
        losses, sums = kernels._image_prior_forward(x, kernel_size, sigma, per_image)
        ctx.save_for_backward(x, sums)
        ctx.settings = kernel_size, sigma, per_image
        return losses

    @staticmethod
    def backward(ctx: Any, grads: Tensor) -> tuple[Tensor | None, ...]:
        x, sums = ctx.saved_tensors
        backward = kernels._image_prior_backward
        of_x = once_differentiable("image_prior", (grads, x), lambda: backward(grads, x, sums, *ctx.settings))
        return of_x, None, None, None


def _image_prior(x: Tensor, kernel_size: int = 3, sigma: float = 1.0, per_image: bool = False) -> Tensor:
    losses: Tensor = _ImagePrior.apply(x, kernel_size, sigma, per_image)
    return losses


_call = define("image_prior", _image_prior)


@fake("_image_prior_forward")
def _(x: Tensor, kernel_size: int, sigma: float, per_image: bool) -> tuple[Tensor, Tensor]:
    losses = x.new_empty((4, x.shape[0]) if per_image else (4,), dtype=accumulator(x))
    return losses, x.new_empty((x.shape[0] if per_image else 1, 10), dtype=torch.float64)


@fake("_image_prior_backward")
def _(grads: Tensor, x: Tensor, sums: Tensor, kernel_size: int, sigma: float, per_image: bool) -> Tensor:
    return torch.empty_like(x)
