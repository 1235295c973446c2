"""What Carta 2022 published about a stream of experts: figures, lengths and experts, from presets/carta2022/*.toml."""

from __future__ import annotations

import functools
from dataclasses import field

from exml_fast.reproduction.preset import names, read_preset
from exml_fast.validation import Count, from_mapping, settings

__all__ = ["Published", "published", "published_lengths"]

FOLDER = "carta2022/"


@settings
class Published:
    """Table ``[published]`` of a preset, with the figures of its table ``[paper]``.

    Attributes:
        epochs: of each expert's training.
        inversion_steps: optimisation steps of the images.
        distillation_steps: for each expert.
        buffer_size: images in the buffer.
        architecture: of the experts.
        experiences: number of classes of each expert.
        paper: test accuracy in percent by method.
    """

    epochs: Count
    inversion_steps: Count
    distillation_steps: Count
    buffer_size: Count
    architecture: str
    experiences: tuple[Count, ...]
    paper: dict[str, float] = field(default_factory=dict)


def published(data: str, scenario: str) -> Published | None:
    """What was published for a data set ("mnist") in a scenario ("new-classes"); None if the paper has no such row."""
    return _all().get((data, scenario))


def published_lengths(data: str) -> Published:
    """Lengths of a data set in any scenario; for data that the paper does not have, those of MNIST."""
    by_data = {name: found for (name, _), found in _all().items()}
    return by_data.get(data, by_data["mnist"])


@functools.cache
def _all() -> dict[tuple[str, str], Published]:
    found = {}
    for name in names():
        preset = read_preset(name) if name.startswith(FOLDER) else {}
        if "published" in preset:
            table = {**preset["published"], "paper": preset["paper"]}
            found[preset["data"], preset["scenario"]] = from_mapping(Published, table, f"preset {name}, [published]")
    return found
