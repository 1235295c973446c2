from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_experts import quadrants, trained
from torch import nn

from exml_fast.continual import Card, Expert, train_expert
from exml_fast.data import Augmentation, InputSpec
from exml_fast.models import OWN, create, register
from exml_fast.storage import sha256


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    first, _ = trained()
    Expert(first.model, first.card).save(tmp_path)
    return tmp_path


def edit_card(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    card = json.loads((folder / "card.json").read_text())
    change(card)
    (folder / "card.json").write_text(json.dumps(card))


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    """Change the weights and make the hash fit them."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    edit_card(folder, lambda card: card.update(sha256=sha256(folder / "model.safetensors")))


def test_train_expert_learns_its_classes() -> None:
    data = quadrants()
    epochs: list[tuple[int, int, float]] = []
    expert = train_expert(
        data, [1, 3], epochs=4, lr=0.02, head="own", seed=3,
        progress=lambda stage, step, total, terms: epochs.append((step, total, terms["loss"])),
    ).expert  # fmt: skip
    assert expert.units == expert.classes == (1, 3) and expert.card.class_names == ("north-east", "south-east")
    assert expert.card.training["accuracy"] == 1.0
    assert [e[0] for e in epochs] == [1, 2, 3, 4] and epochs[-1][2] < epochs[0][2]
    test = data.test.of_classes([1, 3])
    assert torch.equal(expert.predict(test.normalized(data.spec)), test.labels)
    assert expert.logits(test.normalized(data.spec), batch_size=7).shape == (20, 2)
    assert not expert.model.training


def test_training_is_reproducible_and_leaves_the_random_state_alone() -> None:
    before = torch.get_rng_state()
    one, two, other = (train_expert(quadrants(), [0, 1], epochs=1, seed=s).expert.fingerprint() for s in (5, 5, 6))
    assert one == two != other
    assert torch.equal(torch.get_rng_state(), before)


def test_an_interrupted_training_ends_bit_for_bit_as_if_it_had_not_been(tmp_path: Path) -> None:
    options: dict[str, Any] = {"epochs": 3, "seed": 5, "momentum": 0.9, "augmentation": Augmentation(shift=2, flip=0.5)}

    def stop(stage: str, step: int, total: int, terms: dict[str, float]) -> None:
        if step == 2:
            raise KeyboardInterrupt

    straight = train_expert(quadrants(), [0, 1], **options)
    with pytest.raises(KeyboardInterrupt):
        train_expert(quadrants(), [0, 1], progress=stop, checkpoint_dir=tmp_path, **options)
    assert [file.name for file in tmp_path.iterdir()] == ["expert.pt"]
    with pytest.raises(ValueError, match="belongs to another run"):
        train_expert(quadrants(), [0, 2], checkpoint_dir=tmp_path, **options)
    epochs: list[int] = []
    resumed = train_expert(
        quadrants(), [0, 1], progress=lambda stage, step, *_: epochs.append(step), checkpoint_dir=tmp_path, **options
    )
    assert epochs == [2, 3] and not list(tmp_path.iterdir())
    assert resumed.expert.fingerprint() == straight.expert.fingerprint() and resumed.history == straight.history


def test_training_options_do_what_they_say() -> None:
    plain = train_expert(quadrants(), [0, 1], epochs=1, seed=5).expert.fingerprint()
    still = train_expert(quadrants(), [0, 1], epochs=1, seed=5, augmentation=Augmentation(shift=0)).expert
    assert still.fingerprint() == plain
    shifted = train_expert(quadrants(), [0, 1], epochs=1, seed=5, augmentation=Augmentation(shift=2, flip=0.5)).expert
    assert shifted.fingerprint() != plain and shifted.card.training["augmentation"]["flip"] == 0.5
    cycle = train_expert(quadrants(), [0, 1], epochs=4, seed=5, lr=0.05, schedule="onecycle").expert
    assert cycle.card.training["accuracy"] == 1.0 and cycle.card.training["schedule"] == "onecycle"


def test_training_in_bfloat16_follows_float32() -> None:
    kinds = ("float32", "bfloat16")
    one, two = (train_expert(quadrants(), [0, 1], epochs=3, lr=0.02, seed=1, precision=kind).expert for kind in kinds)
    assert two.card.training["accuracy"] == 1.0
    for (name, a), b in zip(one.model.state_dict().items(), two.model.state_dict().values(), strict=True):
        assert a.dtype == b.dtype and b.is_contiguous() and not torch.equal(a, b), name
        assert (a - b).norm() < 0.1 * a.norm(), name


def test_full_head_has_a_unit_for_every_class() -> None:
    first, second = trained()
    assert first.units == second.units == (0, 1, 2, 3)
    assert first.classes == (0, 1) and second.classes == (2, 3)
    assert first.positions([1, 0]).tolist() == [1, 0]
    with pytest.raises(ValueError, match=r"classes \[9\] are not among"):
        first.positions([9])
    predictions = second.predict(quadrants().test.normalized(quadrants().spec))
    assert set(predictions.tolist()) <= {2, 3}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": [7]}, r"classes \[7\] are not in 'quadrants'"),
        ({"head": "both"}, "head must be"),
        ({"batch_size": 1000}, "batch_size 1000 is larger"),
        ({"schedule": "steps"}, "schedule must be one of .*, got 'steps'"),
        ({"precision": "half"}, "precision must be one of 'auto', 'float32' or 'bfloat16', got 'half'"),
        ({"steps": 5}, "steps must be left out, as epochs decide it, got 5"),
        ({"rate": 5}, "unknown field 'rate'"),
        ({"epochs": 1.5}, "epochs must be an integer of at least 0, got 1.5"),
    ],
)
def test_train_expert_bad_input(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        train_expert(quadrants(), **options)


def test_diverging_training_is_an_error() -> None:
    with pytest.raises(RuntimeError, match=r"the loss is .* lower lr"):
        train_expert(quadrants(), epochs=2, lr=1e38)


def test_an_expert_leaves_the_mode_of_the_callers_network_alone() -> None:
    card = trained()[0].card
    model = create(card.architecture, **card.arguments)
    expert = Expert(model, card)
    expert.logits(torch.zeros(1, 1, 32, 32))
    assert all(module.training for module in model.modules())
    assert expert.model is not model and not any(module.training for module in expert.model.modules())
    assert Expert(model.eval(), card).model is model


def test_save_and_load(folder: Path) -> None:
    first, _ = trained()
    before = torch.get_rng_state()
    loaded = Expert.load(folder)
    assert torch.equal(torch.get_rng_state(), before)
    assert loaded.card == dataclasses.replace(first.card, sha256=loaded.card.sha256)
    assert loaded.fingerprint() == first.fingerprint() and not loaded.model.training
    x = torch.randn(3, 1, 32, 32)
    assert torch.equal(loaded.logits(x), first.logits(x))
    assert sorted(p.name for p in folder.iterdir()) == ["card.json", "model.safetensors"]


def test_other_libraries_round_trip(tmp_path: Path) -> None:
    pytest.importorskip("timm")
    spec = InputSpec(3, (64, 64), (0.5,) * 3, (0.5,) * 3)
    # RegNet's constructor does not work on "meta"; SqueezeNet ends in a convolution.
    for name in ("torchvision/regnet_y_400mf", "timm/resnet10t", "torchvision/squeezenet1_1"):
        card = Card(name, {"num_classes": 2}, (4, 7), (4,), ("a", "b"), spec)
        expert = Expert(create(name, num_classes=2), card)
        expert.save(tmp_path)
        assert Expert.load(tmp_path).fingerprint() == expert.fingerprint()


def test_card_round_trip() -> None:
    card = trained()[0].card
    assert Card.from_dict(json.loads(json.dumps(card.to_dict()))) == card


def test_wrong_hash(folder: Path) -> None:
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "model.safetensors").write_bytes(bytes(data))
    with pytest.raises(ValueError, match=r"model\.safetensors: sha256 is"):
        Expert.load(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("classifier.4.bias"), "weight 'classifier.4.bias' is missing"),
        (lambda t: t.update(extra=torch.zeros(1)), "unexpected weight 'extra'"),
        (lambda t: t.update({"classifier.4.bias": torch.zeros(5)}), r"'classifier.4.bias' has shape \(5,\)"),
        (lambda t: t["features.0.weight"].view(-1)[3].fill_(float("nan")), "'features.0.weight' is not finite"),
        (lambda t: t["classifier.0.bias"][0].fill_(float("inf")), "'classifier.0.bias' is not finite"),
        (lambda t: t.update({"features.0.bias": torch.zeros(6).half()}), "'features.0.bias' has dtype torch.float16"),
    ],
)
def test_bad_weights_are_refused_by_name(folder: Path, change: Callable[[Any], None], message: str) -> None:
    edit_weights(folder, change)
    with pytest.raises(ValueError, match=message):
        Expert.load(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 2}, "format_version must be 1, got 2"),
        ({"format_version": None}, "format_version must be 1"),
        ({"format_version": True}, "format_version must be 1, got True"),
        ({"architecture": "x" * 201}, "architecture must be a string of at most 200 characters"),
        ({"units": [0, 1, 2, 2**63]}, r"units\[3\] must be less than"),
        ({"input_spec": {"channels": 1, "size": [32, 32], "mean": [0], "std": [5e-324]}}, r"std\[0\] must be at least"),
        ({"input_spec": {"channels": 1, "size": [32, 10**6], "mean": [0], "std": [1]}}, r"size\[1\] must be at most"),
        ({"class_names": [1] * 300_000}, r"class_names\[0\] must be a string"),
        ({"architecture": "resnet"}, "unknown architecture 'resnet'"),
        ({"architecture": "subprocess.run"}, "unknown architecture"),
        ({"architecture": ["lenet5"]}, "architecture must be a string, got"),
        ({"arguments": {"num_classes": 4, "activation": "relu6"}}, "activation must be one of"),
        ({"arguments": {"num_classes": 4, "code": "import os"}}, "'code' is unknown to 'lenet5'"),
        ({"arguments": {"num_classes": 4, "__init__": 1}}, "'__init__' of 'lenet5' is not accepted"),
        ({"arguments": {"num_classes": 10**5}}, r"has shape \(4, 84\), expected \(100000, 84\)"),
        ({"arguments": {"num_classes": 10**13}}, "'num_classes' must be at most 131072 in size, got 10000000000000"),
        ({"arguments": {"num_classes": [[10**5] * 5]}}, "'num_classes' must hold fewer values"),
        ({"arguments": {"num_classes": "9" * 1001}}, "'num_classes' must have at most 1000 characters, got 1001"),
        ({"arguments": []}, "arguments must be a table"),
        ({"units": [0, 1, 2]}, "class_names must name the 3 units"),
        ({"units": [0, 1, 2, 2]}, "units must not repeat"),
        ({"units": [0, 1, 2, -3]}, r"units\[3\] must be at least 0, got -3"),
        ({"units": [0, 1, 2, True]}, r"units\[3\] must be an integer, got True"),
        ({"units": []}, "units must be a list of at least 1"),
        ({"classes": [8]}, r"classes \[8\] are not among the units"),
        ({"classes": "01"}, "classes must be a list"),
        ({"class_names": [1, 2, 3, 4]}, r"class_names\[0\] must be a string"),
        ({"input_spec": {"channels": 1}}, "input_spec.size is missing"),
        ({"input_spec": 3}, "input_spec: expected a table"),
        ({"input_spec": {"channels": 1, "size": 3, "mean": [0], "std": [1]}}, "input_spec.size must be"),
        ({"input_spec": {"input_size": 5}}, "input_spec.*"),
        ({"training": 1}, "training must be a table"),
        ({"licence": 1}, "licence must be a string"),
        ({"sha256": None}, "sha256 must be a string"),
        ({"surprise": 1}, "unknown field 'surprise'"),
        ({"licensce": None}, "unknown field 'licensce'.*did you mean 'licence'"),
    ],
)
def test_bad_cards_are_refused_by_field(folder: Path, change: dict[str, Any], message: str) -> None:
    edit_card(folder, lambda card: card.update(change))
    with pytest.raises(ValueError, match=message):
        Expert.load(folder)


def test_more_units_than_outputs(folder: Path) -> None:
    edit_card(folder, lambda card: card.update(units=[0, 1, 2, 3, 4], class_names=list("abcde")))
    with pytest.raises(ValueError, match="the model has 4 outputs, the card lists 5 units"):
        Expert.load(folder)


@pytest.mark.parametrize("name", [f.name for f in dataclasses.fields(Card)])
def test_missing_fields_are_named(folder: Path, name: str) -> None:
    edit_card(folder, lambda card: card.pop(name))
    with pytest.raises(ValueError, match=name):
        Expert.load(folder)


def test_files_that_are_not_there_or_damaged(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"card\.json is missing"):
        Expert.load(tmp_path / "nowhere")
    (folder / "card.json").write_text("[]")
    with pytest.raises(ValueError, match="expected a JSON object"):
        Expert.load(folder)
    (folder / "card.json").write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        Expert.load(folder)


def test_pickles_beside_or_instead_of_the_weights_are_not_read(folder: Path) -> None:
    torch.save({"x": 1}, folder / "model.safetensors")
    edit_card(folder, lambda card: card.update(sha256=sha256(folder / "model.safetensors")))
    with pytest.raises(ValueError, match="not a valid safetensors file"):
        Expert.load(folder)


SPEC = InputSpec(1, (32, 32), (0.3,), (0.3,))


def test_a_registered_network_is_trained_saved_and_loaded(tiny: type[nn.Module], tmp_path: Path) -> None:
    expert = train_expert(quadrants(), [1, 3], head="own", epochs=1, architecture="tiny").expert
    assert isinstance(expert.model, tiny) and expert.card.arguments == {"num_classes": 2}
    expert.save(tmp_path)
    assert Expert.load(tmp_path).fingerprint() == expert.fingerprint()
    del OWN["tiny"]
    with pytest.raises(ValueError, match=r"unknown architecture 'tiny'.*models\.register"):
        Expert.load(tmp_path)
    with pytest.raises(ValueError, match=r"cannot be saved.*unknown architecture 'tiny'.*models\.register"):
        expert.save(tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_a_network_of_ones_own_becomes_an_expert(tiny: type[nn.Module], tmp_path: Path) -> None:
    model = tiny(num_classes=3, width=7).train()
    before = torch.get_rng_state()
    options: dict[str, Any] = {"units": [4, 2, 9], "class_names": ["a", "b", "c"]}
    expert = Expert.wrap(model, SPEC, [2, 9], architecture="tiny", arguments={"width": 7}, **options)
    assert expert.card.arguments == {"num_classes": 3, "width": 7} and expert.card.class_names == ("a", "b", "c")
    assert expert.units == (4, 2, 9) and expert.classes == (2, 9) and not expert.model.training
    assert model.training and expert.model is not model
    expert.save(tmp_path)
    assert torch.equal(torch.get_rng_state(), before)
    x = torch.randn(3, 1, 32, 32)
    assert torch.equal(Expert.load(tmp_path).logits(x), model.eval()(x))

    wrong = Expert.wrap(model, SPEC, [2, 9], architecture="tiny", **options)  # of another width
    with pytest.raises(ValueError, match=r"cannot be saved.*weight 'body\.weight' has shape \(7.*models\.register"):
        wrong.save(tmp_path)
    nameless = Expert.wrap(model, SPEC, [4, 2, 9])
    assert nameless.card.architecture == "Tiny" and nameless.card.class_names == ("4", "2", "9")
    with pytest.raises(ValueError, match=r"unknown architecture 'Tiny' \(did you mean 'tiny'.*models\.register"):
        nameless.save(tmp_path)
    assert Expert.load(tmp_path).fingerprint() == expert.fingerprint(), "a refused expert overwrites nothing"


def test_networks_that_are_no_experts(tiny: type[nn.Module]) -> None:
    with pytest.raises(ValueError, match="has 3 outputs, the card lists 2 units"):
        Expert.wrap(tiny(num_classes=3), SPEC, [0, 1])
    with pytest.raises(ValueError, match="does not take the images"):
        Expert.wrap(tiny(num_classes=2), InputSpec(3, (32, 32), (0.0,) * 3, (1.0,) * 3), [0, 1])
    with pytest.raises(ValueError, match="class_names must name the 2 units, got 1"):
        Expert.wrap(tiny(num_classes=2), SPEC, [0, 1], class_names=["a"])

    class Named(tiny):  # type: ignore[misc, valid-type]
        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"logits": super().forward(x)}

    with pytest.raises(ValueError, match="must return its logits as a tensor, got dict"):
        Expert.wrap(Named(num_classes=2), SPEC, [0, 1])


def test_a_factory_that_needs_real_tensors(tiny: type[nn.Module], tmp_path: Path) -> None:
    def factory(num_classes: int) -> nn.Module:
        return tiny(num_classes, width=2 + int(torch.zeros(1).item()))

    expert = Expert.wrap(tiny(num_classes=2, width=2), SPEC, [0, 1], architecture="tiny", arguments={"width": 2})
    expert.save(tmp_path)
    register("tiny", lambda num_classes, width: factory(num_classes), replace=True)
    with pytest.raises(ValueError, match=r"'tiny' cannot be built on the device meta.*must not use the values"):
        Expert.load(tmp_path)
    with pytest.raises(ValueError, match=r"cannot be saved.*must not use the values"):
        expert.save(tmp_path)
