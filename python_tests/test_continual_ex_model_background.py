"""A background of random images that all experts see, before images that each expert gave."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from small_experts import quadrants, trained
from torch import Tensor, nn

from exml_fast.continual import (
    Background,
    Card,
    DistillationConfig,
    Divergence,
    DrawnInversion,
    ExModelDistillation,
    Expert,
    ExpertStream,
    ModelInversion,
    Procedural,
    ResponseCalibration,
    Strategy,
    stream_accuracy,
)
from exml_fast.continual.ex_model import batches
from exml_fast.continual.ex_model import run as module
from exml_fast.continual.ex_model.losses import distillation_loss
from exml_fast.continual.ex_model.memory import Memory
from exml_fast.continual.ex_model.targets import Teachers
from exml_fast.continual.expert import complete_arguments
from exml_fast.data import NaturalFields, PenStrokes
from exml_fast.models import create

FIELDS = NaturalFields()
QUICK = {
    "steps": 20, "batch_size": 8, "lr": 0.01, "buffer_size": 40, "augmentation": {"shift": 0}, "loss": "kl",
    "lambda_ce": 0.0, "targets": "experts",
}  # fmt: skip
INVERSION = ModelInversion("model_inversion", steps=2, batch_size=20)


BEHIND = Background(FIELDS, 0.6)


def method(
    strategy: Strategy = INVERSION, seed: int = 5, background: Background | None = BEHIND, **values: Any
) -> ExModelDistillation:
    config = DistillationConfig.from_dict(QUICK | values)
    return ExModelDistillation(strategy, config, seed=seed, background=background)


def with_batch_norm() -> list[Expert]:
    """Two experts that know nothing, of two classes each."""
    experts = []
    for number, expert in enumerate(trained()):
        arguments = complete_arguments("lenet5", {"batch_norm": True}, 4, expert.input_spec)
        torch.manual_seed(number)
        model = create("lenet5", **arguments).eval()
        with torch.no_grad():  # a calibration asks for positive answers
            model.classifier[-1].bias += 1
        names = tuple("abcd")
        experts.append(Expert(model, Card("lenet5", arguments, expert.units, expert.classes, names, expert.input_spec)))
    return experts


def test_only_experts_speak_each_of_the_images_that_it_saw(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the background everybody, of images that came with the second expert the second alone."""
    runs, masks = [], []
    kept, loss = module.Run._distil, module.distillation_loss

    def look(self: Any, expert: Expert) -> None:
        kept(self, expert)
        memory = self.memory
        runs.append((memory.background, memory.buffer.images.clone(), memory.targets.clone(), memory.spoken.clone()))

    def spy(logits: Tensor, target: Tensor, mask: Tensor, *rest: Any, **options: Any) -> Any:
        masks.append(mask.clone())
        return loss(logits, target, mask, *rest, **options)

    monkeypatch.setattr(module.Run, "_distil", look)
    monkeypatch.setattr(module, "distillation_loss", spy)
    result = method().run(ExpertStream(list(trained())))
    first, second = trained()
    (background, images, stored, heard), own = runs[0], [0, 1]
    assert (
        len(background) == 24 and len(images) == 16 and torch.equal(heard, heard.new_tensor([1, 1, 0, 0]).expand(40, 4))
    )
    torch.testing.assert_close(background, FIELDS.draw(24, first.input_spec, torch.Generator().manual_seed(5)))
    background, images, stored, heard = runs[1]
    every = torch.cat([background, images])
    assert heard[:32].all() and torch.equal(heard[32:], heard.new_tensor([0, 0, 1, 1]).expand(8, 4))
    torch.testing.assert_close(stored[:, 2:], second.logits(every)[:, second.positions(second.classes)])
    torch.testing.assert_close(stored[:32, own], first.logits(every[:32])[:, first.positions(first.classes)])
    assert (stored[32:, own] == 0).all()
    late = torch.cat(masks[20:])
    assert 0.1 < float((~late[:, 0]).double().mean()) < 0.35, "a fifth of the images, 8 of 40"
    assert len(result.buffer) == 16


