"""Copies among synthetic images are found, and only copies; membership is measured by ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import exml_fast as xf
from exml_fast.cli.app import app
from exml_fast.data import InputSpec, Split
from exml_fast.evaluation import Leaks, leaks, membership
from exml_fast.inversion import Result
from exml_fast.report.leaks import leak_verdict
from exml_fast.storage import load_json

SPEC = InputSpec(1, (8, 8), (0.5,), (0.25,))


def drawn(count: int, seed: int) -> Split:
    """Smooth random images of three classes, which differ in brightness."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    coarse = torch.rand(count, 1, 4, 4, generator=generator)
    images = nn.functional.interpolate(coarse, (8, 8), mode="bilinear") * 0.7 + 0.1 * labels.view(-1, 1, 1, 1)
    return Split(images.clamp(0, 1), labels)


def result_of(split: Split) -> Result:
    return Result(SPEC.prepare(split.images), split.labels, None, SPEC, {}, 1.0, {})


TRAINING, HELD_OUT = drawn(200, 1), drawn(200, 2)


def learned(split: Split, steps: int, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 3))
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    for _ in range(steps):
        loss = nn.functional.cross_entropy(network(SPEC.prepare(split.images)), split.labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network.eval()


def test_memorised_images_are_found() -> None:
    copies = Split(TRAINING.images[:40] + 0.002, TRAINING.labels[:40])
    found = leaks(result_of(copies), TRAINING, HELD_OUT, networks={"teacher": learned(TRAINING, 100)})
    assert found.copies and found.pixels.copies and found.features is not None and found.features.copies
    assert found.pixels.nearest.tolist() == list(range(40)) and found.pixels.near == 1
    assert "The images hold copies of training images: 100.0 %" in leak_verdict(found)


def test_a_few_copies_among_many_images_are_found() -> None:
    mixed = Split(torch.cat([TRAINING.images[:12], drawn(88, 5).images]), torch.zeros(100, dtype=torch.int64))
    assert leaks(result_of(mixed), TRAINING, HELD_OUT).copies


@pytest.mark.parametrize("seed", range(3, 9))
def test_unseen_images_are_no_copies(seed: int) -> None:
    found = leaks(result_of(drawn(150, seed)), TRAINING, HELD_OUT)
    assert not found.copies and found.pixels.near <= 0.05
    assert "No sign of copies" in leak_verdict(found)


def test_distances_are_those_of_a_plain_loop() -> None:
    found = leaks(result_of(drawn(5, 7)), TRAINING, HELD_OUT)
    pixels = result_of(drawn(5, 7)).pixels()
    for i in range(5):
        each = (pixels[i] - TRAINING.images).square().mean((1, 2, 3)).sqrt()
        assert float(found.pixels.synthetic[i]) == pytest.approx(float(each.min()), abs=1e-5)
        assert int(found.pixels.nearest[i]) == int(each.argmin())
        share = (1 + int((found.pixels.held_out <= found.pixels.synthetic[i]).sum())) / 201
        assert float(found.pixels.shares[i]) == pytest.approx(share)


def test_membership_is_that_of_all_pairs() -> None:
    generator = torch.Generator().manual_seed(0)
    members, others = torch.randint(0, 9, (40,), generator=generator), torch.randint(0, 7, (30,), generator=generator)
    found = membership(members.float(), others.float())
    wins = (members[:, None] > others).double() + 0.5 * (members[:, None] == others).double()
    assert found.auc == pytest.approx(float(wins.mean()))
    metrics = pytest.importorskip("sklearn.metrics")
    truth = np.r_[np.ones(40), np.zeros(30)]
    assert found.auc == pytest.approx(metrics.roc_auc_score(truth, torch.cat([members, others]).numpy()))
    certain = membership(torch.ones(200), torch.zeros(200))
    assert certain.auc == 1 and certain.found == 1 and certain.reveals
    assert not membership(torch.rand(200, generator=generator), torch.rand(200, generator=generator)).reveals


def test_a_network_that_has_memorised_reveals_its_training_images() -> None:
    generator = torch.Generator().manual_seed(3)
    random = Split(TRAINING.images, torch.randint(0, 3, (200,), generator=generator))
    unseen = Split(HELD_OUT.images, torch.randint(0, 3, (200,), generator=generator))
    others = Split(drawn(200, 9).images, torch.randint(0, 3, (200,), generator=generator))
    networks: dict[str, Any] = {"memorised": (learned(random, 300), SPEC), "other": (learned(others, 300), SPEC)}
    references = [(learned(drawn(200, 20 + i), 100, i), SPEC) for i in range(2)]
    found = leaks(result_of(drawn(20, 4)), random, unseen, networks=networks, references=references)
    assert found.loss["memorised"].reveals and found.loss["memorised"].auc > 0.9
    assert not found.loss["other"].reveals
    assert found.calibrated["memorised"].reveals and not found.calibrated["other"].reveals
    stored = found.to_dict()
    assert stored["membership"]["memorised"]["reveals"] and set(stored["distances"]) == {"pixels", "features"}


def test_bad_arguments_are_named() -> None:
    images = result_of(drawn(5, 3))
    with pytest.raises(ValueError, match="held_out must hold at least 100 images, got 50"):
        leaks(images, TRAINING, drawn(50, 2))
    few = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    with pytest.raises(ValueError, match=r"network 'few' has no logit for the classes \[2\]"):
        leaks(images, TRAINING, HELD_OUT, networks={"few": few})
    with pytest.raises(ValueError, match="members must be finite"):
        membership(torch.tensor([float("nan")]), torch.zeros(3))
    with pytest.raises(ValueError, match=r"network 'none' must be a torch\.nn\.Module"):
        leaks(images, TRAINING, HELD_OUT, networks={"none": 3})


def test_the_command_writes_a_page(tmp_path: Path) -> None:
    pytest.importorskip("jinja2")
    data: dict[str, Any] = {}
    for name, split in (("train", TRAINING), ("test", HELD_OUT)):
        data[f"x_{name}"] = (nn.functional.interpolate(split.images, (32, 32))[:, 0] * 255).byte().numpy()
        data[f"y_{name}"] = split.labels.numpy()
    np.savez(tmp_path / "data.npz", **data)
    loaded = xf.data.load(str(tmp_path / "data.npz"))
    expert = xf.continual.train_expert(loaded, architecture="lenet5", epochs=1).expert
    expert.save(tmp_path / "teacher")
    chosen = loaded.train.subset(torch.arange(30))
    images = Result(expert.input_spec.prepare(chosen.images), chosen.labels, None, expert.input_spec, {}, 1.0, {})
    images.save(tmp_path / "images")
    out = tmp_path / "out"
    arguments = [tmp_path / "images", "--data", tmp_path / "data.npz", "--network", tmp_path / "teacher", "--out", out]
    done = CliRunner().invoke(app, ["leaks", *map(str, arguments)])
    assert done.exit_code == 0 and "The images hold copies" in done.stdout, done.output
    page = (out / "report" / "index.html").read_text()
    assert "The images hold copies" in page and "Who was in the training set" in page and "data-tip" in page
    assert load_json(out / "leaks.json")["copies"] is True


def test_a_result_without_networks_has_no_features() -> None:
    found = leaks(result_of(drawn(5, 3)), TRAINING, HELD_OUT)
    assert isinstance(found, Leaks) and found.features is None and found.loss == {} and found.calibrated == {}
