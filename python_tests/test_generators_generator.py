from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from exml_fast.data import InputSpec
from exml_fast.generators import Generator, GeneratorCard, UpsamplingGenerator
from exml_fast.generators.generator import draw_latents, recalibrate
from exml_fast.storage import sha256

SPEC = InputSpec(3, (8, 8), (0.5, 0.4, 0.3), (0.25, 0.2, 0.3))


def generator(seed: int = 0, latent_size: int = 7) -> Generator:
    made = Generator.create("upsampling", SPEC, latent_size=latent_size, width=4, classes=(3, 5), seed=seed)
    recalibrate(made.network, latent_size, torch.Generator().manual_seed(1), 4, 32)
    return made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    generator().save(tmp_path)
    return tmp_path


def edit_card(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    card = json.loads((folder / "card.json").read_text())
    change(card)
    (folder / "card.json").write_text(json.dumps(card))


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    """Change the weights and make the hash fit them."""
    tensors = load_file(folder / "generator.safetensors")
    change(tensors)
    save_file(tensors, folder / "generator.safetensors")
    edit_card(folder, lambda card: card.update(sha256=sha256(folder / "generator.safetensors")))


def test_sample_is_decided_by_the_seed_alone() -> None:
    made, before = generator(), torch.get_rng_state()
    images = made.sample(5, seed=3)
    assert images.shape == (5, 3, 8, 8) and images.dtype == torch.float32 and not images.requires_grad
    torch.rand(9)
    assert torch.equal(images, made.sample(5, seed=3)) and not torch.equal(images, made.sample(5, seed=4))
    torch.set_rng_state(before)
    Generator.create("upsampling", SPEC, latent_size=7, width=4)
    assert torch.equal(torch.get_rng_state(), before)
    assert made.sample(0).shape == (0, 3, 8, 8)


def test_sample_ignores_the_mode_of_the_network() -> None:
    made = generator()
    images = made.sample(5)
    made.network.train()
    assert torch.equal(images, made.sample(5)) and made.network.training


@given(count=st.integers(1, 20), batch_size=st.integers(1, 20), latent_size=st.integers(1, 40))
def test_sample_does_not_depend_on_batch_size_or_count(count: int, batch_size: int, latent_size: int) -> None:
    made = generator(latent_size=latent_size)
    images = made.sample(20, seed=2)
    assert torch.allclose(made.sample(count, seed=2, batch_size=batch_size), images[:count], atol=1e-5)


def test_evaluation_mode_makes_the_images_of_training_mode() -> None:
    made = generator()
    latents = draw_latents(512, 7, torch.Generator().manual_seed(0), "cpu")
    with torch.no_grad():
        evaluated = made.network(latents)
        trained = copy.deepcopy(made.network).train()(latents)
    assert (evaluated - trained).abs().mean() < 0.1 * trained.std()
    assert all(n.momentum == 0.1 for n in made.network.modules() if isinstance(n, nn.BatchNorm2d))


def test_another_process_makes_the_same_images(folder: Path) -> None:
    code = (
        "import sys, torch, exml_fast as xf; torch.rand(5);"
        "torch.save(xf.Generator.load(sys.argv[1]).sample(6, seed=4, batch_size=4), sys.argv[2])"
    )
    subprocess.run([sys.executable, "-c", code, str(folder), str(folder / "images.pt")], check=True)
    assert torch.allclose(torch.load(folder / "images.pt"), generator().sample(6, seed=4), atol=1e-5)


def test_draw_is_an_image_source() -> None:
    made, own = generator(), torch.Generator().manual_seed(3)
    assert torch.equal(made.draw(5, SPEC, own), made.sample(5, seed=3))
    assert not torch.equal(made.draw(5, SPEC, own), made.sample(5, seed=3)), "the generator goes on"
    other = InputSpec(1, (12, 12), (0.1,), (0.3,))
    images = made.draw(2, other, torch.Generator())
    low, high = other.bounds()
    assert images.shape == (2, 1, 12, 12) and bool(((images >= low) & (images <= high)).all())
    described = made.describe()
    assert described["source"] == "Generator" and described["classes"] == [3, 5]
    assert described["weights"] == made.fingerprint() and json.dumps(described) and made.domain


def test_save_and_load(folder: Path) -> None:
    before = torch.get_rng_state()
    made = Generator.load(folder)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(made.sample(4), generator().sample(4)) and not made.network.training
    assert made.classes == (3, 5) and made.spec == SPEC and made.latent_size == 7
    assert made.card is not None and made.card.sha256 == sha256(folder / "generator.safetensors")
    assert GeneratorCard.from_dict(json.loads((folder / "card.json").read_text())) == made.card


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda card: card.update(sha256="0" * 64), "sha256 is .*, the card says '000"),
        (lambda card: card.update(format_version=2), "format_version must be 1, got 2"),
        (lambda card: card.pop("latent_size"), "latent_size is missing"),
        (lambda card: card.update(latent_size=0), "latent_size must be at least 1, got 0"),
        (lambda card: card.update(latent_size=8), "does not take latents of latent_size 8"),
        (lambda card: card.update(architecture="os.system"), "architecture must be one of"),
        (lambda card: card["arguments"].update(wdth=3), "'wdth' is unknown"),
        (lambda card: card["arguments"].update(width=10**4), "has shape"),
        (lambda card: card["arguments"].update(size=[8, 12]), "has shape"),
        (lambda card: card["input_spec"].update(size=[12, 12]), "must make images"),
        (lambda card: card.update(classes=[3, 3]), "must not repeat"),
        (lambda card: card.update(other=1), "unknown field 'other'"),
    ],
)
def test_load_names_what_is_wrong_on_the_card(
    folder: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    edit_card(folder, change)
    with pytest.raises(ValueError, match=message):
        Generator.load(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("image.bias"), "weight 'image.bias' is missing"),
        (lambda t: t.update(more=torch.ones(1)), "unexpected weight 'more'"),
        (lambda t: t["image.bias"].fill_(torch.nan), "weight 'image.bias' is not finite everywhere"),
        (lambda t: t.update({"image.bias": torch.ones(3, dtype=torch.float64)}), "has dtype"),
    ],
)
def test_load_names_a_wrong_weight(
    folder: Path, change: Callable[[dict[str, torch.Tensor]], None], message: str
) -> None:
    edit_weights(folder, change)
    with pytest.raises(ValueError, match=message):
        Generator.load(folder)


