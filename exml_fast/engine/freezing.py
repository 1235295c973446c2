"""Freeze a classifier, or a copy of it, and check what it takes and returns."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from exml_fast.data import InputSpec
from exml_fast.engine.statistics import require_module
from exml_fast.validation import named

__all__ = [
    "chosen_device",
    "device_of",
    "distinct_units",
    "dtype_name",
    "dtype_of",
    "frozen",
    "frozen_copy",
    "is_untouched",
    "no_autocast",
    "probe",
    "unpacked",
]

# Greatest side of the images with which a network is tried that rejects smaller ones.
LARGEST_TRIED = 512
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def unpacked(
    given: Any, units: Sequence[int] | None = None, classes: Sequence[int | str] | None = None
) -> tuple[Any, Sequence[int] | None, Sequence[Any] | None]:
    """The network of an object that has one as ``.model`` (an Expert), and the object's units and classes where None.

    Names of the object's classes become their ids. Anything else is returned as it is.
    """
    if isinstance(given, nn.Module) or not isinstance(getattr(given, "model", None), nn.Module):
        return given, units, classes
    units = getattr(given, "units", None) if units is None else units
    classes = getattr(given, "classes", None) if classes is None else classes
    return given.model, units, _ids_of(classes, getattr(given, "card", None))


def _ids_of(classes: Sequence[int | str] | None, card: Any) -> Sequence[Any] | None:
    """``classes`` with the ids of those that are names of the card's classes."""
    if not isinstance(classes, list | tuple) or not any(isinstance(each, str) for each in classes) or card is None:
        return classes
    ids = dict(zip(card.class_names, card.units, strict=True))
    return [named("classes", each, ids) if isinstance(each, str) else each for each in classes]


def distinct_units(units: Sequence[int] | None, outputs: int) -> tuple[int, ...]:
    """The class id of each of the ``outputs`` logits; 0, 1, … when None. ValueError unless they are distinct."""
    found = tuple(range(outputs)) if units is None else tuple(int(unit) for unit in units)
    if len(found) != outputs or len(set(found)) != outputs:
        raise ValueError(f"units must be {outputs} distinct class ids, one a logit, got {found}")
    return found


def frozen_copy(model: nn.Module, device: torch.device | str | None) -> nn.Module:
    """A copy on ``device``, in evaluation mode, whose parameters need no gradient.

    A float16 network becomes float32, because sums over an image exceed the range of float16. For a network that
    torch.compile returned, the original network is copied.

    Raises:
        ValueError: if the network is in TorchScript or cannot be copied.
    """
    model = getattr(model, "_orig_mod", model)
    require_module(model)
    try:
        made = copy.deepcopy(model).to(device).eval().requires_grad_(False)
        half = any(tensor.dtype == torch.float16 for tensor in (*made.parameters(), *made.buffers()))
        return made.float() if half else made
    except RuntimeError as error:
        raise ValueError(
            f"{type(model).__name__} cannot be copied: {error}. Remove what holds tensors of a graph first: hooks, "
            "pruning (torch.nn.utils.prune.remove), parametrizations"
        ) from error


@contextmanager
def frozen(model: nn.Module, device: torch.device | str | None = None) -> Iterator[nn.Module]:
    """Inside the block ``model`` is on ``device``, in evaluation mode, and its parameters need no gradient.

    Gradients of inputs are enabled, also inside ``torch.no_grad`` and ``torch.inference_mode``. The end of the block
    restores every module's training flag, every parameter's requires_grad and the device, also after an exception.
    """
    training = [(module, module.training) for module in model.modules()]
    required = [(p, p.requires_grad) for p in model.parameters()]
    home = device_of(model)
    away = device is not None and torch.device(device) != home
    try:
        if away:
            model.to(device)
        model.eval()
        for parameter, _ in required:
            parameter.requires_grad_(False)
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.enable_grad())
            yield model
    finally:
        for module, mode in training:
            module.training = mode
        for parameter, flag in required:
            parameter.requires_grad_(flag)
        if away:
            model.to(home)


