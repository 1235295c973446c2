from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from small_experts import quadrants, trained
from torch import Tensor

from exml_fast.continual import DistillationConfig, ExModelDistillation, Expert, train_expert
from exml_fast.continual.ex_model.strategies import (
    AdaptiveInversion,
    AuxiliaryData,
    DataImpression,
    ModelInversion,
    Replay,
    balanced_labels,
)
from exml_fast.continual.scenarios import new_instances
from exml_fast.continual.stream import ExpertStream
from exml_fast.data import InputSpec
from exml_fast.inversion import recipes


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_balanced_labels() -> None:
    assert balanced_labels((5, 2, 9), 7).tolist() == [2, 2, 5, 5, 5, 9, 9]
    assert balanced_labels((5, 2, 9), 2).tolist() == [2, 5]


@pytest.mark.parametrize("kind", [ModelInversion, DataImpression])
def test_inversion_gives_images_the_expert_recognises(kind: Any) -> None:
    expert = trained()[1]
    before = expert.fingerprint()
    strategy = kind(steps=150, lr=0.05, temperature=1.0)
    calls: list[tuple[int, int]] = []
    images, labels = strategy.samples(
        expert, 9, seeded(), progress=lambda stage, step, total, terms: calls.append((step, total))
    )
    assert images.shape == (9, 1, 32, 32) and images.dtype == torch.float32 and labels.shape == (9,)
    assert set(labels.tolist()) <= {2, 3}
    assert float((expert.predict(images) == labels).float().mean()) >= 0.7
    if kind is ModelInversion:
        assert sorted(labels.tolist()) == [2] * 5 + [3] * 4
    assert calls and calls[-1][0] == calls[-1][1]
    assert strategy.last is not None and strategy.last.summary["images"] == 9
    assert expert.fingerprint() == before and all(p.requires_grad for p in expert.model.parameters())


def test_the_generator_decides() -> None:
    expert = trained()[0]
    one, two, other = (ModelInversion(steps=5).samples(expert, 4, seeded(s))[0] for s in (1, 1, 2))
    assert torch.equal(one, two) and not torch.equal(one, other)


def test_inversion_resumes_from_its_checkpoint(tmp_path: Path) -> None:
    expert, strategy = trained()[0], ModelInversion(steps=200)

    def interrupt(stage: str, step: int, total: int, terms: dict[str, float]) -> None:
        if step >= 100:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        strategy.samples(expert, 4, seeded(), progress=interrupt, checkpoint_dir=tmp_path)
    assert (tmp_path / "inversion.pt").is_file()
    resumed = strategy.samples(expert, 4, seeded(), checkpoint_dir=tmp_path)[0]
    assert torch.equal(resumed, strategy.samples(expert, 4, seeded())[0])


@pytest.mark.parametrize("images", [torch.randint(0, 256, (60, 3, 28, 28), dtype=torch.uint8), torch.rand(60, 1, 9, 9)])
def test_auxiliary_data_is_fitted_and_labelled_by_the_expert(images: torch.Tensor) -> None:
    expert = trained()[0]
    strategy = AuxiliaryData(images, pool=40)
    chosen, labels = strategy.samples(expert, 12, seeded())
    assert chosen.shape == (12, 1, 32, 32) and chosen.dtype == torch.float32
    assert torch.equal(expert.predict(chosen), labels)
    low, high = expert.input_spec.bounds()
    assert bool((chosen >= low - 1e-4).all() and (chosen <= high + 1e-4).all())
    assert torch.equal(strategy.samples(expert, 12, seeded())[0], chosen)
    assert len(strategy.samples(expert, 50, seeded())[0]) == 50  # more than the pool


def test_auxiliary_data_is_balanced_when_it_can_be() -> None:
    data, expert = quadrants(), trained()[0]
    split = data.train.of_classes([0, 1])
    _, labels = AuxiliaryData(split.images).samples(expert, 30, seeded())
    assert torch.bincount(labels).tolist() == [15, 15]


