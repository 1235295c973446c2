"""How a network is quantised."""

from __future__ import annotations

from typing import Any, Literal

from exml_fast.training import Training
from exml_fast.validation import (
    Count,
    Flat,
    Natural,
    NonNegative,
    Positive,
    require,
    settings,
    to_dict,
    with_flat_changes,
)

__all__ = ["Quantization"]

TRAINING = Training(steps=500, batch_size=128, optimizer="sgd", lr=1e-3, momentum=0.9, schedule="cosine")


@settings
class Quantization:
    """Settings of :func:`quantize`.

    Attributes:
        bits: 8, with ranges from the images alone; or 4, of weights and activations, where the network then learns
            from the float network.
        calibration: images that give the ranges; all where there are fewer. With ``bits`` 4 at most a batch.
        sensitivity: images on which the sensitivity of each layer is measured; 0 for none.
        float_layers: the most sensitive layers stay float32: their number, or below 1 their share.
        learn: with ``bits`` 4, whether the network learns; without, only its ranges are set.
        edges: bits of the first and the last layer, with ``bits`` 4.
        ranges: with ``bits`` 4 "learned" (Esser 2020), or "fixed" to those of the calibration images.
        batch_norm: with ``bits`` 4: running statistics are "kept", or follow the "images".
        temperature: with ``bits`` 4, of the divergence from the float network.
        training: with ``bits`` 4. Its ``batch_size`` is also that of the calibration.
    """

    bits: Literal[4, 8] = 8
    calibration: Count = 512
    sensitivity: Natural = 128
    float_layers: NonNegative = 0.0
    learn: bool = True
    edges: Literal[4, 8] = 8
    ranges: Literal["learned", "fixed"] = "learned"
    batch_norm: Literal["kept", "images"] = "kept"
    temperature: Positive = 4.0
    training: Flat[Training] = TRAINING

    def check(self) -> None:
        """ValueError for float layers that cannot be counted or chosen, or a precision that cannot be rounded."""
        whole = self.float_layers < 1 or self.float_layers.is_integer()
        require(whole, "float_layers", "a number of layers, or a share below 1", self.float_layers)
        measured = self.sensitivity > 0 or not self.float_layers
        require(measured, "sensitivity", "positive where layers stay float32, as it chooses them", self.sensitivity)
        exact = self.training.precision == "float32"
        require(exact, "precision", "'float32': rounded layers learn in float32", self.training.precision)

    def replace(self, **changes: Any) -> Quantization:
        """A copy with some fields changed, those of ``training`` by their own names; ValueError for an unknown one."""
        return with_flat_changes(self, changes)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; ``Quantization(**value)`` is the inverse."""
        return to_dict(self)
