"""BatchNorm statistics of a batch that is spread over several processes."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from exml_fast.engine.statistics import LayerStatistics
from exml_fast.inversion.objective import Term
from exml_fast.inversion.recipes import Recipe
from exml_fast.ranks import Ranks
from exml_fast.storage import PathLike
from exml_fast.validation import require

__all__ = ["over_ranks", "require_spreadable"]


def over_ranks(layers: Sequence[LayerStatistics], count: int, ranks: Ranks) -> list[LayerStatistics]:
    """The statistics of the whole batch, of which this process has ``count`` images with the statistics ``layers``.

    With n images, mean m and variance v of each part, the first and second moments are sums over the ranks::

        M = Σ n m / Σ n,  V = Σ n (v + m²) / Σ n − M²

    The gradient flows into this process's images alone. It is exact: every process computes the same function of M and
    V, and an image changes M and V through its own process's part only.
    """
    if not layers:
        return []
    mean = torch.cat([layer.mean for layer in layers]).double()
    var = torch.cat([layer.var for layer in layers]).double()
    first, second = count * mean, count * (var + mean.square())
    own = torch.cat([first, second, first.new_tensor([count])]).detach()
    total = ranks.sum(own)
    others = total - own
    whole = total[-1]
    mean = (first + others[: len(first)]) / whole
    var = ((second + others[len(first) : -1]) / whole - mean.square()).clamp_min(0)
    sizes = [len(layer.mean) for layer in layers]
    parts = zip(layers, mean.split(sizes), var.split(sizes), strict=True)
    return [layer._replace(mean=m.to(layer.mean.dtype), var=v.to(layer.var.dtype)) for layer, m, v in parts]


def require_spreadable(
    recipe: Recipe, ranks: Ranks, batch_size: int, checkpoint_dir: PathLike | None, terms: Sequence[Term] = ()
) -> None:
    """ValueError for a batch that cannot be spread over ``ranks``."""
    priors, several = recipe.priors, f"over {ranks.count} ranks"
    require(checkpoint_dir is None, "checkpoint_dir", f"None {several}", checkpoint_dir)
    require(batch_size >= ranks.count, "batch_size", f"at least {ranks.count}, the number of ranks", batch_size)
    stop, memory = recipe.optimisation.stop_confidence, recipe.matching.bn_memory
    require(stop is None, "stop_confidence", f"None {several}, which take the same steps", stop)
    require(memory == 0, "bn_memory", f"0 {several}", memory)
    coupling = [term.name for term in terms if term.couples]
    require(not coupling, "terms", f"of single images (couples=False) {several}", coupling)
    for name, scope, weights in (
        ("tv_scope", priors.tv_scope, (priors.tv_l1, priors.tv_l2)),
        ("norm_scope", priors.norm_scope, (priors.blur, priors.l2)),
    ):
        require(scope == "image" or not any(weights), name, f"'image' {several}", scope)
