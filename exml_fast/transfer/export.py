"""Networks that were made smaller, for other programs."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from exml_fast.data import InputSpec
from exml_fast.models import resize_layers
from exml_fast.storage import PathLike, atomic_path, load_checkpoint, save_checkpoint
from exml_fast.transfer.graph import exported, quiet
from exml_fast.transfer.pruning import PruneResult
from exml_fast.transfer.quantization import QuantizeResult
from exml_fast.transfer.quantization.learned import with_fixed
from exml_fast.validation import require

__all__ = ["export", "load_pruned"]

SUFFIXES = (".pt", ".pt2", ".onnx")
# torch writes the weights into files of their own above this.
ONNX_LIMIT = 1536 * 2**20


def export(result: PruneResult | QuantizeResult | nn.Module, path: PathLike, *, spec: Any = None) -> None:
    """Write a network into one file, for any number of images. The suffix of ``path`` decides the format.

    - ``.pt``: tensors, and how the network was made; ``torch.load`` reads it with ``weights_only=True``. Of a pruned
      network see :func:`load_pruned`; of a quantised one also the card of its folder.
    - ``.pt2``: a program of torch.export, which ``torch.export.load`` reads without the code of the network.
    - ``.onnx``: ONNX, with the packages onnx and onnxscript.

    Args:
        result: of :func:`exml_fast.prune` or :func:`exml_fast.quantize`; for ``.pt2`` and ``.onnx`` any network.
        path: of the file, which is replaced if it exists.
        spec: the network's input; needed for ``.pt2`` and ``.onnx`` unless the result knows it.

    Raises:
        ImportError: naming the packages for ONNX that are missing.
        ValueError: naming the argument; for a network that cannot be exported.
    """
    path = Path(path)
    require(path.suffix in SUFFIXES, "path", f"a file with the suffix {', '.join(SUFFIXES)}", str(path))
    if path.suffix == ".pt":
        save_checkpoint(path, _described(result))
        return
    model = result if isinstance(result, nn.Module) else result.model
    spec = getattr(result, "spec", None) if spec is None else spec
    require(spec is not None, "spec", f"the network's input, for {path.suffix} files", spec)
    if path.suffix == ".onnx":
        size = sum(tensor.nbytes for tensor in model.state_dict().values())
        if size > ONNX_LIMIT:
            raise ValueError(
                f"an .onnx file holds at most {ONNX_LIMIT} bytes of weights, got {size}; write a .pt2 file"
            )
        missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
        if missing:
            raise ImportError(f"ONNX files need {' and '.join(missing)}: pip install {' '.join(missing)}")
    model = with_fixed(copy.deepcopy(model).cpu())
    model.eval()
    program = exported(model, torch.zeros(2, *InputSpec.of(spec).shape), any_number=True)
    with quiet(), atomic_path(path) as temporary:
        if path.suffix == ".pt2":
            torch.export.save(program, temporary)
        else:
            torch.onnx.export(program, f=temporary, dynamo=True, verbose=False, external_data=False)


def load_pruned(path: PathLike, model: nn.Module) -> nn.Module:
    """The pruned network of a ``.pt`` file, in evaluation mode; no code is run from the file.

    Args:
        path: written by :func:`export`.
        model: a network of the architecture before pruning, whose weights do not matter. It is not changed.

    Raises:
        FileNotFoundError, ValueError: for a file that is missing, damaged, or of another network.
    """
    saved = load_checkpoint(path)
    if not isinstance(saved, Mapping) or saved.get("kind") != "pruned":
        raise ValueError(f"{path} holds no pruned network")
    try:
        made = resize_layers(copy.deepcopy(model).cpu(), saved["widths"])
        made.load_state_dict(saved["state"])
    except RuntimeError as error:
        raise ValueError(f"{path} does not fit {type(model).__name__}: {str(error)[:200]}") from error
    return made.eval()


def _described(result: Any) -> dict[str, Any]:
    if isinstance(result, PruneResult):
        state = {name: value.detach().cpu() for name, value in result.model.state_dict().items()}
        return {
            "kind": "pruned", "state": state, "widths": result.widths, "rounds": result.rounds, "fixed": result.fixed,
            "history": result.history, "seconds": result.seconds,
        }  # fmt: skip
    if isinstance(result, QuantizeResult):
        tensors = {name: value.detach().cpu() for name, value in result.tensors().items()}
        return {"kind": "quantized", "tensors": tensors, "card": result.card(), "history": result.history}
    raise ValueError(f"result must be of prune or quantize for a .pt file, got {type(result).__name__}")
