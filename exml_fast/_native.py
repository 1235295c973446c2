"""Loads the compiled libraries of the package (setup.py).

``_ops.so`` and ``_ops_cuda.so`` hold the kernels of :mod:`exml_fast.ops`. They use PyTorch's stable ABI and work with
every torch from 2.11 on; ``_ops_cuda.so`` needs the CUDA version of its build. Without ``_ops.so``,
:mod:`exml_fast.ops` computes with PyTorch functions: everything works, but more slowly. The module ``_memory`` holds
the allocator behind :func:`reused_memory` and works with the torch and the Python that it was compiled for.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from exml_fast._version import VERSION

__all__ = [
    "COMPILED",
    "HOW_TO_COMPILE",
    "WHY_NOT",
    "WHY_NO_CUDA",
    "WHY_NO_REUSED_MEMORY",
    "build_info",
    "reused_memory",
]

HOW_TO_COMPILE = "pip install --no-build-isolation --no-deps --force-reinstall . (in a checkout, with a C++ compiler)"


class _Missing(Exception):
    """The reason why a library is not in use."""


def _load(name: str) -> Any:
    """The library exml_fast/<name>.so, or the module _memory. Raises _Missing if it cannot be used, with the reason."""
    if os.environ.get("EXML_EXTENSION") == "0":
        raise _Missing("EXML_EXTENSION=0 turns the compiled extension off")
    try:
        from exml_fast._built_for import CUDA_ARCHS, TORCH
    except ImportError:
        raise _Missing("the extension is not compiled") from None
    if name == "_ops_cuda" and CUDA_ARCHS is None:
        raise _Missing("the extension was compiled without CUDA")
    if name == "_ops_cuda" and torch.version.cuda is None:
        raise _Missing("this torch has no CUDA")
    if name == "_memory" and torch.__version__ != TORCH:
        raise _Missing(f"it was compiled for torch {TORCH}, but this is torch {torch.__version__}")
    try:
        if name == "_memory":
            return importlib.import_module("exml_fast._memory")
        return ctypes.CDLL(str(Path(__file__).with_name(f"{name}.so")))
    except (OSError, ImportError) as error:
        raise _Missing(f"the extension cannot be loaded ({error})") from None


def _tried(name: str) -> tuple[Any, str | None]:
    try:
        return _load(name), None
    except _Missing as reason:
        return None, str(reason)


_ops, WHY_NOT = _tried("_ops")
COMPILED = _ops is not None
"""Whether the compiled ops are in use. If not, WHY_NOT says why."""
_cuda, WHY_NO_CUDA = _tried("_ops_cuda") if COMPILED else (None, WHY_NOT)
_memory, WHY_NO_REUSED_MEMORY = _tried("_memory")

if not COMPILED and os.environ.get("EXML_EXTENSION") != "0":
    warnings.warn(
        f"exml_fast runs on PyTorch's ops, which is slower: {WHY_NOT}. Fast ops: {HOW_TO_COMPILE}. "
        "EXML_EXTENSION=0 silences this warning.",
        stacklevel=2,
    )


def build_info() -> dict[str, str | None]:
    """How the extension was built.

    Returns:
        ``version``, ``git_commit``, ``torch`` (the installed version), ``built_for`` (the version compiled against; the
        ops work with every torch from 2.11 on), ``cuda_archs`` (None where the CUDA kernels are not in use),
        ``compiler``, ``cpu_capability`` (baseline, avx2 or avx512: the CPU kernels used on this machine) and
        ``reused_memory`` ("in use", or the reason why not). Without the extension, ``git_commit`` is "unknown", and
        ``built_for``, ``cuda_archs``, ``compiler`` and ``cpu_capability`` are None.
    """
    installed = {"version": VERSION, "torch": torch.__version__, "reused_memory": WHY_NO_REUSED_MEMORY or "in use"}
    built = dict.fromkeys(("built_for", "cuda_archs", "compiler", "cpu_capability"))
    if _ops is None:
        return {**installed, **built, "git_commit": "unknown"}
    from exml_fast._built_for import CUDA_ARCHS, GIT_COMMIT, TORCH

    return {
        **installed,
        "built_for": TORCH,
        "cuda_archs": CUDA_ARCHS if _cuda is not None else None,
        "compiler": _text(_ops, "exml_compiler"),
        "cpu_capability": _text(_ops, "exml_cpu_capability"),
        "git_commit": GIT_COMMIT,
    }


def _text(library: ctypes.CDLL, name: str) -> str:
    """The text that a function of the library returns."""
    function = library[name]
    function.restype = ctypes.c_char_p
    value: bytes = function()
    return value.decode()


@contextmanager
def reused_memory() -> Iterator[None]:
    """Context manager in which CPU tensors of at least 64 KiB reuse the memory of freed ones (csrc/memory).

    The effect covers all threads of the process. Blocks can be nested. Without the module _memory, nothing happens.
    """
    if _memory is None:
        yield
        return
    _memory.begin_reused_memory()
    try:
        yield
    finally:
        _memory.end_reused_memory()