def test_views_have_targets_of_their_own_and_are_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of each image's views, by every expert; the same ones for the second expert as for the first."""
    runs = []
    asked, distil = Teachers.of_all, module.Run._distil

    def look(self: Any, memory: Memory, positions: Tensor) -> tuple[Tensor, Tensor]:
        assert memory._shown is not None
        runs.append((memory._shown.clone(), memory.keys.clone()))
        return asked(self, memory, positions)

    def then(self: Any, expert: Expert) -> None:
        distil(self, expert)
        assert self.memory._shown is None, "not kept between experts"
        runs[-1] += (self.memory.targets.clone(), self.memory.spoken.clone())

    monkeypatch.setattr(Teachers, "of_all", look)
    monkeypatch.setattr(module.Run, "_distil", then)
    result = method(views=3).run(ExpertStream(list(trained())))
    assert len(result.buffer) == 16
    first, second = trained()
    (shown, keys, stored, heard), (again, later, stored_again, heard_again) = runs
    assert shown.shape == (120, 1, 32, 32) and keys.tolist() == list(range(40))
    torch.testing.assert_close(shown[:72:3], FIELDS.draw(24, first.input_spec, torch.Generator().manual_seed(5)))
    assert not torch.equal(shown[0], shown[1]) and not torch.equal(shown[1], shown[2])
    low, high = first.input_spec.bounds()
    assert (shown[:72] >= low - 1e-5).all() and (shown[:72] <= high + 1e-5).all()
    # Images that are still there have the views that they had.
    where = torch.tensor([keys.tolist().index(key) for key in later.tolist() if key < 40])
    assert 24 < len(where) < 40 and len(later) == 40
    assert torch.equal(again.unflatten(0, (40, 3))[: len(where)], shown.unflatten(0, (40, 3))[where])
    for expert, images, targets in ((first, shown, stored), (second, again, stored_again)):
        units = list(expert.classes)
        torch.testing.assert_close(targets[:, units], expert.logits(images)[:, expert.positions(expert.classes)])
    assert heard[:, [0, 1]].all() and not heard[:, [2, 3]].any() and heard_again[:, [2, 3]].all()
    assert torch.equal(
        stored_again.unflatten(0, (40, 3))[: len(where), :, :2], stored.unflatten(0, (40, 3))[where, :, :2]
    )
    assert not heard_again.unflatten(0, (40, 3))[len(where) :, :, :2].any()


@pytest.mark.parametrize("targets", ["experts", "stored"])
def test_views_resume_bit_for_bit(targets: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "BLOCK_STEPS", 10)
    stream, values = ExpertStream(list(trained())), {"views": 2, "targets": targets}
    whole = method(**values).run(stream)

    def stop(stage: str, step: int, total: int, terms: dict[str, float]) -> None:
        if stage.startswith("expert 2/2: distil") and step >= 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        method(**values).run(stream, progress=stop, checkpoint_dir=tmp_path)
    again = method(**values).run(stream, checkpoint_dir=tmp_path)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], value), name


def test_views_of_random_images_alone() -> None:
    """They are labelled by what is said of them as they are."""
    result = method(Procedural(FIELDS), background=None, targets="stored", views=2).run(ExpertStream(list(trained())))
    assert len(result.buffer) == 40 and set(result.buffer.labels.tolist()) <= {0, 1, 2, 3}


