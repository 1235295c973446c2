"""Filter pruning without data (Yin 2020, sec. 4.3 and App. C)."""

from exml_fast.transfer.pruning.latency import LatencyTable
from exml_fast.transfer.pruning.prune import PruneResult, Pruning, prune

__all__ = ["LatencyTable", "PruneResult", "Pruning", "prune"]
