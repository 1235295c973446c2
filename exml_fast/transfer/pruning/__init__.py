"""Filter pruning without data (Yin 2020, sec. 4.3 and App. C)."""

from exml_fast.transfer.pruning.latency import LatencyTable
from exml_fast.transfer.pruning.prune import FINE_TUNING, PruneResult, Pruning, prune

__all__ = ["FINE_TUNING", "LatencyTable", "PruneResult", "Pruning", "prune"]
