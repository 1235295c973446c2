"""What one network's synthetic images are good for (Yin 2020, 4; Nayak 2021, 4).

Distillation, pruning, quantisation, robustness, adaptation and perturbations.
"""

from exml_fast.transfer.adaptation import (
    ADVERSARIAL,
    REHEARSAL,
    DomainDiscriminator,
    adapt,
    adapt_by_rehearsal,
    mutual_information,
    tsne,
)
from exml_fast.transfer.distill import Distillation, DistillResult, distill
from exml_fast.transfer.export import export, load_pruned
from exml_fast.transfer.graph import compiled
from exml_fast.transfer.makers import Adapted, Drawn, Inverted, Made, Maker
from exml_fast.transfer.perturbation import (
    PERTURBATIONS,
    PerturbationGenerator,
    diversity_loss,
    fooling_loss,
    fooling_rate,
    universal_perturbations,
)
from exml_fast.transfer.pool import Generation
from exml_fast.transfer.pruning import FINE_TUNING, LatencyTable, PruneResult, Pruning, prune
from exml_fast.transfer.quantization import Quantization, QuantizeResult, load_quantized, quantize
from exml_fast.transfer.robustness import (
    Attack,
    RampedAttack,
    Robustness,
    adversarial_training,
    attack_accuracies,
    pgd,
)
from exml_fast.transfer.speed import speed
from exml_fast.transfer.zskd import ZSKD, transfer_set_sweep, zskd

__all__ = [
    "ADVERSARIAL",
    "FINE_TUNING",
    "PERTURBATIONS",
    "REHEARSAL",
    "ZSKD",
    "Adapted",
    "Attack",
    "DistillResult",
    "Distillation",
    "DomainDiscriminator",
    "Drawn",
    "Generation",
    "Inverted",
    "LatencyTable",
    "Made",
    "Maker",
    "PerturbationGenerator",
    "PruneResult",
    "Pruning",
    "Quantization",
    "QuantizeResult",
    "RampedAttack",
    "Robustness",
    "adapt",
    "adapt_by_rehearsal",
    "adversarial_training",
    "attack_accuracies",
    "compiled",
    "distill",
    "diversity_loss",
    "export",
    "fooling_loss",
    "fooling_rate",
    "load_pruned",
    "load_quantized",
    "mutual_information",
    "pgd",
    "prune",
    "quantize",
    "speed",
    "transfer_set_sweep",
    "tsne",
    "universal_perturbations",
    "zskd",
]