def test_load_of_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no generator in"):
        Generator.load(tmp_path)


class Other(nn.Module):
    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        return latents[:, :, None, None].expand(-1, 3, 8, 8)


def test_save_refuses_what_load_could_not_rebuild(tmp_path: Path) -> None:
    own = Generator(nn.Sequential(nn.Linear(2, 3), Other()), 2, SPEC)
    assert own.sample(2).shape == (2, 3, 8, 8)
    with pytest.raises(ValueError, match=r"cannot be saved.*it has no card.*register"):
        own.save(tmp_path / "own")
    other = Generator(UpsamplingGenerator(7, 5, 3, (8, 8)), 7, SPEC, generator().card)
    with pytest.raises(ValueError, match=r"cannot be saved.*has shape"):
        other.save(tmp_path / "own")
    broken = generator()
    nn.init.constant_(broken.network.image.bias, torch.inf)  # type: ignore[union-attr]
    with pytest.raises(ValueError, match=r"'image.bias' is not finite"):
        broken.save(tmp_path / "own")
    assert not (tmp_path / "own").exists()


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_give_no_images(value: float) -> None:
    made = generator()
    nn.init.constant_(made.network.image.bias, value)  # type: ignore[union-attr]
    with pytest.raises(RuntimeError, match=r"'image.bias' is not finite everywhere"):
        made.sample(2)


def test_bad_arguments_are_named() -> None:
    network = UpsamplingGenerator(7, 4, 3, (8, 8))
    with pytest.raises(ValueError, match="latent_size must be a positive integer, got 0"):
        Generator(network, 0, SPEC)
    with pytest.raises(ValueError, match="latent_size must be a positive integer, got 0"):
        Generator.create("upsampling", SPEC, latent_size=0)
    with pytest.raises(ValueError, match="does not take latents of latent_size 8"):
        Generator(network, 8, SPEC)
    with pytest.raises(ValueError, match=r"must make images \(2, 1, 8, 8\) of two latents, got \(2, 3, 8, 8\)"):
        Generator(network, 7, InputSpec(1, (8, 8), (0.0,), (1.0,)))
    with pytest.raises(ValueError, match=r"network must be a torch.nn.Module"):
        Generator(None, 7, SPEC)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="latent_size must be 7, as the card says"):
        Generator(network, 8, SPEC, generator().card)
    for arguments, name in (((-1,), "count"), ((1, 0, 0), "batch_size")):
        with pytest.raises(ValueError, match=name):
            generator().sample(*arguments)


def test_the_given_network_keeps_its_mode() -> None:
    network = UpsamplingGenerator(7, 4, 3, (8, 8)).train()
    made = Generator(network, 7, SPEC)
    assert network.training and made.network is not network and not made.network.training
    assert made.to("cpu").network is not made.network
