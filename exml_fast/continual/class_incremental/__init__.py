"""Class-incremental learning: one network learns classes task by task (Lardizzone 2020; Ye 2022; Yin 2020, 4.5)."""

from exml_fast.continual.class_incremental.abd import AlwaysBeDreaming
from exml_fast.continual.class_incremental.analytic import Analytic
from exml_fast.continual.class_incremental.deep_inversion import DeepInversion
from exml_fast.continual.class_incremental.delegator import DelegatedLearner
from exml_fast.continual.class_incremental.dual_distillation import DualDistillation
from exml_fast.continual.class_incremental.exemplars import ExemplarMemory, collages, herded
from exml_fast.continual.class_incremental.fine_tuning import FineTuning, FixedRepresentation, Joint
from exml_fast.continual.class_incremental.icarl import ICaRL
from exml_fast.continual.class_incremental.learner import LearnedTask, Learner, LearnerSettings
from exml_fast.continual.class_incremental.lesson import Lesson
from exml_fast.continual.class_incremental.lwf import LwF
from exml_fast.continual.class_incremental.methods import METHODS, IncrementalMethod, learner
from exml_fast.continual.class_incremental.oracle import Oracle
from exml_fast.continual.class_incremental.r_dfcil import RDFCIL
from exml_fast.continual.class_incremental.run import IncrementalResult, TaskResult, incremental
from exml_fast.continual.class_incremental.synthesis import Synthesis, SyntheticLearner, SyntheticSettings
from exml_fast.continual.class_incremental.tasks import Task, class_order, divided, tasks_of

__all__ = [
    "METHODS",
    "RDFCIL",
    "AlwaysBeDreaming",
    "Analytic",
    "DeepInversion",
    "DelegatedLearner",
    "DualDistillation",
    "ExemplarMemory",
    "FineTuning",
    "FixedRepresentation",
    "ICaRL",
    "IncrementalMethod",
    "IncrementalResult",
    "Joint",
    "LearnedTask",
    "Learner",
    "LearnerSettings",
    "Lesson",
    "LwF",
    "Oracle",
    "Synthesis",
    "SyntheticLearner",
    "SyntheticSettings",
    "Task",
    "TaskResult",
    "class_order",
    "collages",
    "divided",
    "herded",
    "incremental",
    "learner",
    "tasks_of",
]
