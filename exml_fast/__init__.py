"""Data-free learning from trained models, at hardware speed.

Makes synthetic images from a trained classifier, and trains other models on these images alone::

    result = exml_fast.invert(model, classes=[1, 933], per_class=32, recipe="deep_inversion")
    result.save_grid("dream.png")
    taught = exml_fast.distill(model, student, result).model
"""

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
from exml_fast.inversion import Recipe, Result, Synthesizer, invert, invert_many, recipes
from exml_fast.progress import TensorBoard
from exml_fast.training import Training, TrainingResult
from exml_fast.transfer import Distillation, distill, prune, quantize

__version__ = str(build_info()["version"])

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
