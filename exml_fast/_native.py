"""Loads the compiled extension, which registers the ops of :mod:`exml_fast.ops` with PyTorch.

Without the extension, :mod:`exml_fast.ops` registers the same ops from PyTorch functions: everything works, but more
slowly.
"""

from __future__ import annotations

import importlib
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from exml_fast._version import VERSION

__all__ = ["COMPILED", "HOW_TO_COMPILE", "WHY_NOT", "build_info", "reused_memory"]

HOW_TO_COMPILE = "pip install --no-build-isolation --no-deps --force-reinstall . (in a checkout, with a C++ compiler)"


def _load() -> tuple[Any, str | None]:
    """The extension and None, or None and the reason why there is none."""
    if os.environ.get("EXML_EXTENSION") == "0":
        return None, "EXML_EXTENSION=0 turns the compiled extension off"
    try:
        from exml_fast._built_for import TORCH
    except ImportError:
        return None, "the extension is not compiled"
    if torch.__version__ != TORCH:
        return None, f"the extension was compiled for torch {TORCH}, but this is torch {torch.__version__}"
    try:
        return importlib.import_module("exml_fast._C"), None
    except ImportError as error:
        return None, f"the extension cannot be loaded ({error})"


_extension, WHY_NOT = _load()
COMPILED = _extension is not None
"""Whether the compiled ops are in use. If not, WHY_NOT says why."""

if not COMPILED and os.environ.get("EXML_EXTENSION") != "0":
    warnings.warn(
        f"exml_fast runs on PyTorch's ops, which is slower: {WHY_NOT}. Fast ops: {HOW_TO_COMPILE}. "
        "EXML_EXTENSION=0 silences this warning.",
        stacklevel=2,
    )


def build_info() -> dict[str, str | None]:
    """How the extension was built.

    Returns:
        ``version``, ``git_commit``, ``torch`` (the version compiled against), ``cuda_archs`` (None without CUDA),
        ``compiler`` and ``cpu_capability`` (baseline, avx2 or avx512: the CPU kernels used on this machine). Without
        the extension, ``torch`` is the installed version, ``git_commit`` is "unknown", and the last three are None.
    """
    if _extension is None:
        info = dict.fromkeys(("cuda_archs", "compiler", "cpu_capability"))
        return {"version": VERSION, "torch": torch.__version__, **info, "git_commit": "unknown"}
    from exml_fast._built_for import GIT_COMMIT

    return {**_extension.build_info(), "git_commit": GIT_COMMIT}


@contextmanager
def reused_memory() -> Iterator[None]:
    """Context manager in which CPU tensors of at least 64 KiB reuse the memory of freed ones (csrc/reused_memory.h).

    The effect covers all threads of the process. Blocks can be nested. Without the extension, nothing happens.
    """
    if _extension is None:
        yield
        return
    _extension.begin_reused_memory()
    try:
        yield
    finally:
        _extension.end_reused_memory()
