"""Loads the compiled extension, which registers the ops of :mod:`exml_fast.ops` with PyTorch."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

_REBUILD = "rebuild it in its checkout: pip install --no-build-isolation --no-deps --force-reinstall ."


def _load() -> Any:
    try:
        from exml_fast._built_for import TORCH
    except ImportError:
        raise ImportError(f"the extension of exml_fast is not compiled: {_REBUILD}") from None
    if torch.__version__ != TORCH:
        raise ImportError(
            f"exml_fast was compiled for torch {TORCH}, but this is torch {torch.__version__}: {_REBUILD}"
        )
    return importlib.import_module("exml_fast._C")


_extension = _load()


def build_info() -> dict[str, str | None]:
    """How the extension was built.

    Returns:
        ``version``, ``git_commit``, ``torch`` (the version compiled against), ``cuda_archs`` (None without CUDA),
        ``compiler`` and ``cpu_capability`` (baseline, avx2 or avx512: the CPU kernels used on this machine).
    """
    from exml_fast._built_for import GIT_COMMIT

    return {**_extension.build_info(), "git_commit": GIT_COMMIT}


@contextmanager
def reused_memory() -> Iterator[None]:
    """Context manager in which CPU tensors of at least 64 KiB reuse the memory of freed ones (csrc/reused_memory.h).

    The effect covers all threads of the process. Blocks can be nested.
    """
    _extension.begin_reused_memory()
    try:
        yield
    finally:
        _extension.end_reused_memory()
