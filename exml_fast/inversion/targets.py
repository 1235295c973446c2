"""The targets of the network's output: class indices, or soft targets drawn around a class (Nayak 2021, sec. 3)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from exml_fast import ops
from exml_fast.inversion.settings import Classification
from exml_fast.models import final_linear

__all__ = ["beta_shares", "class_similarity", "dirichlet_mixture", "hard_targets", "soft_targets"]

SMALLEST_SIMILARITY = 1e-4


def class_similarity(
    source: nn.Module | Tensor, *, normalize: bool = True, layer: str | None = None, example: Tensor | None = None
) -> Tensor:
    """Cosine similarities of the classes' weight vectors (Nayak 2021, Eq. 1), made positive.

    Args:
        source: a classifier, whose final linear layer is used, or the weight (K, H) of that layer.
        normalize: stretch each row to [0, 1] (row min-max, Nayak 2021, 3.1; a constant row becomes ones). False keeps
            the cosines (Carta 2022, 4), with negative ones set to zero.
        layer: name of the layer in ``source.named_modules()``, a Linear or a 1×1 convolution.
        example: an input (N, ...) for ``source``: the last Linear that runs on it is used. Without ``layer`` and
            ``example``, the Linear that was registered last is used.

    Returns:
        (K, K) float64 on the CPU, every entry at least 1e-4 (which is added), so that each row is a valid
        concentration of a Dirichlet distribution.

    Raises:
        ValueError: if the weight is not a finite matrix of two rows or more, or there is no such layer.
    """
    weight = _final_weight(source, layer, example) if isinstance(source, nn.Module) else source
    if weight.dim() != 2 or 0 in weight.shape:
        raise ValueError(f"source must be a weight (classes, features), got shape {tuple(weight.shape)}")
    if len(weight) == 1:
        raise ValueError(
            "source has one class only, to which no other is similar: soft targets need two or more; use "
            "targets='hard' (recipe 'class_impressions')"
        )
    weight = weight.detach().to("cpu", torch.float64)
    bad = (~weight.isfinite()).any(1).nonzero()[:, 0].tolist()
    if bad:
        raise ValueError(
            f"source: the final layer's weight holds NaN or infinity in the rows of classes {bad}: load the network "
            "anew, or train it with a smaller learning rate"
        )
    rows = torch.nn.functional.normalize(weight, dim=1)
    cosine = (rows @ rows.T).clamp(-1, 1)
    if normalize:
        low, high = cosine.amin(1, keepdim=True), cosine.amax(1, keepdim=True)
        spread = high - low
        cosine = torch.where(spread > 1e-12, (cosine - low) / spread.clamp_min(1e-12), torch.ones_like(cosine))
    return cosine.clamp_min(0) + SMALLEST_SIMILARITY


def _final_weight(model: nn.Module, layer: str | None, example: Tensor | None) -> Tensor:
    if layer is None:
        try:
            return final_linear(model, example).weight
        except ValueError as error:
            raise ValueError(
                f"{error}: name the layer whose rows are the classes (layer=..., in a recipe similarity_layer=...), or "
                "use targets='hard' (recipe 'class_impressions'), which needs none"
            ) from error
    found = dict(model.named_modules()).get(layer)
    weight = getattr(found, "weight", None)
    if isinstance(found, nn.Conv2d) and found.kernel_size == (1, 1) and found.groups == 1:
        return found.weight.flatten(1)
    if not isinstance(found, nn.Linear) or not isinstance(weight, Tensor):
        linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
        kind = "nothing" if found is None else type(found).__name__
        raise ValueError(
            f"layer must name a Linear or 1×1 convolution of {type(model).__name__}, {layer!r} is {kind}; its Linear "
            f"layers: {linear}"
        )
    return weight


def hard_targets(labels: Tensor, units: Sequence[int]) -> Tensor:
    """Logit positions (N,) int64 of the class ids ``labels`` (N,); ``units[j]`` is the class id of logit j.

    ValueError naming the class ids without a logit.
    """
    place = {unit: j for j, unit in enumerate(units)}
    wanted = labels.tolist()
    if missing := sorted({label for label in wanted if label not in place}):
        known = f"0 to {len(units) - 1}" if list(units) == list(range(len(units))) else str(list(units))
        raise ValueError(f"classes {missing} are not among the network's classes, {known}")
    return torch.tensor([place[label] for label in wanted], dtype=torch.int64)


def beta_shares(classes: Tensor, betas: Sequence[float]) -> Tensor:
    """A scaling factor for each sample, (N,) float64: each beta equally often in each class (Nayak 2021, Alg. 1).

    The i-th sample of a class gets ``betas[i % B]``, so the shares of a class differ by one sample at most.
    """
    if not betas or not all(0 < beta < math.inf for beta in betas):
        raise ValueError(
            f"betas must hold positive finite numbers (Nayak 2021: 1.0 and 0.1), got {tuple(betas)}; "
            "for one-hot targets, the limit of small ones, use targets='hard'"
        )
    seen: dict[int, int] = {}
    shares = []
    for label in classes.tolist():
        shares.append(betas[seen.setdefault(label, 0) % len(betas)])
        seen[label] += 1
    return torch.tensor(shares, dtype=torch.float64)


def dirichlet_mixture(
    similarity: Tensor,
    classes: Tensor,
    betas: Sequence[float],
    *,
    generator: torch.Generator | None = None,
    among: Tensor | None = None,
) -> Tensor:
    """Soft targets: row n from Dirichlet(β_n · similarity[classes[n]]) with β_n by :func:`beta_shares`.

    Args:
        similarity: (K, K), positive, see :func:`class_similarity`. Draws are made on its device.
        classes: (N,) int64 logit positions.
        betas: the scaling factors (Nayak 2021: 1.0 and 0.1 together; Carta 2022: 10).
        generator: of ``similarity``'s device.
        among: logit positions (M,), including all ``classes``, to which the distribution is restricted; the other
            components are zero. None allows all K.

    Returns:
        (N, K) float32, rows summing to one, on ``similarity``'s device.
    """
    if bad := (~(similarity.isfinite() & (similarity > 0))).any(1).nonzero()[:, 0].tolist():
        raise ValueError(
            f"similarity must be positive and finite, rows {bad} are not: make it by class_similarity, or give these "
            "classes one-hot targets (targets='hard')"
        )
    device = similarity.device
    shares = beta_shares(classes, betas).to(device, similarity.dtype)
    classes = classes.to(device)
    if among is None:
        return ops.dirichlet_targets(similarity, classes, shares, generator).float()
    among = among.to(device)
    inverse = torch.full((len(similarity),), -1, dtype=torch.int64, device=device)
    inverse[among] = torch.arange(len(among), device=device)
    if (inverse[classes] < 0).any():
        raise ValueError(f"among must include every class, {sorted(set(classes.tolist()))}, got {among.tolist()}")
    part = similarity[among][:, among].contiguous()
    targets = torch.zeros(len(classes), len(similarity), device=device)
    targets[:, among] = ops.dirichlet_targets(part, inverse[classes], shares, generator).float()
    return targets


def soft_targets(
    model: nn.Module,
    classification: Classification,
    positions: Tensor,
    *,
    example: Tensor,
    among: Tensor,
    logits: int,
    generator: torch.Generator,
) -> Tensor:
    """Soft targets around the classes at ``positions``, from the similarities of the rows of ``model``.

    Args:
        positions: (N,) int64 logit positions.
        example: an input (1, C, H, W) for ``model``, on its device.
        among: the logit positions (M,) to which ``dirichlet_over="classes"`` restricts the targets.
        logits: K, the number of logits of ``model``.
        generator: on the device of ``example``.

    Returns:
        (N, K) float32 on the CPU.

    Raises:
        ValueError: if the classifying layer is not found, or has another number of rows than K.
    """
    with torch.no_grad():
        similarity = class_similarity(
            model,
            normalize=classification.similarity_minmax, layer=classification.similarity_layer, example=example,
        ).to(example.device)  # fmt: skip
    if len(similarity) != logits:
        raise ValueError(
            f"the last linear layer of {type(model).__name__} has {len(similarity)} rows and the network {logits} "
            "logits: soft targets are drawn from the rows of the classifying layer; name it with similarity_layer=..."
        )
    within = among if classification.dirichlet_over == "classes" else None
    return dirichlet_mixture(similarity, positions, classification.betas, generator=generator, among=within).cpu()
