"""What data impressions are good for: distillation, robustness, adaptation, perturbations (Nayak 2021, sec. 4)."""

from exml_fast.transfer.adaptation import (
    Adapted,
    DomainDiscriminator,
    adapt,
    adapt_by_rehearsal,
    mutual_information,
    tsne,
)
from exml_fast.transfer.perturbation import (
    PerturbationGenerator,
    Perturber,
    diversity_loss,
    fooling_loss,
    fooling_rate,
    universal_perturbations,
)
from exml_fast.transfer.robustness import Attack, Robustness, adversarial_training, attack_accuracies, pgd
from exml_fast.transfer.training import Training, accuracy, class_accuracies, features, train_classifier
from exml_fast.transfer.zskd import Distilled, distillation_loss, transfer_set_sweep, zskd

__all__ = [
    "Adapted",
    "Attack",
    "Distilled",
    "DomainDiscriminator",
    "PerturbationGenerator",
    "Perturber",
    "Robustness",
    "Training",
    "accuracy",
    "adapt",
    "adapt_by_rehearsal",
    "adversarial_training",
    "attack_accuracies",
    "class_accuracies",
    "distillation_loss",
    "diversity_loss",
    "features",
    "fooling_loss",
    "fooling_rate",
    "mutual_information",
    "pgd",
    "train_classifier",
    "transfer_set_sweep",
    "tsne",
    "universal_perturbations",
    "zskd",
]
