"""The specification of a network's input: conversions, sources, errors."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from exml_fast.data import InputSpec

GREY = InputSpec(1, (32, 32), (0.1307,), (0.3081,))


@st.composite
def specs(draw: st.DrawFn) -> InputSpec:
    channels = draw(st.integers(1, 4))
    size = (draw(st.integers(1, 9)), draw(st.integers(1, 9)))
    mean = tuple(draw(st.floats(-1, 2)) for _ in range(channels))
    std = tuple(draw(st.floats(0.01, 3)) for _ in range(channels))
    return InputSpec(channels, size, mean, std)


@given(specs())
def test_round_trips(spec: InputSpec) -> None:
    assert InputSpec.from_dict(spec.to_dict()) == spec
    assert InputSpec.of(spec.to_dict()) == spec
    pixels = torch.rand(2, *spec.shape, dtype=torch.float64)
    torch.testing.assert_close(spec.denormalize(spec.normalize(pixels)), pixels)
    low, high = spec.bounds()
    assert low.shape == high.shape == (spec.channels, 1, 1)
    normal = spec.normalize(pixels.float())
    assert bool((normal >= low - 1e-4).all()) and bool((normal <= high + 1e-4).all())


@given(specs(), st.sampled_from([1, 3]), st.integers(1, 20), st.integers(1, 20))
def test_fit_gives_the_shape_and_range(spec: InputSpec, channels: int, height: int, width: int) -> None:
    images = torch.rand(2, channels, height, width)
    if channels == 3 and spec.channels not in (1, 3):
        with pytest.raises(ValueError, match="images of 3 channels cannot be converted"):
            spec.fit(images)
        return
    fitted = spec.fit(images)
    assert fitted.shape == (2, *spec.shape)
    assert float(fitted.min()) >= 0 and float(fitted.max()) <= 1


def test_fit_pads_small_differences_and_converts_channels() -> None:
    images = torch.randint(0, 256, (3, 1, 28, 28), dtype=torch.uint8)
    fitted = GREY.fit(images)
    assert torch.equal(fitted[:, :, 2:30, 2:30], images.float() / 255)
    assert float(fitted[:, :, :2].abs().max()) == 0
    colour = InputSpec(3, (28, 28), (0.5,) * 3, (0.5,) * 3)
    assert torch.equal(colour.fit(images)[:, 2], images[:, 0].float() / 255)
    luma = GREY.fit(torch.ones(1, 3, 32, 32) * torch.tensor([1.0, 0, 0])[:, None, None])
    torch.testing.assert_close(luma, torch.full((1, 1, 32, 32), 0.299))
    assert GREY.fit(torch.ones(1, 1, 100, 50)).mean() == 1
    assert GREY.prepare(images).dtype == torch.float32


def test_of_every_source() -> None:
    torchvision = pytest.importorskip("torchvision")
    spec = InputSpec.of(torchvision.models.ResNet50_Weights.DEFAULT)
    assert spec == InputSpec(3, (224, 224), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert InputSpec.of(GREY) is GREY
    assert InputSpec.of(SimpleNamespace(input_spec=GREY)) is GREY
    config = {"input_size": (3, 64, 48), "mean": (0.5, 0.5, 0.5), "std": (0.2, 0.2, 0.2)}
    model = torch.nn.Identity()
    model.pretrained_cfg = config  # type: ignore[assignment]  # as on timm's models
    assert InputSpec.of(model).size == (64, 48)
    assert InputSpec.of(config) == InputSpec.of(model) == InputSpec.of(SimpleNamespace(**config))


def test_of_a_timm_model() -> None:
    timm = pytest.importorskip("timm")
    assert InputSpec.of(timm.create_model("resnet18")).shape == (3, 224, 224)


@pytest.mark.parametrize("source", [None, 3, torch.nn.Linear(2, 2), "resnet18"])
def test_of_an_unknown_source_lists_the_accepted_ones(source: object) -> None:
    with pytest.raises(ValueError, match=r"give InputSpec\(channels"):
        InputSpec.of(source)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"channels": 0}, "channels must be at least 1"),
        ({"channels": True}, "channels must be an integer"),
        ({"size": (32,)}, r"size\[1\] is missing"),
        ({"size": (32, 0)}, r"size\[1\] must be at least 1"),
        ({"size": 32}, "size must be"),
        ({"mean": (0.1, 0.2)}, "mean must have one number per channel"),
        ({"mean": (float("nan"),)}, r"mean\[0\] must be a finite number"),
        ({"mean": 0.1}, "mean must be a list"),
        ({"std": (0.0,)}, r"std\[0\] must be at least"),
        ({"std": ("a",)}, r"std\[0\] must be a number"),
    ],
)
def test_bad_fields_are_named(change: dict[str, object], message: str) -> None:
    good = {"channels": 1, "size": (32, 32), "mean": (0.1,), "std": (0.3,)}
    with pytest.raises(ValueError, match=message):
        InputSpec.from_dict({**good, **change})


def test_missing_key_and_bad_images_are_named() -> None:
    with pytest.raises(ValueError, match="'std' is missing"):
        InputSpec.from_dict({"channels": 1, "size": (3, 3), "mean": (0.1,)})
    with pytest.raises(ValueError, match="uint8"):
        GREY.normalize(torch.zeros(1, 1, 2, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"images must be \(N, C, H, W\)"):
        GREY.fit(torch.zeros(1, 2, 2))
