"""Fast versions of two names of the published DeepInversion code. A script that uses them only changes its import::

    from exml_fast.compat.deep_inversion import DeepInversionFeatureHook, get_image_prior_losses

The rest of the script stays as it is.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from exml_fast import ops
from exml_fast.engine.statistics import match_running

__all__ = ["DeepInversionFeatureHook", "get_image_prior_losses"]


class DeepInversionFeatureHook:
    """Forward hook that compares the input of a BatchNorm layer with its running statistics (Yin 2020, Eq. 4).

    After each forward pass :attr:`r_feature` is ‖running_var − v‖₂ + ‖running_mean − m‖₂, where m and v are the mean
    and the biased variance of each channel of the input. In training mode the running statistics are those after the
    pass. :class:`exml_fast.BNStatistics` does the same for all layers of a network.

    Args:
        module: BatchNorm1d, 2d, 3d, SyncBatchNorm, or any module with ``running_mean`` and ``running_var`` (C,) whose
            first input is (N, C, ...) of rank 2 to 5, in any memory format.

    Raises:
        ValueError: for a module without running statistics.
    """

    def __init__(self, module: nn.Module) -> None:
        for name in ("running_mean", "running_var"):
            if not isinstance(getattr(module, name, None), Tensor):
                raise ValueError(
                    f"module must have running statistics, {type(module).__name__} has no {name}: register hooks only "
                    "on BatchNorm layers with track_running_stats=True"
                )
        self._r_feature: Tensor | None = None
        self.hook = module.register_forward_hook(self._match, with_kwargs=True)

    @property
    def r_feature(self) -> Tensor:
        """The distance in the last forward pass, a scalar with gradient. RuntimeError before the first pass."""
        if self._r_feature is None:
            raise RuntimeError("r_feature is not available before the first forward pass of the network")
        return self._r_feature

    def __deepcopy__(self, memo: dict[int, Any]) -> DeepInversionFeatureHook:
        """A copy without a value, as a tensor of the graph cannot be copied."""
        other = copy.copy(self)
        other._r_feature = None
        return other

    def close(self) -> None:
        """Remove the hook from the module."""
        self.hook.remove()

    def _match(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        self._r_feature = match_running(args[0] if args else next(iter(kwargs.values())), module)


def get_image_prior_losses(inputs_jit: Tensor) -> tuple[Tensor, Tensor]:
    """Total variation of a batch of images, as in the published code (Yin 2020, Eq. 3 and B.1).

    d₁ … d₄ below are the differences between neighbouring pixels: horizontal, vertical and along both diagonals.

    Args:
        inputs_jit: (N, C, H, W), floating point, H and W at least 2.

    Returns:
        ``loss_var_l1`` = Σᵢ mean|dᵢ| and ``loss_var_l2`` = Σᵢ ‖dᵢ‖_F over the whole batch: scalars, float32 (float64
        for float64 images), with gradients.

    Raises:
        ValueError: for another rank or dtype, or smaller images.
    """
    x = inputs_jit.float() if inputs_jit.dtype == torch.float16 else inputs_jit
    loss_var_l1, loss_var_l2, _, _ = ops.image_prior(x, kernel_size=1)
    return loss_var_l1, loss_var_l2
