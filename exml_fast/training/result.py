"""What everything that trains returns."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

__all__ = ["TrainingResult"]


@dataclass(repr=False)
class TrainingResult:
    """A trained network and how it came about.

    Attributes:
        model: in evaluation mode; the network that was given is unchanged.
        history: "step" and each term of the loss, means over blocks of steps.
        seconds: by stage, as "train" or "generate".
        peak_mb: the most memory that was held (:class:`exml_fast.profiling.Meter`).
    """

    model: nn.Module
    history: dict[str, list[float]]
    seconds: dict[str, float]
    peak_mb: float

    def __repr__(self) -> str:
        last = {name: values[-1] for name, values in self.history.items() if values}
        steps, loss = last.get("step"), last.get("loss")
        learned = "" if steps is None else f", {steps:g} steps"
        learned += "" if loss is None else f", loss {loss:.4g}"
        learned += f", {last['agreement']:.0%} as the teacher says" if "agreement" in last else ""
        seconds = sum(self.seconds.values())
        return f"{type(self).__name__}: {type(self.model).__name__}{learned}, {seconds:.1f} s, {self.peak_mb:.0f} MB"
