"""Data-free learning from trained models, on fused C++ and CUDA ops.

Makes synthetic images from a trained classifier, and trains other models on these images alone::

    result = exml_fast.invert(model, classes=[1, 933], per_class=32, recipe="deep_inversion")
    result.save_grid("dream.png")
    taught = exml_fast.distill(model, student, result).model
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

from exml_fast._version import VERSION as __version__

if TYPE_CHECKING:
    from exml_fast import (
        compat,
        continual,
        data,
        distributed,
        engine,
        evaluation,
        generators,
        inversion,
        models,
        ops,
        training,
        transfer,
    )
    from exml_fast._native import build_info
    from exml_fast.continual import (
        AuxiliaryData,
        Catalogue,
        DataImpression,
        DistillationConfig,
        ExModelDistillation,
        Expert,
        ExpertStream,
        ImageBuffer,
        ModelInversion,
        train_stream,
    )
    from exml_fast.data import InputSpec
    from exml_fast.engine import BNStatistics, FrozenTeacher
    from exml_fast.generators import Delegator, Generator, delegate
    from exml_fast.inversion import Recipe, Result, Synthesizer, recipes
    from exml_fast.inversion.invert import invert, invert_many
    from exml_fast.progress import TensorBoard
    from exml_fast.training import Training, TrainingResult
    from exml_fast.transfer import Distillation, prune, quantize
    from exml_fast.transfer.distill import distill

__all__ = [
    "AuxiliaryData",
    "BNStatistics",
    "Catalogue",
    "DataImpression",
    "Delegator",
    "Distillation",
    "DistillationConfig",
    "ExModelDistillation",
    "Expert",
    "ExpertStream",
    "FrozenTeacher",
    "Generator",
    "ImageBuffer",
    "InputSpec",
    "ModelInversion",
    "Recipe",
    "Result",
    "Synthesizer",
    "TensorBoard",
    "Training",
    "TrainingResult",
    "__version__",
    "build_info",
    "compat",
    "continual",
    "data",
    "delegate",
    "distill",
    "distributed",
    "engine",
    "evaluation",
    "generators",
    "inversion",
    "invert",
    "invert_many",
    "models",
    "ops",
    "prune",
    "quantize",
    "recipes",
    "train_stream",
    "training",
    "transfer",
]

# Each name is imported when it is first used, so that the help of the command needs no PyTorch.
_HOMES: dict[str, tuple[str, ...]] = {
    "exml_fast._native": ("build_info",),
    "exml_fast.continual": (
        "AuxiliaryData",
        "Catalogue",
        "DataImpression",
        "DistillationConfig",
        "ExModelDistillation",
        "Expert",
        "ExpertStream",
        "ImageBuffer",
        "ModelInversion",
        "train_stream",
    ),
    "exml_fast.data": ("InputSpec",),
    "exml_fast.engine": ("BNStatistics", "FrozenTeacher"),
    "exml_fast.generators": ("Delegator", "Generator", "delegate"),
    "exml_fast.inversion": ("Recipe", "Result", "Synthesizer", "invert", "invert_many", "recipes"),
    "exml_fast.progress": ("TensorBoard",),
    "exml_fast.training": ("Training", "TrainingResult"),
    "exml_fast.transfer": ("Distillation", "distill", "prune", "quantize"),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name in _HOME_OF:
        value = getattr(importlib.import_module(_HOME_OF[name]), name)
    elif not name.startswith("__") and importlib.util.find_spec(f"{__name__}.{name}") is not None:
        value = importlib.import_module(f"{__name__}.{name}")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
