"""Continual learning: from a stream of trained models (Carta 2022), and class by class from images."""

from exml_fast.continual import class_incremental
from exml_fast.continual.baselines import EnsembleAverage, MinEntropy, Oracle, ParameterAverage
from exml_fast.continual.catalogue import Catalogue
from exml_fast.continual.ex_model.calibration import Measured, ResponseCalibration
from exml_fast.continual.ex_model.config import Background, DistillationConfig
from exml_fast.continual.ex_model.distillation import ExModelDistillation
from exml_fast.continual.ex_model.losses import Divergence, SquaredError
from exml_fast.continual.ex_model.methods import METHODS, Method, Plan, method, plan
from exml_fast.continual.ex_model.postprocessing import Align, Debias, Renormalise
from exml_fast.continual.ex_model.result import ExModelResult, Learned
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
from exml_fast.continual.ex_model.targets import (
    BlendedTargets,
    ExpertTargets,
    FixedTargets,
    LiveTargets,
    StoredTargets,
)
from exml_fast.continual.expert import Card, Expert
from exml_fast.continual.merging import ReBasin, RegMean, ZipIt
from exml_fast.continual.metrics import average_accuracy, forgetting
from exml_fast.continual.scenarios import (
    MultiHead,
    confusion_matrix,
    experience_accuracies,
    joint,
    new_classes,
    new_instances,
    stream_accuracy,
)
from exml_fast.continual.stream import ExpertStream
from exml_fast.continual.train import TrainedExpert, train_expert, train_stream
from exml_fast.data import Augmentation
from exml_fast.data.buffer import ImageBuffer

__all__ = [
    "METHODS",
    "AdaptiveInversion",
    "Align",
    "Augmentation",
    "AuxiliaryData",
    "Background",
    "BlendedTargets",
    "Card",
    "Catalogue",
    "DataImpression",
    "Debias",
    "DistillationConfig",
    "Divergence",
    "DrawnInversion",
    "EnsembleAverage",
    "ExModelDistillation",
    "ExModelResult",
    "Expert",
    "ExpertStream",
    "ExpertTargets",
    "FixedTargets",
    "ImageBuffer",
    "Learned",
    "LiveTargets",
    "Measured",
    "Method",
    "MinEntropy",
    "ModelInversion",
    "MultiHead",
    "Oracle",
    "ParameterAverage",
    "Plan",
    "Procedural",
    "ReBasin",
    "RegMean",
    "Renormalise",
    "Replay",
    "ResponseCalibration",
    "SquaredError",
    "StoredTargets",
    "Strategy",
    "TrainedExpert",
    "ZipIt",
    "average_accuracy",
    "class_incremental",
    "confusion_matrix",
    "experience_accuracies",
    "forgetting",
    "joint",
    "method",
    "new_classes",
    "new_instances",
    "plan",
    "stream_accuracy",
    "train_expert",
    "train_stream",
]
