"""Continual learning from a stream of trained models (Carta 2022)."""

from exml_fast.continual.baselines import EnsembleAverage, MinEntropy, Oracle, ParameterAverage
from exml_fast.continual.catalogue import Catalogue
from exml_fast.continual.ex_model.calibration import Measured, ResponseCalibration
from exml_fast.continual.ex_model.run import DistillationConfig, DistillationResult, ExModelDistillation
from exml_fast.continual.ex_model.strategies import (
    AdaptiveInversion,
    AuxiliaryData,
    DataImpression,
    DrawnInversion,
    ModelInversion,
    Procedural,
    Replay,
    Strategy,
)
from exml_fast.continual.expert import Card, Expert, train_expert
from exml_fast.continual.metrics import average_accuracy, forgetting
from exml_fast.continual.scenarios import (
    MultiHead,
    confusion_matrix,
    experience_accuracies,
    joint,
    new_classes,
    new_instances,
    stream_accuracy,
    train_stream,
)
from exml_fast.continual.stream import ExpertStream
from exml_fast.data import Augmentation
from exml_fast.data.buffer import ImageBuffer

__all__ = [
    "AdaptiveInversion",
    "Augmentation",
    "AuxiliaryData",
    "Card",
    "Catalogue",
    "DataImpression",
    "DistillationConfig",
    "DistillationResult",
    "EnsembleAverage",
    "ExModelDistillation",
    "Expert",
    "ExpertStream",
    "ImageBuffer",
    "Measured",
    "MinEntropy",
    "DrawnInversion",
    "ModelInversion",
    "MultiHead",
    "Oracle",
    "ParameterAverage",
    "Procedural",
    "Replay",
    "ResponseCalibration",
    "Strategy",
    "average_accuracy",
    "confusion_matrix",
    "experience_accuracies",
    "forgetting",
    "joint",
    "new_classes",
    "new_instances",
    "stream_accuracy",
    "train_expert",
    "train_stream",
]
