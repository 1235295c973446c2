from __future__ import annotations

from typing import Any

import pytest
import torch
from small_networks import BN, CE, SPEC, network
from torch import Tensor, nn

from exml_fast.continual import Expert
from exml_fast.data import InputSpec
from exml_fast.inversion import Synthesizer, invert, recipes


def state_of(model: nn.Module) -> list[object]:
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    flags = [m.training for m in model.modules()], [p.requires_grad for p in model.parameters()]
    return [hooks, flags, [p.grad for p in model.parameters()]]


@pytest.mark.parametrize("recipe", ["deep_inversion", "model_inversion", "model_inversion/cifar10"])
def test_a_digits_teacher_recognises_its_images(digits_teacher: tuple[nn.Module, InputSpec], recipe: str) -> None:
    model, spec = digits_teacher
    before = {k: v.clone() for k, v in model.state_dict().items()}
    steps = {"model_inversion": 1000}.get(recipe, 300)
    result = invert(model, per_class=4, recipe=recipe, spec=spec, steps=steps)
    assert torch.equal(result.labels, torch.arange(10).repeat(4))
    accuracy = (model(result.images).argmax(1) == result.labels).double().mean().item()
    assert accuracy >= 0.95 and accuracy == result.summary["teacher_accuracy"]
    if "bn" in result.history:
        assert result.history["bn"][-1] < 0.5 * result.history["bn"][0]
    assert result.history["loss"][-1] < 0.5 * result.history["loss"][0]
    assert all(len(values) == steps for values in result.history.values())
    assert result.images.dtype == torch.float32 and result.images.shape == (40, *spec.shape)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_soft_targets_are_met_and_their_argmax_is_the_label(digits_teacher: tuple[nn.Module, InputSpec]) -> None:
    model, spec = digits_teacher
    result = invert(
        model, per_class=6, recipe="data_impressions/mnist", spec=spec, steps=400, lr=0.05, temperature=1.0, bn=0.0,
        l2=0.0, blur=0.0, jitter=0,
    )  # fmt: skip
    assert result.targets is not None and torch.equal(result.targets.argmax(1), result.labels)
    assert (model(result.images).softmax(1) - result.targets).abs().max() < 0.1


def test_classes_and_units_are_class_ids() -> None:
    model = network()
    result = invert(model, [30, 10], per_class=3, recipe=CE, spec=SPEC, units=[10, 20, 30, 40, 50], steps=100)
    assert result.labels.tolist() == [30, 10] * 3
    model.eval()
    assert model(result.images).argmax(1).tolist() == [2, 0] * 3
    soft = CE.replace(targets="dirichlet", betas=(0.1,), label="argmax", dirichlet_over="classes", steps=2)
    result = invert(model, [30, 10], per_class=8, recipe=soft, spec=SPEC, units=[10, 20, 30, 40, 50])
    assert result.targets is not None and set(result.labels.tolist()) == {10, 30}
    assert (result.targets[:, [1, 3, 4]] == 0).all()


