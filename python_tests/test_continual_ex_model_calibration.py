"""Experts' outputs on one scale, images by chance, and targets that outlive their expert."""

import copy
from functools import cache
from typing import Any

import pytest
import torch
from small_experts import quadrants, trained
from torch import Tensor, nn

from exml_fast.continual import (
    DistillationConfig,
    EnsembleAverage,
    ExModelDistillation,
    Expert,
    ExpertStream,
    Procedural,
    ResponseCalibration,
    stream_accuracy,
    train_stream,
)
from exml_fast.continual.ex_model import run as module
from exml_fast.continual.ex_model.calibration import statistics_distance
from exml_fast.data import InputSpec, NaturalFields

FIELDS = NaturalFields()
QUICK = {"steps": 20, "batch_size": 8, "lr": 0.01, "buffer_size": 40, "augmentation": {"shift": 0}}


def scaled(expert: Expert, factor: float) -> Expert:
    """The same expert, every logit times ``factor``."""
    model = copy.deepcopy(expert.model)
    with torch.no_grad():
        model.classifier[-1].weight *= factor
        model.classifier[-1].bias *= factor
    return Expert(model, expert.card)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def test_scale_is_the_level_over_the_mean_of_the_largest_responses() -> None:
    expert = trained()[1]
    found = ResponseCalibration(FIELDS, images=200, share=0.02, level=5.0).measure(expert, generator()).scale
    responses = expert.logits(FIELDS.draw(200, expert.input_spec, generator()))[:, [2, 3]]
    assert expert.classes == (2, 3)
    torch.testing.assert_close(found, 5 / responses.sort(0, descending=True).values[:4].mean(0))


def test_a_louder_expert_is_no_louder_afterwards() -> None:
    calibration = ResponseCalibration(FIELDS, images=100)
    expert = trained()[0]
    images = quadrants().spec.prepare(quadrants().test.images)
    columns = expert.positions(expert.classes)
    quiet, loud = (
        one.logits(images)[:, columns] * calibration.measure(one, generator()).scale
        for one in (expert, scaled(expert, 7.0))
    )
    torch.testing.assert_close(quiet, loud)


def test_a_unit_that_never_responds_is_named() -> None:
    silent = scaled(trained()[0], 0.0)
    with pytest.raises(ValueError, match=r"the expert's logit of class 0 reaches 0 on images of .*NaturalFields"):
        ResponseCalibration(FIELDS, images=20).measure(silent, generator())


@cache
def with_batch_norm() -> Expert:
    """An expert of two of the four quadrants."""
    (expert,) = train_stream(quadrants(), [[1, 3]], epochs=2, lr=0.02, arguments={"batch_norm": True})
    return expert


def test_untypical_images_lose() -> None:
    """What is subtracted is the mean over the layers of the standardised distance, the same from both logits."""
    expert, source = with_batch_norm(), NaturalFields()
    plain, typical = (ResponseCalibration(source, images=60, share=0.1, typicality=t) for t in (0.0, 0.7))
    images = quadrants().spec.prepare(quadrants().test.images)
    measured = typical.measure(expert, generator())
    assert measured.usual.shape == (2, 2) and plain.measure(expert, generator()).usual.shape == (2, 0)

    def distances(images: Tensor) -> Tensor:
        found = []
        for name in ("features.1", "features.5"):
            norm, inputs = expert.model.get_submodule(name), []
            handle = norm.register_forward_pre_hook(lambda _m, args, inputs=inputs: inputs.append(args[0]))
            expert.logits(images, len(images))
            handle.remove()
            z = (inputs[0] - norm.running_mean[:, None, None]) / (norm.running_var[:, None, None] + 1e-5).sqrt()
            first, second = z.mean((2, 3)), z.square().mean((2, 3))
            found.append(((first**2 + (second - 1) ** 2).mean(1)) ** 0.5)
        return torch.stack(found, 1)

    usual = distances(source.draw(60, expert.input_spec, generator()))
    standardised = (distances(images) - usual.mean(0)) / usual.std(0, correction=0)
    expected = plain.responses(expert, images, plain.measure(expert, generator())) - 0.7 * standardised.mean(
        1, keepdim=True
    )
    torch.testing.assert_close(typical.responses(expert, images, measured), expected, rtol=1e-4, atol=1e-4)


