"""Layers whose weights and inputs are rounded while the network learns (Esser 2020), by torchao's quantizers."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from exml_fast.transfer.quantization.static import torchao

__all__ = ["FakeQuantized", "fit_ranges", "layer_names", "with_fake_quantized", "with_fixed"]

# Shares of the range from the least to the largest value, of which the one with the least squared error is taken.
SHARES = 20


class FakeQuantized(nn.Module):
    """A convolution or linear layer whose weight and input are rounded to ``bits``. Gradients pass the rounding.

    Weights have a symmetric range for each output channel, inputs one range with a zero point.
    """

    def __init__(self, layer: nn.Conv2d | nn.Linear, bits: int) -> None:
        super().__init__()
        pt2e, half = torchao(), 2 ** (bits - 1)
        self.layer, self.bits = layer, bits
        self.of_weight = pt2e.LearnableFakeQuantize(
            pt2e.PerChannelMinMaxObserver, quant_min=-half, quant_max=half - 1, use_grad_scaling=True,
            dtype=torch.int8, qscheme=torch.per_channel_symmetric, ch_axis=0,
        )  # fmt: skip
        self.of_input = pt2e.LearnableFakeQuantize(
            pt2e.MinMaxObserver, quant_min=0, quant_max=2 * half - 1, use_grad_scaling=True, dtype=torch.uint8,
            qscheme=torch.per_tensor_affine,
        )  # fmt: skip
        self.fitting = False
        with torch.no_grad():  # creates the parameters
            self.of_weight(layer.weight), self.of_input(layer.weight.new_zeros(1))
        for quantizer in (self.of_weight, self.of_input):
            quantizer.disable_observer()

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output of ``x``."""
        if self.fitting:
            self._fit(x)
        x, weight = self.of_input(x), self.of_weight(self.layer.weight)
        if isinstance(self.layer, nn.Conv2d):
            return self.layer._conv_forward(x, weight, self.layer.bias)
        return F.linear(x, weight, self.layer.bias)

    def switch(self, on: bool) -> None:
        """Round weights and inputs, or leave them as they are."""
        self.of_weight.enable_fake_quant(on)
        self.of_input.enable_fake_quant(on)

    def learn_ranges(self, learned: bool) -> None:
        """Whether training changes the ranges."""
        for quantizer in (self.of_weight, self.of_input):
            quantizer.enable_range_learning() if learned else quantizer.disable_range_learning()

    def codes(self) -> Tensor:
        """The weights as int8 in [−2^(bits−1), 2^(bits−1) − 1]; times the scales they are what the layer computes."""
        weight, scale = self.layer.weight.detach(), self.of_weight.scale.detach()
        shape = (-1, *[1] * (weight.dim() - 1))
        low, high = self.of_weight.quant_min, self.of_weight.quant_max
        return (weight / scale.view(shape)).round().clamp(low, high).to(torch.int8)

    @torch.no_grad()
    def _fit(self, x: Tensor) -> None:
        """Ranges with the least squared error, of the weights and of this input."""
        weight = self.layer.weight.flatten(1)
        largest = weight.abs().amax(1, keepdim=True).clamp(min=1e-8)
        scale, _ = _least_error(weight, -largest, largest, self.of_weight.quant_min, self.of_weight.quant_max, True)
        self.of_weight.scale.copy_(scale[:, 0])
        x = x.reshape(1, -1)
        low, high = x.amin(1, keepdim=True).clamp(max=0), x.amax(1, keepdim=True).clamp(min=1e-8)
        scale, zero = _least_error(x, low, high, 0, self.of_input.quant_max, False)
        self.of_input.scale.copy_(scale[:, 0])
        self.of_input.zero_point.copy_(zero[:, 0])


class FixedQuantized(nn.Module):
    """What a :class:`FakeQuantized` layer computes, with rounded weights and no operations that
    torch.export does not know."""

    scale: Tensor

    def __init__(self, rounded: FakeQuantized) -> None:
        super().__init__()
        self.layer = copy.deepcopy(rounded.layer)
        with torch.no_grad():
            shape = (-1, *[1] * (self.layer.weight.dim() - 1))
            self.layer.weight.copy_(rounded.codes() * rounded.of_weight.scale.view(shape))
        self.last = rounded.of_input.quant_max
        self.register_buffer("scale", rounded.of_input.scale.detach().clone())
        self.zero = min(max(round(float(rounded.of_input.zero_point.detach())), 0), self.last)

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output of ``x``."""
        codes = (x * self.scale.reciprocal() + self.zero).round().clamp(0, self.last)
        return self.layer((codes - self.zero) * self.scale)


def with_fixed(model: nn.Module) -> nn.Module:
    """Replace the rounded layers of ``model`` in place by :class:`FixedQuantized` ones."""
    for name, module in list(model.named_modules()):
        if isinstance(module, FakeQuantized):
            model.set_submodule(name, FixedQuantized(module))
    return model


def _least_error(
    values: Tensor, low: Tensor, high: Tensor, first: int, last: int, symmetric: bool
) -> tuple[Tensor, Tensor]:
    """Scale and zero point (rows, 1) with which rounding ``values`` (rows, n) has the least squared error."""
    best = torch.full_like(low, torch.inf)
    scales, zeros = torch.ones_like(low), torch.zeros_like(low)
    for k in range(1, SHARES + 1):
        scale = (high - low) * k / SHARES / (last - first)
        zero = torch.zeros_like(scale) if symmetric else (first - low * k / SHARES / scale).round()
        rounded = ((values / scale).round() + zero).clamp(first, last).sub_(zero).mul_(scale)
        error = rounded.sub_(values).square_().mean(1, keepdim=True)
        better = error < best
        best = torch.where(better, error, best)
        scales, zeros = torch.where(better, scale, scales), torch.where(better, zero, zeros)
    return scales, zeros


def layer_names(model: nn.Module) -> list[str]:
    """The 2d convolutions and linear layers that can be rounded, in the order of the modules."""
    return [name for name, module in model.named_modules() if type(module) in (nn.Conv2d, nn.Linear)]


def with_fake_quantized(model: nn.Module, bits: dict[str, int]) -> nn.Module:
    """Replace the named layers of ``model`` in place."""
    for name, width in bits.items():
        layer: Any = model.get_submodule(name)
        model.set_submodule(name, FakeQuantized(layer, width))
    return model


@torch.no_grad()
def fit_ranges(model: nn.Module, images: Tensor) -> None:
    """Set the ranges of all rounded layers from their weights and their inputs in the float network."""
    layers = [module for module in model.modules() if isinstance(module, FakeQuantized)]
    for layer in layers:
        layer.switch(False)
        layer.fitting = True
    try:
        model(images)
    finally:
        for layer in layers:
            layer.switch(True)
            layer.fitting = False
