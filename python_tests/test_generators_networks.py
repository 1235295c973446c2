from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from exml_fast.generators import DeconvolutionGenerator, UpsamplingGenerator, networks


def of(network: nn.Module, kind: type[nn.Module]) -> list[nn.Module]:
    return [module for module in network.modules() if isinstance(module, kind)]


def test_upsampling_is_table_iv() -> None:
    network = UpsamplingGenerator()
    (linear,) = of(network, nn.Linear)
    assert (linear.in_features, linear.out_features) == (256, 128 * 8 * 8)
    shapes = [tuple(conv.weight.shape) for conv in of(network, nn.Conv2d)]
    assert shapes == [(128, 128, 3, 3), (64, 128, 3, 3), (3, 64, 3, 3)]
    assert [norm.num_features for norm in of(network, nn.BatchNorm2d)] == [128, 128, 64, 3]
    assert len(of(network, nn.LeakyReLU)) == 2


def test_deconvolution_is_table_v() -> None:
    network = DeconvolutionGenerator(8, size=(64, 32))
    shapes = [conv.weight.shape[1] for conv in of(network, nn.ConvTranspose2d)]
    assert shapes == [512, 256, 128, 64] and all(c.stride == (2, 2) for c in of(network, nn.ConvTranspose2d))
    assert [norm.num_features for norm in of(network, nn.BatchNorm2d)] == [512, 512, 256, 128, 64, 3]
    assert len(of(network, nn.LeakyReLU)) == 4
    assert network(torch.randn(2, 8)).shape == (2, 3, 64, 32)


def test_upsampling_computes_the_layers_of_the_table_one_by_one() -> None:
    network = UpsamplingGenerator(5, 3, 2, (8, 12))
    latents = torch.randn(4, 5)
    linear, (one, two, image) = of(network, nn.Linear)[0], of(network, nn.Conv2d)

    def normalised(x: torch.Tensor) -> torch.Tensor:
        return nn.functional.batch_norm(x, None, None, training=True)

    x = normalised(linear(latents).view(4, 2, 3, 6).permute(0, 3, 1, 2))
    for conv in (one, two):
        x = nn.functional.conv2d(nn.functional.interpolate(x, scale_factor=2), conv.weight, padding=1)
        x = nn.functional.leaky_relu(normalised(x), 0.2)
    x = normalised(nn.functional.conv2d(x, image.weight, image.bias, padding=1).tanh())
    assert torch.allclose(network.train()(latents), x, atol=1e-5)


@given(
    kind=st.sampled_from([(UpsamplingGenerator, 4), (DeconvolutionGenerator, 16)]),
    sides=st.tuples(st.integers(1, 3), st.integers(1, 3)), channels=st.integers(1, 4), latent=st.integers(1, 9),
    width=st.integers(1, 4), helper=st.booleans(),
)  # fmt: skip
def test_images_have_the_asked_shape_and_the_helper_normalises_them(
    kind: tuple[type[nn.Module], int], sides: tuple[int, int], channels: int, latent: int, width: int, helper: bool
) -> None:
    make, factor = kind
    size = [factor * side for side in sides]
    network = make(latent, width, channels, size, helper)
    images = network.train()(torch.randn(16, latent))
    assert images.shape == (16, channels, *size)
    if helper:
        assert torch.allclose(images.mean((0, 2, 3)), torch.zeros(channels), atol=1e-4)
        assert not any(name.startswith("helper.weight") for name, _ in network.named_parameters())
    else:
        assert images.abs().max() <= 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"latent_size": 0}, "latent_size must be a positive integer, got 0"),
        ({"latent_size": 2.5}, "latent_size must be a positive integer"),
        ({"width": 0}, "width must be a positive integer"),
        ({"channels": -1}, "channels must be a positive integer"),
        ({"size": [30, 32]}, r"size must be \(height, width\), both positive multiples of 4, got \[30, 32\]"),
        ({"size": 32}, "size must be"),
        ({"size": [0, 4]}, "size must be"),
        ({"helper_bn": 1}, "helper_bn must be true or false"),
        ({"widht": 3}, "argument 'widht' is unknown to 'upsampling'.*did you mean 'width'"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        networks.create("upsampling", **arguments)


def test_unknown_architecture_is_named() -> None:
    with pytest.raises(ValueError, match=r"architecture must be one of upsampling, deconvolution.*did you mean"):
        networks.create("upsamplin")


@pytest.fixture
def registered() -> Iterator[None]:
    yield
    networks.NETWORKS.pop("mine", None)


def test_register(registered: None) -> None:
    networks.register("mine", nn.Linear)
    assert isinstance(networks.create("mine", in_features=2, out_features=3), nn.Linear)
    with pytest.raises(ValueError, match="'mine' is taken"):
        networks.register("mine", nn.Linear)
    networks.register("mine", nn.Bilinear, replace=True)
    for name in ("upsampling", "a b"):
        with pytest.raises(ValueError, match="name"):
            networks.register(name, nn.Linear, replace=True)
    with pytest.raises(ValueError, match="factory"):
        networks.register("other", 3)  # type: ignore[arg-type]
