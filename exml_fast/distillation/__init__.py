"""Knowledge of one network into another by images alone (Yin 2020, secs. 3.1, 4.1 and 4.4)."""

from exml_fast.distillation.config import TransferConfig
from exml_fast.distillation.loss import divergence
from exml_fast.distillation.transfer import Transfer, distill
from exml_fast.training import mixup

__all__ = ["Transfer", "TransferConfig", "distill", "divergence", "mixup"]
