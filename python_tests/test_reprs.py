"""What objects say of themselves in a notebook, in one to three lines."""

from __future__ import annotations

from small_experts import stream, trained
from small_networks import SPEC, network

from exml_fast.engine import FrozenTeacher
from exml_fast.training import TrainingResult


def test_experts_and_streams() -> None:
    expert = trained()[0]
    parameters = sum(p.numel() for p in expert.model.parameters())
    accuracy = f", accuracy {100 * expert.card.training['accuracy']:.1f} %"
    assert repr(expert).splitlines() == [
        f"Expert: lenet5, {parameters:,} parameters, on cpu",
        f"input 1×32×32, 4 logits{accuracy}",
        f"2 classes: {', '.join(expert.card.class_names[:2])}",
    ]
    assert repr(stream()) == "ExpertStream: 2 experts (lenet5), 4 classes, read to cpu"


def test_frozen_teachers() -> None:
    teacher = FrozenTeacher(network(), SPEC, precision="float32")
    said = "Sequential, 1×12×12 to 5 logits; statistics of 1 layers, float32 on cpu; fused by torch.fx"
    assert repr(teacher) == f"FrozenTeacher({said})"


def test_trainings() -> None:
    history = {"step": [50.0, 100.0], "loss": [2.0, 0.12345]}
    result = TrainingResult(network(), history, {"generate": 1.0, "learn": 2.5}, 12.4)
    assert repr(result) == "TrainingResult: Sequential, 100 steps, loss 0.1235, 3.5 s, 12 MB"
    assert repr(TrainingResult(network(), {}, {}, 3.0)) == "TrainingResult: Sequential, 0.0 s, 3 MB"