def test_images_with_the_remembered_statistics_are_at_no_distance() -> None:
    x = torch.randn(3, 4, 5, 6, dtype=torch.float64, generator=generator())
    layer = nn.BatchNorm2d(4, eps=1e-6).double()
    assert layer.running_mean is not None and layer.running_var is not None
    layer.running_mean.copy_(x[0].mean((1, 2)))
    layer.running_var.copy_(x[0].var((1, 2), correction=0))
    far = statistics_distance(x, layer)
    assert far[0] < 1e-5 < 1e-2 < far[1:].min()
    assert statistics_distance(x[:, :, 0, 0], layer).shape == (3,)


def test_a_network_may_change_what_a_layer_was_given() -> None:
    """The distance is that of the input when the layer is called."""

    class Added(nn.Module):
        def __init__(self, in_place: bool) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.norm, self.in_place = nn.BatchNorm2d(1), in_place
            self.classifier = nn.Sequential(nn.Flatten(), nn.Linear(1024, 4))
            nn.init.constant_(self.classifier[1].bias, 5.0)

        def forward(self, x: Tensor) -> Tensor:
            x = x + 0
            y = self.norm(x)
            if self.in_place:
                x += y
            else:
                x = x + y
            return self.classifier(x)

    calibration = ResponseCalibration(FIELDS, images=50, typicality=1.0)
    found = [
        calibration.measure(Expert(Added(flag), trained()[0].card), generator()).usual for flag in (False, True)
    ]  # fmt: skip
    assert torch.equal(*found) and found[0].shape == (2, 1)


def test_layers_without_statistics_say_nothing() -> None:
    model = copy.deepcopy(with_batch_norm().model)
    model.set_submodule("features.1", nn.BatchNorm2d(6, track_running_stats=False))
    calibration = ResponseCalibration(FIELDS, images=50, typicality=1.0)
    with torch.no_grad():
        model.classifier[-1].bias += 1e3
    assert calibration.measure(Expert(model, with_batch_norm().card), generator()).usual.shape == (2, 1)


def test_typicality_is_for_experts_with_batch_norms() -> None:
    expert = trained()[0]
    images = FIELDS.draw(9, expert.input_spec, torch.Generator().manual_seed(1))
    found = []
    for t in (0.0, 3.0):
        calibration = ResponseCalibration(FIELDS, images=50, typicality=t)
        found.append(calibration.responses(expert, images, calibration.measure(expert, generator())))
    assert torch.equal(*found)


@pytest.mark.parametrize("images", [1, 7, 20, 60, 1000])
def test_images_that_are_all_alike_tell_nothing_of_typicality(images: int) -> None:
    """Also where the mean of equal distances is rounded; and nor does a single image."""

    class Grey(NaturalFields):
        def draw(self, count: int, spec: InputSpec, generator: torch.Generator) -> Tensor:
            return torch.full((count, *spec.shape), 0.3)

    source = FIELDS if images == 1 else Grey()
    with pytest.raises(ValueError, match="all the same distance to the running statistics of a BatchNorm"):
        ResponseCalibration(source, images=images, typicality=0.5).measure(loud_everywhere(), generator())