def test_the_recipe_is_that_of_the_size_unless_named() -> None:
    model = nn.Sequential(nn.Conv2d(1, 3, 3, 2), nn.BatchNorm2d(3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    for side, name, steps in (
        (12, "deep_inversion", {}),
        (96, "deep_inversion/imagenet-transferable", {"coarse_steps": (1,)}),
    ):
        spec = InputSpec(1, (side, side), (0.5,), (0.25,))
        assert invert(model, [0], per_class=1, spec=spec, steps=1, **steps).summary["recipe"]["name"] == name
        assert Synthesizer(model, spec).recipe.name == name


def test_networks_of_one_size_are_inverted_at_that_size() -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features = nn.Sequential(nn.Conv2d(1, 3, 3, 32, 1), nn.BatchNorm2d(3), nn.Flatten())
            self.head = nn.Linear(27, 4)

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.head(self.features(x))
            return logits

    spec = InputSpec(1, (96, 96), (0.5,), (0.25,))
    chosen = Synthesizer(Fixed(), spec).recipe
    full = recipes.get("deep_inversion/imagenet-transferable")
    steps = full.optimisation.steps + sum(full.optimisation.coarse_steps)
    assert chosen == full.replace(coarse_steps=(), steps=steps)
    assert invert(Fixed(), [0], per_class=1, spec=spec, steps=1).summary["recipe"]["name"] == full.name
    with pytest.raises(ValueError, match=r"coarse_steps begin with images of .*Fixed.*needs coarse_steps=\(\)"):
        invert(Fixed(), [0], per_class=1, recipe=full.name, spec=spec)


@pytest.mark.parametrize("classes", [["goldfish"], 5, [1.7], [True], "01"])
def test_classes_are_integers(classes: Any) -> None:
    with pytest.raises(ValueError, match="classes must be a sequence of class ids, integers, got"):
        invert(network(), classes, per_class=1, recipe=CE, spec=SPEC)


def test_anything_with_model_spec_and_units_is_understood() -> None:
    class Wrapped:
        model, input_spec, units, classes = network(), SPEC, (4, 5, 6, 7, 8), (5, 7)

    assert invert(Wrapped(), per_class=2, recipe=CE, steps=1).labels.tolist() == [5, 7, 5, 7]


def test_classes_of_an_expert_have_names(digits_teacher: tuple[nn.Module, InputSpec]) -> None:
    model, spec = digits_teacher
    names = ["zero", "one", "two", *map(str, range(3, 10))]
    expert = Expert.wrap(
        model, spec, range(10), class_names=names, architecture="lenet5", arguments={"num_classes": 10}
    )
    assert invert(expert, classes=["two", 7], per_class=1, recipe="noise", steps=1).labels.tolist() == [2, 7]
    with pytest.raises(ValueError, match="classes must be one of zero, one"):
        invert(expert, classes=["tow"], recipe="noise", steps=1)


def test_same_seed_same_images_whatever_the_global_state() -> None:
    model = network()
    soft = BN.replace(targets="dirichlet", betas=(1.0, 0.1))
    first = invert(model, recipe=soft, spec=SPEC, per_class=4, seed=3)
    torch.manual_seed(99)
    torch.rand(7)
    state = torch.get_rng_state()
    second = invert(model, recipe=soft, spec=SPEC, per_class=4, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.images, second.images) and torch.equal(first.labels, second.labels)
    assert first.targets is not None and second.targets is not None and torch.equal(first.targets, second.targets)
    assert not torch.equal(first.images, invert(model, recipe=soft, spec=SPEC, per_class=4, seed=4).images)


@pytest.mark.parametrize("training", [False, True])
def test_the_teacher_is_given_back_as_it_was(training: bool) -> None:
    model = network().train(training)
    model[-1].bias.requires_grad_(False)
    before, weights = state_of(model), {k: v.clone() for k, v in model.state_dict().items()}
    with torch.no_grad():
        invert(model, recipe=BN, spec=SPEC)
    with torch.inference_mode():
        invert(model, recipe=BN, spec=SPEC, steps=2)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        invert(model, recipe=BN, spec=SPEC, progress=stop)
    assert state_of(model) == before
    assert all(torch.equal(v, weights[k]) for k, v in model.state_dict().items())


def test_errors_name_the_argument() -> None:
    model = network()
    with pytest.raises(ValueError, match=r"classes \[5\].*0 to 4"):
        invert(model, [0, 5], recipe=CE, spec=SPEC)
    with pytest.raises(ValueError, match="classes"):
        invert(model, [], recipe=CE, spec=SPEC)
    with pytest.raises(ValueError, match="per_class"):
        invert(model, per_class=0, recipe=CE, spec=SPEC)
    with pytest.raises(ValueError, match=r"recipe must be one of .*got 'dream'"):
        invert(model, recipe="dream", spec=SPEC)
    with pytest.raises(ValueError, match=r"unknown field 'step' .*did you mean 'steps'"):
        invert(model, recipe=CE, spec=SPEC, step=3)
    with pytest.raises(ValueError, match="InputSpec"):
        invert(model, recipe=CE)
    with pytest.raises(ValueError, match=r"rejects images of shape \(2, 3, 12, 12\)"):
        invert(model, recipe=CE, spec=InputSpec(3, (12, 12), (0.5,) * 3, (0.5,) * 3))
    with pytest.raises(ValueError, match="units must be 5"):
        invert(model, recipe=CE, spec=SPEC, units=[0, 1])
    with pytest.raises(ValueError, match="labels"):
        Synthesizer(model, SPEC, CE).run(torch.zeros(3))
    with pytest.raises(ValueError, match=r"nn\.Module"):
        invert(3, recipe=CE, spec=SPEC)


def test_outputs_other_than_logits_are_refused() -> None:
    class Pair(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x.flatten(1), x

    with pytest.raises(ValueError, match="got tuple"):
        invert(Pair(), recipe=CE, spec=SPEC)
    with pytest.raises(ValueError, match=r"logits.*\(2, 6, 5, 5\)"):
        invert(network()[:1], recipe=CE, spec=SPEC)


def test_double_networks_and_networks_without_parameters() -> None:
    assert invert(network().double(), recipe=BN, spec=SPEC, steps=2).images.dtype == torch.float32
    assert len(invert(nn.Flatten(), [3, 4], per_class=1, recipe=CE, spec=SPEC, steps=2)) == 2
