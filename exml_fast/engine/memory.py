"""Checks before a run whether a batch of images fits into memory."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn

from exml_fast.data import InputSpec
from exml_fast.profiling import free_bytes

__all__ = ["available_bytes", "require_memory", "required_bytes"]

# Float32 copies of the images: themselves, their gradient and Adam's two moments.
COPIES = 4


def require_memory(model: nn.Module, spec: InputSpec, batch_size: int, device: torch.device, images: int = 0) -> None:
    """ValueError if a batch needs more memory than ``device`` has free, or ``images`` images more than the CPU has."""
    room, space = available_bytes(torch.device("cpu")), 4 * images * math.prod(spec.shape)
    if room is not None and space > room:
        raise ValueError(
            f"{images} images {spec.shape} are {space / 1e9:.1f} GB, and {room / 1e9:.1f} GB of memory are free: ask "
            "for fewer at a time"
        )
    needed, free = required_bytes(model, spec, batch_size), available_bytes(device)
    if free is not None and needed > free:
        raise ValueError(
            f"a batch of {batch_size} images {spec.shape} needs at least {needed / 1e9:.1f} GB on {device}, which has "
            f"{free / 1e9:.1f} GB free: give a smaller batch_size or image size"
        )


def required_bytes(model: nn.Module, spec: InputSpec, batch_size: int) -> int:
    """A lower bound of the memory of a step: the images' state, and the input of every convolution and linear layer.

    The network runs on the device "meta", without data and memory. For a network that cannot run there, only the images
    count.
    """
    pixels = batch_size * math.prod(spec.shape)
    saved: list[int] = []
    try:
        # A deep copy whose weights are shapes: nothing is allocated.
        skeleton = copy.deepcopy(model, {id(t): _shape_of(t) for t in (*model.parameters(), *model.buffers())})
        for module in skeleton.eval().modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                module.register_forward_pre_hook(lambda _, args: saved.append(args[0].numel()))
        with torch.no_grad():
            skeleton(torch.empty(1, *spec.shape, device="meta", dtype=torch.float32))
    except Exception:  # the network's own code may raise anything without data; a later probe reports real errors
        saved.clear()
    # Inputs may be kept in bfloat16.
    return 4 * COPIES * pixels + 2 * batch_size * sum(saved)


def available_bytes(device: torch.device) -> int | None:
    """Free memory of ``device`` in bytes; None where the system does not report it."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return free_bytes() if device.type == "cpu" else None


def _shape_of(tensor: Tensor) -> Tensor:
    shape = tensor.detach().to("meta", torch.float32 if tensor.is_floating_point() else tensor.dtype)
    return nn.Parameter(shape, requires_grad=False) if isinstance(tensor, nn.Parameter) else shape