def loud_everywhere() -> Expert:
    """Its logits are positive for every image."""
    expert = Expert(copy.deepcopy(with_batch_norm().model), with_batch_norm().card)
    with torch.no_grad():
        expert.model.classifier[-1].bias += 1e3
    return expert


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"typicality": -0.1}, "typicality must be at least 0, got -0.1"),
        ({"images": 0}, "images must be at least 1"),
        ({"share": 0}, "share must be positive, got 0"),
        ({"level": 0}, "level must be"),
    ],
)
def test_bad_settings(values: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ResponseCalibration(FIELDS, **values)  # type: ignore[arg-type]  # wrong on purpose


def test_a_loud_expert_does_not_drown_the_others() -> None:
    """Two experts, one ten times as loud: the ensemble of the logits fails, the calibrated ex-model does not."""
    quiet, loud = trained()[0], scaled(trained()[1], 10.0)
    data = quadrants()
    values = {**QUICK, "steps": 150, "batch_size": 32, "optimizer": "adam", "lr": 3e-3, "buffer_size": 300}
    config = DistillationConfig.from_dict({**values, "loss": "kl", "lambda_ce": 0.0, "targets": "stored"})
    accuracies = []
    for calibration in (None, ResponseCalibration(FIELDS, images=500, share=0.01)):
        method = ExModelDistillation(Procedural(FIELDS), config, calibration=calibration)
        accuracies.append(stream_accuracy(method.run(ExpertStream([quiet, loud])).expert, data))
    assert accuracies[1] > accuracies[0] + 0.1, accuracies
    assert accuracies[1] > stream_accuracy(EnsembleAverage([quiet, loud]), data), accuracies


def test_procedural_images_are_labelled_by_the_expert() -> None:
    expert = trained()[1]
    images, labels = Procedural(FIELDS).samples(expert, 30, generator())
    assert torch.equal(images, FIELDS.draw(30, expert.input_spec, generator()))
    assert torch.equal(labels, expert.predict(images))
    assert Procedural(FIELDS).describe()["source"] == "NaturalFields"


class Anew(Procedural):
    """New images for each expert."""

    once = False


def run_and_look(strategy: Procedural, monkeypatch: pytest.MonkeyPatch) -> tuple[Tensor, Tensor, Tensor, Any]:
    """After the second expert: the buffer's images and labels, the stored targets and the first ex-model."""
    runs = []
    kept = module.Run._distil

    def spy(self: Any, expert: Expert) -> None:
        kept(self, expert)
        buffer = self.memory.buffer
        runs.append((buffer.images.clone(), buffer.labels.clone(), self.memory.targets.clone(), self.student.previous))

    monkeypatch.setattr(module.Run, "_distil", spy)
    config = DistillationConfig.from_dict({**QUICK, "targets": "stored"})
    method = ExModelDistillation(strategy, config, seed=5, calibration=ResponseCalibration(FIELDS, images=50))
    method.run(ExpertStream(list(trained())))
    return runs[1]


def said(expert: Expert, images: Tensor) -> Tensor:
    scale = ResponseCalibration(FIELDS, images=50).measure(expert, torch.Generator().manual_seed(5)).scale
    return expert.logits(images)[:, expert.positions(expert.classes)] * scale


def test_stored_targets_are_what_each_expert_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Old images keep the first expert's own outputs; on new ones the previous ex-model speaks for it."""
    images, _, stored, previous = run_and_look(Anew(FIELDS), monkeypatch)
    first, second = trained()
    assert len(images) == 40 and previous is not None
    old, new = slice(0, 20), slice(20, 40)
    torch.testing.assert_close(stored[:, 2:], said(second, images))
    torch.testing.assert_close(stored[old, :2], said(first, images[old]))
    torch.testing.assert_close(stored[new, :2], previous(images[new])[:, :2])
    assert not torch.allclose(stored[old, :2], previous(images[old])[:, :2], atol=1e-3)


def test_images_that_depend_on_no_expert_are_drawn_once_and_seen_by_all(monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels, stored, _ = run_and_look(Procedural(FIELDS), monkeypatch)
    torch.testing.assert_close(stored, torch.cat([said(expert, images) for expert in trained()], 1))
    assert torch.equal(labels, stored.argmax(1)) and len(labels.unique()) > 2
    assert torch.equal(images, FIELDS.draw(40, quadrants().spec, torch.Generator().manual_seed(5)))


@pytest.mark.parametrize("values", [{"task_labels": True}, {"combine": "per_sample"}])
def test_images_of_no_class_need_targets_by_unit(values: dict[str, object]) -> None:
    config = DistillationConfig.from_dict({**QUICK, **values})
    with pytest.raises(ValueError, match="belong to no class or task: combine must be 'per_unit'"):
        ExModelDistillation(Procedural(FIELDS), config)


def test_a_stopped_run_ends_bit_for_bit_the_same(tmp_path) -> None:
    config = DistillationConfig.from_dict({**QUICK, "targets": "stored"})

    def method(images: int = 50) -> ExModelDistillation:
        return ExModelDistillation(
            Procedural(FIELDS), config, calibration=ResponseCalibration(FIELDS, images=images)
        )  # fmt: skip

    whole = method().run(ExpertStream(list(trained()))).expert

    class Stop(Exception):
        pass

    def stop(stage: str, step: int, total: int, terms: dict[str, float]) -> None:
        if stage == "expert 2/2: distil":
            raise Stop

    with pytest.raises(Stop):
        method().run(ExpertStream(list(trained())), progress=stop, checkpoint_dir=tmp_path)
    resumed = method().run(ExpertStream(list(trained())), checkpoint_dir=tmp_path).expert
    assert resumed.fingerprint() == whole.fingerprint()
    with pytest.raises(ValueError, match=r"belongs to another run: calibration\S* was"):
        method(images=51).run(ExpertStream(list(trained())), checkpoint_dir=tmp_path)
