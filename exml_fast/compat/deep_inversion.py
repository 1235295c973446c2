"""For scripts written after the published DeepInversion: change the import, keep the rest.

from exml_fast.compat.deep_inversion import DeepInversionFeatureHook, get_image_prior_losses
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
    """Forward hook by which a BatchNorm layer compares its input with its running statistics (Yin 2020, Eq. 4).

    After each forward pass :attr:`r_feature` = ‖running_var − v‖₂ + ‖running_mean − m‖₂ with m, v the mean and biased
    variance of each channel of the layer's input. In training mode the running statistics are those after the pass.
    :class:`exml_fast.BNStatistics` does this for all layers of a network.

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
                    f"module must keep running statistics, {type(module).__name__} has no {name}: register hooks on "
                    "BatchNorm layers with track_running_stats=True only"
                )
        self._r_feature: Tensor | None = None
        self.hook = module.register_forward_hook(self._match, with_kwargs=True)

    @property
    def r_feature(self) -> Tensor:
        """Distance of the last forward pass, a scalar attached to the graph. RuntimeError before the first."""
        if self._r_feature is None:
            raise RuntimeError("r_feature is there after a forward pass of the network, and none was made yet")
        return self._r_feature

    def __deepcopy__(self, memo: dict[int, Any]) -> DeepInversionFeatureHook:
        """For copies of a network with hooks: one that holds no value of an earlier pass."""
        other = copy.copy(self)
        other._r_feature = None
        return other

    def close(self) -> None:
        """Remove the hook from the module."""
        self.hook.remove()

    def _match(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        self._r_feature = match_running(args[0] if args else next(iter(kwargs.values())), module)


def get_image_prior_losses(inputs_jit: Tensor) -> tuple[Tensor, Tensor]:
    """Total variation of a batch of images (Yin 2020, Eq. 3 and B.1), as published.

    With d₁ … d₄ the differences between neighbouring pixels: horizontal, vertical and along both diagonals.

    Args:
        inputs_jit: (N, C, H, W), floating point, H and W at least 2.

    Returns:
        ``loss_var_l1`` = Σᵢ mean|dᵢ| and ``loss_var_l2`` = Σᵢ ‖dᵢ‖_F over the whole batch: scalars, float32 (float64
        for float64 images), attached to the graph.

    Raises:
        ValueError: for another rank or dtype, or smaller images.
    """
    x = inputs_jit.float() if inputs_jit.dtype == torch.float16 else inputs_jit
    loss_var_l1, loss_var_l2, _, _ = ops.image_prior(x, kernel_size=1)
    return loss_var_l1, loss_var_l2
