"""Networks as shapes only: built on the device "meta", within limits that a stranger's card cannot exceed."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as registration
from torch.overrides import TorchFunctionMode

from exml_fast.models.registry import create

__all__ = ["filled", "limited", "require_header", "require_modest", "skeleton"]

Header = Mapping[str, tuple[str, tuple[int, ...]]]
"""Dtype and shape of each tensor of a weights file, as :func:`exml_fast.storage.tensor_header` returns it."""

LARGEST = 2**17
"""Greatest absolute value of a number in the arguments."""
TOTAL = 2**18
"""Greatest sum of all integers in the arguments, because a constructor may make as many layers."""
WIDTHS = 2**22
"""Greatest sum of the widths of a pruned network, which makes no layers of them."""
VALUES = 20_000
"""Greatest number of values in the arguments: a pruned network lists the widths of all layers."""
CHARACTERS = 1000
"""Greatest length of a text in the arguments."""
TENSORS = 20_000
"""Greatest number of tensors in a weights file; the largest networks of timm have 3,000."""
SPARE_BYTES = 64 * 2**20
"""Memory that buffers which are not in the weights file may take beside its own size."""
# The architectures whose constructors compute with the values of torch.arange and torch.tensor.
COMPUTING = "torchvision/regnet_"
DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


def skeleton(architecture: str, arguments: Mapping[str, Any], tensors: int) -> nn.Module:
    """The network on "meta", where nothing is allocated, in evaluation mode.

    Args:
        architecture, arguments: for :func:`exml_fast.models.create`, from a card.
        tensors: number of tensors in the weights file. Construction stops where there are far more layers than that.

    Raises:
        ValueError: for arguments that :func:`require_modest` or the constructor refuses, a network of far more layers
            than ``tensors``, or a constructor that needs the values of tensors.
        ImportError: for a timm model if timm is missing.
    """
    require_modest(arguments, WIDTHS if architecture == "slimmed" else TOTAL)
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[]))
        stack.enter_context(limited(tensors))
        stack.enter_context(torch.device("meta"))
        if architecture.startswith(COMPUTING):
            stack.enter_context(_Computed())
        try:
            return create(architecture, **arguments).eval()
        except ValueError as error:
            if "meta" not in str(error.__cause__):
                raise
            raise ValueError(
                f"{architecture!r} cannot be built on the device meta, which shows its size before its weights are "
                f"read: its constructor must not use the values of tensors ({error.__cause__})"
            ) from error
        except MemoryError as error:
            raise ValueError(f"{architecture!r} with these arguments does not fit into memory") from error


def require_modest(arguments: Mapping[str, Any], most: int = TOTAL) -> None:
    """ValueError naming the argument whose values are larger or more than those of any network.

    ``most``: greatest sum of all integers.
    """
    total, values = 0, 0
    for name, argument in arguments.items():
        pending = [argument]
        while pending:
            value = pending.pop()
            values += 1
            if isinstance(value, dict):
                pending += value.values()
                pending += value.keys()
            elif isinstance(value, list | tuple):
                pending += value
            elif isinstance(value, str):
                if len(value) > CHARACTERS:
                    raise ValueError(f"argument {name!r} must have at most {CHARACTERS} characters, got {len(value)}")
            elif value is not None:
                if not abs(value) <= LARGEST:
                    raise ValueError(f"argument {name!r} must be at most {LARGEST} in size, got {value!r}")
                total += abs(value) if isinstance(value, int) else 0
            if total > most or values > VALUES:
                raise ValueError(
                    f"argument {name!r} must hold fewer values: together the integers must be at most {most}, and the "
                    f"values at most {VALUES}"
                )


def require_header(header: Header, model: nn.Module, where: str = "") -> None:
    """ValueError naming the first weight that a file lacks or has of another shape or dtype than ``model``.

    Buffers that are not in the file must be few: at most 64 MiB more than the file.
    """
    expected = model.state_dict()
    if missing := sorted(set(expected) - set(header)):
        raise ValueError(f"{where}weight {missing[0]!r} is missing")
    if unexpected := sorted(set(header) - set(expected)):
        raise ValueError(f"{where}unexpected weight {unexpected[0]!r}")
    for name, want in expected.items():
        dtype, shape = header[name]
        if shape != tuple(want.shape):
            raise ValueError(f"{where}weight {name!r} has shape {shape}, expected {tuple(want.shape)}")
        if (found := DTYPES.get(dtype, dtype)) != want.dtype:
            raise ValueError(f"{where}weight {name!r} has dtype {found}, expected {want.dtype}")
    size = sum(want.nbytes for want in expected.values())
    others = sum(buffer.nbytes for name, buffer in model.named_buffers() if name not in expected)
    if others > size + SPARE_BYTES:
        raise ValueError(
            f"{where}buffers that are not in the file need {others / 1e9:.1f} GB, the weights {size / 1e9:.1f} GB"
        )


def filled(
    model: nn.Module, architecture: str, arguments: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> nn.Module:
    """A network of these weights: ``model`` itself, from :func:`skeleton`, or if it has other buffers, a real one.

    Call :func:`require_header` first. ``tensors`` are copied.
    """
    if all(name in tensors for name, _ in model.named_buffers()):
        model.load_state_dict({name: tensor.clone() for name, tensor in tensors.items()}, assign=True)
        return model
    with torch.random.fork_rng(devices=[]), limited(len(tensors)):
        real = create(architecture, **arguments)
    real.load_state_dict(tensors)
    return real.eval()


@contextmanager
def limited(tensors: int) -> Iterator[None]:
    """ValueError for a construction in this thread of far more parameters, buffers or modules than ``tensors``."""
    if tensors > TENSORS:
        raise ValueError(f"the weights file must hold at most {TENSORS} tensors, got {tensors}")
    left, thread = [16 * tensors + 4000], threading.get_ident()

    def count(_module: nn.Module, _name: str, _added: Any) -> None:
        if threading.get_ident() != thread:
            return
        left[0] -= 1
        if left[0] < 0:
            raise ValueError(f"with these arguments the network has far more layers than the {tensors} weights on file")

    with ExitStack() as stack:
        for register in (
            registration.register_module_parameter_registration_hook,
            registration.register_module_buffer_registration_hook,
            registration.register_module_module_registration_hook,
        ):
            stack.callback(register(count).remove)
        yield


class _Computed(TorchFunctionMode):
    """Leaves torch.arange and torch.tensor on the CPU, within "meta"."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in (torch.arange, torch.tensor):
            kwargs.setdefault("device", "cpu")
        return func(*args, **kwargs)
