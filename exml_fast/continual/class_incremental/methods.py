"""Class-incremental methods by name."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from exml_fast.continual.class_incremental.abd import AlwaysBeDreaming
from exml_fast.continual.class_incremental.analytic import Analytic
from exml_fast.continual.class_incremental.deep_inversion import DeepInversion
from exml_fast.continual.class_incremental.delegator import DelegatedLearner
from exml_fast.continual.class_incremental.dual_distillation import DualDistillation
from exml_fast.continual.class_incremental.fine_tuning import FineTuning, FixedRepresentation, Joint
from exml_fast.continual.class_incremental.icarl import ICaRL
from exml_fast.continual.class_incremental.learner import Learner
from exml_fast.continual.class_incremental.lwf import LwF
from exml_fast.continual.class_incremental.oracle import Oracle
from exml_fast.continual.class_incremental.r_dfcil import RDFCIL
from exml_fast.data import InputSpec
from exml_fast.validation import field_names, named

__all__ = ["METHODS", "IncrementalMethod", "learner"]


@dataclass(frozen=True)
class IncrementalMethod:
    """A learner with some settings."""

    learner: type[Learner]
    source: str
    """The paper."""
    settings: dict[str, Any] = field(default_factory=dict)
    real: bool = False
    """Whether real images of earlier tasks are kept."""


ICARL = "Rebuffi 2017; Lardizzone 2020, sec. {}"

METHODS: dict[str, IncrementalMethod] = {
    "joint": IncrementalMethod(Joint, "Lardizzone 2020, sec. 3.1", real=True),
    "fine-tuning": IncrementalMethod(FineTuning, "Lardizzone 2020, sec. 3.2"),
    "fixed-representation": IncrementalMethod(FixedRepresentation, "Nayak 2021, sec. 4.3"),
    "lwf": IncrementalMethod(LwF, "Li 2016"),
    "lwf-mc": IncrementalMethod(LwF, "Rebuffi 2017; Lardizzone 2020, sec. 3.3", {"losses": "bce-bce"}),
    "icarl": IncrementalMethod(ICaRL, ICARL.format("3.4"), real=True),
    "icarl-hybrid1": IncrementalMethod(ICaRL, ICARL.format("3.4"), {"classifier": "logits"}, real=True),
    "icarl-random": IncrementalMethod(ICaRL, ICARL.format("3.4"), {"selection": "random"}, real=True),
    "icarl-no-augmentation": IncrementalMethod(ICaRL, ICARL.format("3.4"), {"augmentation": {}}, real=True),
    **{
        f"icarl-{pair}": IncrementalMethod(ICaRL, ICARL.format("4.1"), {"losses": pair}, real=True)
        for pair in ("ce-mse", "bce-mse", "mse-mse", "ce-bce")
    },
    **{
        f"icarl-{classifier}": IncrementalMethod(ICaRL, ICARL.format("4.2"), {"classifier": classifier}, real=True)
        for classifier in ("k-nearest", "mlp", "svm")
    },
    **{
        f"icarl-collage-{kind}": IncrementalMethod(ICaRL, ICARL.format("5.1"), {"collage": kind}, real=True)
        for kind in ("resized", "random-crop", "center-crop")
    },
    "synthetic-exemplars": IncrementalMethod(ICaRL, ICARL.format("5.2"), {"inversion": "deep_inversion/lardizzone"}),
    "synthetic-exemplars-adaptive": IncrementalMethod(
        ICaRL, ICARL.format("5.2"), {"inversion": "adaptive_deep_inversion/lardizzone"}
    ),
    "inverted-random-images": IncrementalMethod(
        ICaRL, ICARL.format("5.2"),
        {"inversion": "deep_inversion/lardizzone", "inversion_start": "images", "selection": "random"}, real=True,
    ),
    "inverted-herded-images": IncrementalMethod(
        ICaRL, ICARL.format("5.2"), {"inversion": "deep_inversion/lardizzone", "inversion_start": "images"}, real=True
    ),
    "deep-inversion": IncrementalMethod(DeepInversion, "Yin 2020, sec. 4.5"),
    "oracle-distill": IncrementalMethod(Oracle, "Yin 2020, sec. 4.5", real=True),
    "oracle-classify": IncrementalMethod(Oracle, "Yin 2020, sec. 4.5", {"targets": "labels"}, real=True),
    "dual-distillation": IncrementalMethod(DualDistillation, "Nayak 2021, sec. 4.3"),
    "skd": IncrementalMethod(DelegatedLearner, "Ye 2022, III.C"),
    "skd-without-generator": IncrementalMethod(DelegatedLearner, "Ye 2022, Table III", {"source": None}),
    "skd-without-weighting": IncrementalMethod(
        DelegatedLearner, "Ye 2022, Table III", {"source": None, "adaptive_weighting": False}
    ),
    "skd-inverted": IncrementalMethod(
        DelegatedLearner, "Ye 2022, III.C, on inverted images", {"source": "inversion"}
    ),
    "abd": IncrementalMethod(AlwaysBeDreaming, "Smith 2021"),
    "r-dfcil": IncrementalMethod(RDFCIL, "Gao 2022"),
    "analytic": IncrementalMethod(Analytic, "Zhuang 2022"),
}  # fmt: skip


def learner(
    method: str,
    network: nn.Module,
    spec: InputSpec,
    *,
    tasks: int | None = None,
    seed: int = 0,
    device: torch.device | str | None = None,
    **overrides: Any,
) -> Learner:
    """A new learner.

    Args:
        method: a name in :data:`METHODS`.
        network, spec, seed, device: as :class:`Learner`.
        tasks: how many there will be after the first one, for methods that ask (Ye 2022, Eq. 12).
        overrides: settings of the method, as ``epochs=15``, ``total=2000``, ``recipe="deep_inversion"``.

    Raises:
        ValueError: for an unknown method or setting.
    """
    chosen = named("method", method, METHODS)
    given = dict(chosen.settings)
    if tasks is not None and "tasks" in field_names(chosen.learner.settings):
        given["tasks"] = max(1, tasks)
    return chosen.learner(network, spec, seed=seed, device=device, **given | overrides)
