"""A quantised network and its file."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from exml_fast.data import InputSpec
from exml_fast.models import create
from exml_fast.storage import PathLike, atomic_folder, load_json, load_tensors, save_json, save_tensors
from exml_fast.training import TrainingResult
from exml_fast.transfer.graph import compiled
from exml_fast.transfer.quantization.learned import FakeQuantized, with_fake_quantized, with_fixed
from exml_fast.transfer.quantization.static import activation_ranges, converted, prepared, set_activation_ranges
from exml_fast.validation import require

__all__ = ["QuantizeResult", "load_quantized"]

TENSORS, CARD = "model.safetensors", "card.json"
ZERO_POINTS = "_zero_point_"


@dataclass(repr=False)
class QuantizeResult(TrainingResult):
    """What :func:`quantize` returns; ``history`` is that of the fine-tuning, with 4 bits.

    Attributes:
        model: with 8 bits the graph of torch.export with torchao's quantised operations, which :meth:`compiled` runs
            in int8; with 4 bits the network with rounded layers, which computes in float32.
        bits: 8 or 4.
        spec: the input.
        widths: bits of each quantised layer.
        float_layers: layers that stayed float32.
        sensitivity: KL(float ‖ quantised) on the images when a layer alone is quantised, by layer.
        float_bytes: of the tensors of the float network.
        settings: how it was made, as JSON values.
    """

    bits: int = 8
    spec: InputSpec | None = None
    widths: dict[str, int] = field(default_factory=dict)
    float_layers: list[str] = field(default_factory=list)
    sensitivity: dict[str, float] = field(default_factory=dict)
    float_bytes: int = 0
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors that :meth:`save` writes."""
        return sum(tensor.nbytes for tensor in self.tensors().values())

    def compiled(self) -> Callable[[Tensor], Tensor]:
        """See :func:`compiled`. 4 bits run in float32."""
        return compiled(with_fixed(copy.deepcopy(self.model)) if self.bits == 4 else self.model)

    def tensors(self) -> dict[str, Tensor]:
        """The tensors of the file by name: weights as integers, two in a byte with 4 bits, and their scales."""
        if self.bits == 8:
            # The zero points of symmetric ranges are 0.
            state: dict[str, Tensor] = self.model.state_dict()
            return {name: tensor for name, tensor in state.items() if ZERO_POINTS not in name}
        found = dict[str, Tensor]()
        rounded = {name: module for name, module in self.model.named_modules() if isinstance(module, FakeQuantized)}
        for name, tensor in self.model.state_dict().items():
            if not any(name.startswith(f"{layer}.") for layer in rounded):
                found[name] = tensor
        for name, module in rounded.items():
            codes = module.codes()
            found[f"{name}.weight"] = _packed(codes) if module.bits == 4 else codes
            found[f"{name}.scale"] = module.of_weight.scale.detach()
            found[f"{name}.input"] = torch.cat([module.of_input.scale.detach(), module.of_input.zero_point.detach()])
            if module.layer.bias is not None:
                found[f"{name}.bias"] = module.layer.bias.detach()
        return found

    def card(self) -> dict[str, Any]:
        """What the network is and how it was made, as JSON values."""
        assert self.spec is not None
        graph = self.model if isinstance(self.model, torch.fx.GraphModule) else None  # of 8 bits
        return {
            "bits": self.bits, "widths": self.widths, "float_layers": self.float_layers,
            "sensitivity": self.sensitivity, "bytes": self.nbytes, "float_bytes": self.float_bytes,
            "activations": [] if graph is None else activation_ranges(graph),
            "input_spec": self.spec.to_dict(), "settings": self.settings, "seconds": self.seconds,
        }  # fmt: skip

    def save(
        self,
        folder: PathLike,
        *,
        architecture: str | None = None,
        arguments: Mapping[str, Any] | None = None,
        overwrite: bool = False,
    ) -> None:
        """Write ``model.safetensors`` and ``card.json`` for :func:`load_quantized`.

        Args:
            folder: must not exist, unless ``overwrite`` is set.
            architecture, arguments: of the float network, for :func:`exml_fast.models.create`. Without them
                :func:`load_quantized` must be given such a network.
        """
        made = {"architecture": architecture, "arguments": dict(arguments or {})}
        with atomic_folder(folder, overwrite) as temporary:
            save_tensors(temporary / TENSORS, self.tensors())
            save_json(temporary / CARD, {**self.card(), **made})


