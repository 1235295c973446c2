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
        raise ImportError(f"exml_fast's extension has not been compiled: {_REBUILD}") from None
    if torch.__version__ != TORCH:
        raise ImportError(
            f"exml_fast was compiled for torch {TORCH}, but this is torch {torch.__version__}: {_REBUILD}"
        )
    return importlib.import_module("exml_fast._C")


_extension = _load()


def build_info() -> dict[str, str | None]:
    """What the extension was built from and for.

    Returns:
        ``version``, ``git_commit``, ``torch`` (the one compiled against), ``cuda_archs`` (None without CUDA),
        ``compiler`` and ``cpu_capability`` (baseline, avx2 or avx512: the CPU kernels chosen on this machine).
    """
    from exml_fast._built_for import GIT_COMMIT

    return {**_extension.build_info(), "git_commit": GIT_COMMIT}


@contextmanager
def reused_memory() -> Iterator[None]:
    """Inside the block, CPU tensors of 64 KiB and more reuse the memory of earlier ones (csrc/reused_memory.h).

    It holds for all threads of the process; blocks may be nested.
    """
    _extension.begin_reused_memory()
    try:
        yield
    finally:
        _extension.end_reused_memory()
