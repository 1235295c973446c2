"""Settings of a class-incremental study: data, protocols, network and methods."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from typing import Annotated, Any

from pydantic import Field

from exml_fast.continual.class_incremental import METHODS
from exml_fast.continual.class_incremental.tasks import CLASS_ORDER_SEED
from exml_fast.data import InputSpec
from exml_fast.validation import Count, Natural, flat_names, named, nearest, settings

__all__ = ["IncrementalSettings", "changes_of", "folder_of_row", "usual_network"]


@settings
class IncrementalSettings:
    """What decides the results of a study but its seed.

    Attributes:
        data: name or file of the data set.
        methods: by the name of a row, a table with ``method``, a name in
            :data:`exml_fast.continual.class_incremental.METHODS`, and settings of this method alone.
        protocols: each method learns each of them; see :func:`exml_fast.continual.class_incremental.tasks.divided`.
        order_seed: the study's seed is added to it; the sum decides the class order. None for ascending classes.
        architecture, arguments: of the network; :func:`usual_network` where ``architecture`` is None.
        settings: of all methods that have them, except where a setting is what makes the method.
        held_out: training images of each class that are the test images instead; for choosing settings.
        maps: numbers of the tasks, from 1, after which features are kept for a map (Lardizzone 2020, Figs. 4 and 9).
    """

    data: str
    methods: Annotated[dict[str, dict[str, Any]], Field(min_length=1)]
    protocols: Annotated[tuple[str, ...], Field(min_length=1)] = ("b0-10",)
    order_seed: Natural | None = CLASS_ORDER_SEED
    architecture: str | None = None
    arguments: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    held_out: Natural = 0
    maps: tuple[Count, ...] = ()

    def check(self) -> None:
        """ValueError for an unknown method, a setting that no method has, and a protocol that is there twice."""
        folders = [folder_of_row(row) for row in self.methods]
        for row, folder in zip(self.methods, folders, strict=True):
            # "first" is the folder of first networks.
            if folder in ("", ".", "..", "first") or folders.count(folder) > 1:
                raise ValueError(f"methods: {row!r} must be a name whose folder, {folder!r}, no other row has")
            changes_of(self, row)
        if len(set(self.protocols)) < len(self.protocols):
            raise ValueError(f"protocols must differ, got {list(self.protocols)}")
        kinds = [named("method", table["method"], METHODS) for table in self.methods.values()]
        known = sorted({name for kind in kinds for name in flat_names(kind.learner.settings)})
        for name in self.settings:
            if name not in known:
                raise ValueError(
                    f"settings: no method has {name!r}{nearest(name, known)}; expected one of {', '.join(known)}"
                )
            fixed = [kind for kind in kinds if name in kind.settings]
            if not any(name in flat_names(kind.learner.settings) for kind in kinds if kind not in fixed):
                rows = ", ".join(table["method"] for table in self.methods.values())
                raise ValueError(f"settings: {name} is what makes {rows}: choose another method")


def folder_of_row(row: str) -> str:
    """Name of the folder of a row."""
    return row.replace("/", "-")


def changes_of(study: IncrementalSettings, row: str) -> dict[str, Any]:
    """The settings of the method in ``row`` that the study changes; ValueError for an unknown method or setting."""
    table = study.methods[row]
    if "method" not in table:
        raise ValueError(f"methods.{row}: method is missing")
    chosen = named("method", table["method"], METHODS)
    known = flat_names(chosen.learner.settings)
    own = {name: value for name, value in table.items() if name != "method"}
    if unknown := [name for name in own if name not in known]:
        raise ValueError(
            f"methods.{row}: unknown field {unknown[0]!r}{nearest(unknown[0], known)}; "
            f"expected one of {', '.join(known)}"
        )
    shared = {name: value for name, value in study.settings.items() if name in known and name not in chosen.settings}
    return shared | own


def usual_network(
    spec: InputSpec, architecture: str | None, arguments: Mapping[str, Any]
) -> tuple[str, dict[str, Any]]:
    """Name and arguments of the network.

    The default is ResNet-32 for colour images up to 64×64, LeNet-5 with BatchNorm for grey ones of 32×32, and
    torchvision's ResNet-18 for all others.
    """
    if architecture is not None:
        return architecture, dict(arguments)
    if spec.channels == 3 and max(spec.size) <= 64:
        return "cifar_resnet", {"depth": 32} | dict(arguments)
    if spec.size == (32, 32):
        return "lenet5", {"batch_norm": True} | dict(arguments)
    return "torchvision/resnet18", dict(arguments)