def test_random_images_have_no_label(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the strategy count in the cross-entropy with the class of their expert, those of the background not."""
    seen, loss, rows = [], module.distillation_loss, Memory.rows

    def spy(logits: Tensor, target: Tensor, mask: Tensor, labels: Tensor, *rest: Any, **options: Any) -> Any:
        seen.append(labels.clone())
        return loss(logits, target, mask, labels, *rest, **options)

    def look(self: Any, index: Tensor) -> Tensor:
        asked.append(torch.where(index < 24, -1, self.buffer.labels[(index - 24).clamp(min=0)]))
        return rows(self, index)

    asked: list[Tensor] = []
    monkeypatch.setattr(module, "distillation_loss", spy)
    monkeypatch.setattr(Memory, "rows", look)
    result = method(lambda_ce=1.0).run(ExpertStream(list(trained())))
    # Of each expert's 20 steps of 8; the other rows are all 40 images, for their targets.
    steps = torch.cat([found for found in asked if len(found) == 160])
    assert torch.equal(torch.cat(seen), steps) and 0.3 < (steps < 0).double().mean() < 0.9
    assert sorted(steps.unique().tolist()) == [-1, 0, 1, 2, 3]
    assert all(ce > 0 for ce in result.learned[1].history["ce"])


def test_cross_entropy_is_a_mean_over_the_batch_with_and_without_labels() -> None:
    logits, target = torch.randn(2, 6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    labels, seen = torch.tensor([2, -1, 0, -1, -1, 1]), torch.tensor([0, 1, 3])
    mask = torch.ones(6, 4, dtype=torch.bool)
    leaf = logits.clone().requires_grad_()
    _, found = distillation_loss(leaf, target, mask, labels, seen, Divergence(), unlabelled=True)
    labelled = [0, 2, 5]
    expected = nn.functional.cross_entropy(logits[labelled][:, seen], labels[labelled], reduction="sum") / 6
    torch.testing.assert_close(found, expected)
    (gradient,) = torch.autograd.grad(found, leaf)
    assert not gradient[[1, 3, 4]].any() and gradient[labelled].any(1).all()


def test_the_background_learns_as_random_images_alone_do() -> None:
    """About as well: a tenth of the buffer has other images."""
    calibration = ResponseCalibration(FIELDS, images=500, share=0.01)
    values = QUICK | {"steps": 150, "batch_size": 32, "optimizer": "adam", "lr": 3e-3, "buffer_size": 300}
    found = []
    for strategy, more, source in (
        (Procedural(FIELDS), {"targets": "stored"}, None),
        (INVERSION, {}, Background(FIELDS, 0.9)),
    ):  # fmt: skip
        config = DistillationConfig.from_dict(values | more)
        run = ExModelDistillation(strategy, config, calibration=calibration, background=source)
        found.append(stream_accuracy(run.run(ExpertStream(list(trained()))).expert, quadrants()))
    assert found[1] > found[0] - 0.15 and found[1] > 0.6, found


@pytest.mark.parametrize("typicality", [0.0, 0.5])
def test_an_interrupted_run_with_a_background_ends_bit_for_bit(typicality: float, tmp_path: Path) -> None:
    config = DistillationConfig.from_dict(
        QUICK | {"buffer_size": 30, "renormalise": True, "lambda_ce": 0.5, "align": True, "debias": 0.5}
    )
    calibration = ResponseCalibration(FIELDS, images=50, share=0.1, typicality=typicality) if typicality else None

    def run(source: NaturalFields | PenStrokes = FIELDS, **options: Any) -> Any:
        background = Background(source, 0.6)
        run = ExModelDistillation(INVERSION, config, seed=5, background=background, calibration=calibration)
        return run.run(ExpertStream(with_batch_norm()), **options)

    expected, calls = run(), 0

    def interrupt(stage: str, step: int, total: int, terms: dict[str, float]) -> None:
        nonlocal calls
        calls += stage.startswith("expert 2") and "distil" in stage
        if calls == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(checkpoint_dir=tmp_path, progress=interrupt)
    again = run(checkpoint_dir=tmp_path)
    assert again.history == expected.history
    for name, value in expected.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name]), name
    with pytest.raises(ValueError, match=r"another run: background\.source was"):
        run(PenStrokes(), checkpoint_dir=tmp_path)


def test_renormalised_statistics_are_those_of_the_strategys_images() -> None:
    result = method(renormalise=True).run(ExpertStream(with_batch_norm()))
    model = copy.deepcopy(result.model).train()
    seen: dict[str, Tensor] = {}
    for name, module_ in model.named_modules():
        if isinstance(module_, nn.BatchNorm2d):
            module_.register_forward_pre_hook(lambda _m, args, name=name: seen.update({name: args[0].detach()}))
    model(result.buffer.images)
    assert seen
    for name, module_ in result.model.named_modules():
        if isinstance(module_, nn.BatchNorm2d):
            torch.testing.assert_close(module_.running_mean, seen[name].mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(module_.running_var, seen[name].var((0, 2, 3)), rtol=1e-4, atol=1e-5)
            assert module_.momentum == 0.1


@pytest.mark.parametrize("align", [False, True])
def test_debiased_classes_are_as_likely_for_random_images(align: bool) -> None:
    """A share of their mean logits is taken off, all of it at 1; every expert's and of a copy."""
    found = [method(debias=share, align=align).run(ExpertStream(with_batch_norm())) for share in (0.0, 0.5, 1.0)]
    assert found[0].history == found[1].history == found[2].history
    background = FIELDS.draw(24, found[0].expert.input_spec, torch.Generator().manual_seed(5))
    plain, half, none = (run.expert.logits(background).mean(0) for run in found)
    plain, half, none = (mean - mean.mean() for mean in (plain, half, none))
    assert plain.abs().max() > 0.01
    torch.testing.assert_close(half, plain / 2, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(none, torch.zeros(4), atol=1e-4, rtol=0)


def test_debiasing_needs_a_bias() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(1024, 4, bias=False))
    config = DistillationConfig.from_dict(QUICK | {"debias": 0.5})
    run = ExModelDistillation(INVERSION, config, background=BEHIND, model=model, units=[0, 1, 2, 3])
    with pytest.raises(ValueError, match="debias needs a final linear layer with a bias"):
        run.run(ExpertStream(list(trained())))


def test_without_batch_norm_nothing_is_renormalised() -> None:
    runs = [method(renormalise=flag).run(ExpertStream(list(trained()))) for flag in (False, True)]
    states = [run.model.state_dict() for run in runs]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


class Sharing(Strategy):
    """Random images, for experts of which one knows a class of the other's too."""

    def __init__(self) -> None:
        first, second = trained()
        card = dataclasses.replace(second.card, classes=(1, 2, 3))
        self.experts = [first, Expert(second.model, card)]

    def samples(self, expert: Expert, count: int, generator: torch.Generator, **_: Any) -> tuple[Tensor, Tensor]:
        return Procedural(FIELDS).samples(expert, count, generator)

    def describe(self) -> dict[str, Any]:
        return {}


def test_a_class_that_two_experts_know_is_the_mean_of_those_that_spoke(monkeypatch: pytest.MonkeyPatch) -> None:
    runs, kept = [], module.Run._distil

    def look(self: Any, expert: Expert) -> None:
        kept(self, expert)
        memory = self.memory
        images = torch.cat([memory.background, memory.buffer.images])
        runs.append((images, memory.targets.clone(), memory.spoken.clone()))

    monkeypatch.setattr(module.Run, "_distil", look)
    sharing = Sharing()
    method(sharing).run(ExpertStream(sharing.experts))
    images, stored, heard = runs[1]
    first, second = (expert.logits(images) for expert in sharing.experts)
    torch.testing.assert_close(stored[:32, 1], (first[:32, 1] + second[:32, 1]) / 2)
    torch.testing.assert_close(stored[32:, 1], second[32:, 1])
    assert heard[:, 1:].all() and heard[:32, 0].all() and not heard[32:, 0].any()


@pytest.mark.parametrize("values", [{"targets": "stored"}, {"lambda_ce": 0.5}, {"normalize": "standardize"}])
def test_a_background_goes_with_other_settings(values: dict[str, Any], tmp_path: Path) -> None:
    runs = [
        ExModelDistillation(
            INVERSION, DistillationConfig.from_dict(QUICK | values), seed=5, background=BEHIND, buffer_dir=folder
        ).run(ExpertStream(list(trained())))
        for folder in (None, tmp_path)
    ]
    assert runs[0].history == runs[1].history, "on disk as in memory"
    states = [run.model.state_dict() for run in runs]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_random_images_before_random_images() -> None:
    config = DistillationConfig.from_dict(QUICK)
    run = ExModelDistillation(Procedural(FIELDS), config, background=BEHIND).run(ExpertStream(list(trained())))
    assert len(run.buffer) == 16 and set(run.buffer.labels.tolist()) <= {0, 1, 2, 3}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"task_labels": True}, "task_labels must be False with a background"),
        ({"targets": "live"}, "targets must be 'stored' or 'experts' with a background, got 'live'"),
        ({"targets": "fixed"}, "targets must be 'stored' or 'experts' with a background, got 'fixed'"),
    ],
)
def test_settings_that_do_not_go_together(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        method(**values)


def test_a_background_leaves_room_and_renormalising_needs_images() -> None:
    with pytest.raises(ValueError, match=r"buffer_size 4 with background_share 0.75 leaves 1 images for 2 experts"):
        method(buffer_size=4, background=Background(FIELDS, 0.75)).run(ExpertStream(list(trained())))
    with pytest.raises(ValueError, match="renormalise needs images of experts"):
        method(Procedural(FIELDS), background=None, renormalise=True)


def test_drawings_of_each_class_begin_with_those_the_expert_sees_it_in() -> None:
    expert = trained()[1]
    strategy = DrawnInversion(PenStrokes(), pool=200, steps=30, lr=0.03)
    images, labels = strategy.samples(expert, 21, torch.Generator().manual_seed(0))
    assert images.shape == (21, 1, 32, 32) and labels.tolist() == [2] * 11 + [3] * 10
    again, _ = strategy.samples(expert, 21, torch.Generator().manual_seed(0))
    assert torch.equal(images, again)
    assert strategy.describe()["parametrisation"] == PenStrokes().describe() and strategy.describe()["pool"] == 200
    still = DrawnInversion(PenStrokes(), pool=200, steps=1, lr=1e-30)
    begin, labels = still.samples(expert, 21, torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(0)
    torch.randint(2**62, (), generator=generator)
    strokes, spec = PenStrokes(), expert.input_spec
    pool, (low, high) = strokes.parameters(200, spec, generator), strokes.limits(spec)
    seen = expert.logits(strokes.render(pool, spec))
    for unit in (2, 3):
        best = seen[:, expert.positions((unit,))[0]].topk(int((labels == unit).sum())).indices
        expected = strokes.render(pool[best].clamp(low, high), spec)
        torch.testing.assert_close(begin[labels == unit], expected, atol=1e-4, rtol=1e-4)
    assert strategy.last is not None and strategy.last.summary["absent"] == ["bn"]
    with pytest.raises(ValueError, match="pool must be a positive integer"):
        DrawnInversion(PenStrokes(), pool=0)