def test_descriptions_are_json_and_tell_settings_apart() -> None:
    strategies = [ModelInversion(), ModelInversion(steps=3), DataImpression(), AuxiliaryData(torch.rand(2, 1, 4, 4))]
    texts = {json.dumps(s.describe()) for s in strategies}
    assert len(texts) == 4


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match="unknown field 'step'"):
        ModelInversion(step=3)
    with pytest.raises(ValueError, match=r"recipe must be one of .*got 'dream'"):
        ModelInversion("dream")
    with pytest.raises(ValueError, match="'model_inversion' has targets 'hard', expected 'dirichlet'"):
        DataImpression("model_inversion")
    with pytest.raises(ValueError, match="images must be uint8 or float"):
        AuxiliaryData(torch.zeros(2, 1, 4, 4, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"images must be \(N, c, h, w\)"):
        AuxiliaryData(torch.zeros(2, 4, 4))
    for images in (torch.full((2, 1, 4, 4), 255.0), torch.full((2, 1, 4, 4), float("nan")), -torch.ones(2, 1, 4, 4)):
        with pytest.raises(ValueError, match=r"images must be in \[0, 1\], got values from"):
            AuxiliaryData(images)
    with pytest.raises(ValueError, match="pool must be a positive integer, got 0"):
        AuxiliaryData(torch.rand(2, 1, 4, 4), pool=0)
    with pytest.raises(ValueError, match="count is 3, but there are only 2"):
        AuxiliaryData(torch.rand(2, 1, 4, 4)).samples(trained()[0], 3, seeded())


# competition with the ex-model so far


def js(a: Tensor, b: Tensor) -> Tensor:
    p, q = a.double().softmax(1), b.double().softmax(1)
    middle = (p + q) / 2
    return 0.5 * ((p * (p / middle).log()).sum(1) + (q * (q / middle).log()).sum(1)) / math.log(2)


def test_competing_images_are_those_the_ex_model_judges_otherwise() -> None:
    """Against a rival that knows the classes as well, the images are those on which the two disagree more."""
    expert = trained()[1]
    data = quadrants()
    rival = train_expert(data, [2, 3], epochs=2, seed=9, lr=0.02).expert
    plain = ModelInversion(steps=150, lr=0.05).samples(expert, 8, seeded())[0]
    strategy = AdaptiveInversion(compete=300.0, steps=150, lr=0.05)
    images = strategy.samples(expert, 8, seeded(), rival=rival)[0]
    before, after = (js(expert.logits(x), rival.logits(x)).mean() for x in (plain, images))
    assert float(after) > 1.2 * float(before), (before, after)
    alone = AdaptiveInversion(compete=10.0, steps=150, lr=0.05).samples(expert, 8, seeded(), rival=None)[0]
    assert torch.equal(alone, plain)


def test_the_rival_is_the_ex_model_so_far() -> None:
    rivals: list[Any] = []

    class Spy(AdaptiveInversion):
        def samples(self, *args: Any, rival: Any = None, **options: Any) -> Any:
            rivals.append(rival)
            return super().samples(*args, rival=rival, **options)

    config = DistillationConfig.from_dict({"steps": 5, "batch_size": 8, "buffer_size": 8})
    result = ExModelDistillation(Spy(steps=5), config).run(ExpertStream(list(trained())))
    assert rivals[0] is None and rivals[1].classes == (0, 1) and rivals[1].units == (0, 1, 2, 3)
    assert len(result.buffer) == 8


def test_the_rival_sees_images_converted_to_its_input() -> None:
    """The same network behind another normalisation makes the same images."""
    expert = trained()[1]
    rival = train_expert(quadrants(), [2, 3], epochs=2, seed=9, lr=0.02).expert
    (mean,), (std,) = rival.input_spec.mean, rival.input_spec.std
    spec = InputSpec(1, (32, 32), (mean + 0.1,), (std * 2,))

    class Renormalised(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = rival.model

        def forward(self, x: Tensor) -> Tensor:
            return self.model(x * 2 + 0.1 / std)

    other = Expert(Renormalised(), dataclasses.replace(rival.card, input_spec=spec))
    strategy = AdaptiveInversion(compete=300.0, steps=3, lr=0.05, init="normal", init_scale=0.1)
    same, converted = (strategy.samples(expert, 4, seeded(), rival=r)[0] for r in (rival, other))
    # Adam turns the rounding of a gradient near zero into a whole step, so a few pixels may go another way.
    assert (converted - same).abs().quantile(0.95) < 1e-3
    alone = strategy.samples(expert, 4, seeded(), rival=None)[0]
    assert (same - alone).abs().quantile(0.95) > 0.01


@pytest.mark.parametrize("kind", [ModelInversion, DataImpression, AdaptiveInversion])
def test_a_stream_of_other_architectures_and_inputs(kind: Any) -> None:
    spec = InputSpec(3, (24, 24), (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    other = train_expert(
        quadrants(), [2, 3], architecture="cifar_resnet", spec=spec, epochs=2, arguments={"depth": 8}
    ).expert
    config = DistillationConfig.from_dict({"steps": 5, "batch_size": 8, "buffer_size": 8})
    result = ExModelDistillation(kind(steps=5), config).run(ExpertStream([trained()[0], other]))
    assert result.buffer.images.shape == (8, 1, 32, 32) and result.buffer.images.isfinite().all()
    assert torch.bincount(result.buffer.labels).tolist() == [2, 2, 2, 2]


def test_the_weight_of_the_competition() -> None:
    assert AdaptiveInversion().recipe.competition.compete == 10
    assert AdaptiveInversion(recipes.get("model_inversion").replace(compete=2.0)).recipe.competition.compete == 2
    assert AdaptiveInversion(compete=3).recipe.competition.compete == 3
    with pytest.raises(ValueError, match="compete must be positive"):
        AdaptiveInversion(compete=0)


def test_replay_gives_what_there_is_and_each_expert_its_part() -> None:
    data, expert = quadrants(), trained()[0]
    images, labels = Replay(data).samples(expert, 1000, seeded())
    assert len(images) == 80 and torch.bincount(labels).tolist() == [40, 40]
    first, second = new_instances(data, 2)
    card = dataclasses.replace(expert.card, sha256="0" * 64)
    replay = Replay(data, {card.sha256: second})
    mine = replay.samples(Expert(expert.model, card), 1000, seeded())[0]
    want = expert.input_spec.prepare(second.train.of_classes([0, 1]).images)
    assert torch.equal(mine.flatten(1).sum(1).sort().values, want.flatten(1).sum(1).sort().values)
    assert len(first.train.images) + len(second.train.images) == len(data.train.images)


@pytest.mark.parametrize("kind", [ModelInversion, DataImpression, AdaptiveInversion])
def test_a_run_interrupted_among_its_images_ends_as_if_it_had_not_been(tmp_path: Path, kind: Any) -> None:
    config = DistillationConfig.from_dict({"steps": 5, "batch_size": 8, "buffer_size": 8})

    def run(progress: Any = None, folder: Path | None = None) -> Any:
        method = ExModelDistillation(kind(steps=120, batch_size=2), config)
        return method.run(ExpertStream(list(trained())), progress=progress, checkpoint_dir=folder)

    def stop(stage: str, step: int, _total: int, _terms: dict[str, float]) -> None:
        if stage == "expert 2/2: generate" and step >= 150:
            raise KeyboardInterrupt

    steps: list[int] = []
    straight = run()
    with pytest.raises(KeyboardInterrupt):
        run(stop, tmp_path)
    resumed = run(lambda stage, step, *_: steps.append(step) if stage.endswith("generate") else None, tmp_path)
    assert min(step for step in steps if step > 1) > 150, "nothing was done twice"
    assert resumed.expert.fingerprint() == straight.expert.fingerprint()
    assert torch.equal(resumed.buffer.images, straight.buffer.images)
