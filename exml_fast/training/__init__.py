"""The one loop of everything that learns; its settings, losses and batches."""

from exml_fast.training.answers import Answers
from exml_fast.training.batches import (
    Batch,
    Batches,
    DrawnImages,
    ImageBatches,
    Mixture,
    network_input,
    unlabelled_batches,
)
from exml_fast.training.classifier import train_classifier
from exml_fast.training.config import Training
from exml_fast.training.features import FeatureDistance, shared_layers
from exml_fast.training.heads import final_features, grow_head, inputs_of, with_head
from exml_fast.training.loop import Loop, Loss, seeded, train
from exml_fast.training.losses import mixed_cross_entropy, softened_kl
from exml_fast.training.mixup import blended, mixed, mixup
from exml_fast.training.precision import Rounded, arranged, forward, placed
from exml_fast.training.result import TrainingResult
from exml_fast.training.schedules import learning_rate, one_cycle

__all__ = [
    "Answers",
    "Batch",
    "Batches",
    "DrawnImages",
    "FeatureDistance",
    "ImageBatches",
    "Loop",
    "Loss",
    "Mixture",
    "Rounded",
    "Training",
    "TrainingResult",
    "arranged",
    "blended",
    "final_features",
    "forward",
    "grow_head",
    "inputs_of",
    "learning_rate",
    "mixed",
    "mixed_cross_entropy",
    "mixup",
    "network_input",
    "one_cycle",
    "placed",
    "seeded",
    "shared_layers",
    "softened_kl",
    "train",
    "train_classifier",
    "unlabelled_batches",
    "with_head",
]