def load_quantized(folder: PathLike, model: nn.Module | None = None) -> nn.Module:
    """The network that :meth:`QuantizeResult.save` wrote, in evaluation mode; no code is run from the files.

    The float network is exported and converted again, and then takes the stored tensors and ranges. One that was made
    with activations of 8 bits can lose accuracy, compiled, on a processor without VNNI, whose sums saturate.

    Args:
        folder: with model.safetensors and card.json.
        model: a float network of the same architecture, whose weights do not matter; needed if the card names no
            architecture. It is not changed.

    Raises:
        FileNotFoundError, ValueError: for files that are missing, damaged, or of another network.
    """
    where = f"{folder}"
    card, tensors = load_json(f"{where}/{CARD}"), load_tensors(f"{where}/{TENSORS}")
    if model is None:
        require(card["architecture"] is not None, "model", f"a network, as the card in {where} names none", None)
        model = create(card["architecture"], **card["arguments"])
    spec = InputSpec.from_dict(card["input_spec"])
    try:
        return (_static if card["bits"] == 8 else _learned)(model, spec, card, tensors)
    except (RuntimeError, KeyError, AttributeError) as error:
        raise ValueError(f"{where} does not fit {type(model).__name__}: {str(error).splitlines()[0][:200]}") from error


def _static(model: nn.Module, spec: InputSpec, card: dict[str, Any], tensors: dict[str, Tensor]) -> nn.Module:
    graph = prepared(copy.deepcopy(model).cpu().eval(), spec, card["float_layers"])
    with torch.no_grad():
        graph(torch.rand(2, *spec.shape))  # any ranges
    graph = converted(graph)
    set_activation_ranges(graph, card["activations"])
    zeros = {name: torch.zeros_like(value) for name, value in graph.state_dict().items() if ZERO_POINTS in name}
    graph.load_state_dict({**tensors, **zeros})
    return graph


def _learned(model: nn.Module, spec: InputSpec, card: dict[str, Any], tensors: dict[str, Tensor]) -> nn.Module:

    made = with_fake_quantized(copy.deepcopy(model).cpu(), card["widths"])
    state, rounded = made.state_dict(), set[str]()
    for name in card["widths"]:
        layer: Any = made.get_submodule(name)
        codes, scale = tensors[f"{name}.weight"], tensors[f"{name}.scale"]
        shape = layer.layer.weight.shape
        codes = _unpacked(codes, shape) if layer.bits == 4 else codes
        values = {
            "layer.weight": codes.float() * scale.view(-1, *[1] * (len(shape) - 1)), "of_weight.scale": scale,
            "of_input.scale": tensors[f"{name}.input"][:1], "of_input.zero_point": tensors[f"{name}.input"][1:],
        }  # fmt: skip
        if layer.layer.bias is not None:
            values["layer.bias"] = tensors[f"{name}.bias"]
        state |= {f"{name}.{key}": value for key, value in values.items()}
        rounded.add(f"{name}.")
    kept = {key: value for key, value in tensors.items() if not any(key.startswith(name) for name in rounded)}
    made.load_state_dict(state | kept)
    return made.eval()


def _packed(codes: Tensor) -> Tensor:
    """Codes in [−8, 7], two in a byte: uint8 (⌈n / 2⌉,)."""
    flat = (codes.flatten() + 8).to(torch.uint8)
    if len(flat) % 2:
        flat = torch.cat([flat, flat.new_zeros(1)])
    return flat[::2] | (flat[1::2] << 4)


def _unpacked(packed: Tensor, shape: torch.Size) -> Tensor:
    """The inverse of :func:`_packed`, int8 of this shape."""
    flat = torch.stack([packed & 15, packed >> 4], 1).flatten()[: shape.numel()]
    return (flat.to(torch.int8) - 8).view(shape)