def is_untouched(module: nn.Module) -> bool:
    """Whether a call of ``module`` runs only the code of its class: it has no hooks and no methods of its own."""
    return not (
        any(getattr(module, hooks) for hooks in HOOKS) or {"forward", "_conv_forward"}.intersection(vars(module))
    )


def device_of(model: nn.Module) -> torch.device:
    """The device of the first parameter or buffer; the CPU if there is none."""
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")


def chosen_device(device: torch.device | str | None, model: nn.Module | None = None) -> torch.device:
    """``device``, or that of ``model`` when None.

    ValueError for a text that names no device, and for a CUDA device that is not there; it says why.
    """
    if device is None:
        return torch.device("cpu") if model is None else device_of(model)
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device must be 'cpu', 'cuda' or 'cuda:<n>', got {device!r}") from error
    if found.type == "cuda":
        count = torch.cuda.device_count()
        if torch.version.cuda is None:
            raise ValueError(f"device {str(found)!r}: PyTorch {torch.__version__} here has no CUDA; give 'cpu'")
        if count == 0:
            raise ValueError(f"device {str(found)!r}: no CUDA GPU is found here (nvidia-smi shows what is); give 'cpu'")
        if (found.index or 0) >= count:
            raise ValueError(f"device {str(found)!r}: only {count} CUDA GPUs are here, 'cuda:0' to 'cuda:{count - 1}'")
    return found


def dtype_of(model: nn.Module) -> torch.dtype:
    """The dtype of the first floating-point parameter; float32 if there is none."""
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)


def dtype_name(dtype: torch.dtype) -> str:
    """As "float32"."""
    return str(dtype).removeprefix("torch.")


def no_autocast(device_type: str) -> AbstractContextManager[object]:
    """Inside the block the caller's autocast changes no dtype."""
    on = torch.is_autocast_enabled(device_type)
    return torch.autocast(device_type, enabled=False) if on else nullcontext()


def probe(model: nn.Module, images: Tensor, spec: InputSpec, gradient: bool = False) -> Tensor:
    """The logits (N, K) of normalised ``images`` (N, C, H, W), attached to the graph with ``gradient``.

    Raises:
        ValueError: if the network rejects images of the specification's shape, or does not return
            floating-point logits (N, K).
    """
    try:
        with torch.set_grad_enabled(gradient):
            output = model(images)
    except (RuntimeError, ValueError, IndexError, AssertionError) as error:
        if enough := _larger_size(model, images):
            raise ValueError(
                f"images {spec.size[0]}×{spec.size[1]} are too small for {type(model).__name__}, which takes them from "
                f"about {enough[0]}×{enough[1]}: give a spec of that size"
            ) from error
        raise ValueError(
            f"{type(model).__name__} rejects images of shape {tuple(images.shape)}, which spec = {spec} says it takes: "
            f"{' '.join(str(error).split())}"
        ) from error
    rule = f"{type(model).__name__} must return logits, a floating-point tensor (N, classes)"
    if not isinstance(output, Tensor):
        raise ValueError(f"{rule}, got {type(output).__name__}; wrap it in a module that returns its logits alone")
    if output.dim() != 2 or len(output) != len(images) or not output.is_floating_point():
        raise ValueError(f"{rule}, got {output.dtype} {tuple(output.shape)} for {len(images)} images")
    return output


def _larger_size(model: nn.Module, images: Tensor) -> tuple[int, int] | None:
    """The first of 2, 4, … times the size of ``images``, up to 512 pixels, that the network takes; None if none is."""
    height, width = images.shape[-2:]
    while max(height, width) <= LARGEST_TRIED // 2:
        height, width = 2 * height, 2 * width
        try:
            with torch.no_grad():
                model(images.new_zeros(*images.shape[:-2], height, width))
            return height, width
        except Exception:  # the network's own code may raise anything
            continue
    return None
