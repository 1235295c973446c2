"""Quantisation: rounding and packing by hand, sensitivity, float layers, files, resume, what is refused."""

from __future__ import annotations

import builtins
import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_experts import quadrants
from small_training import SPEC, everything, same, unchanged
from torch import Tensor, nn

from exml_fast.data import InputSpec, NaturalFields
from exml_fast.models import create
from exml_fast.storage import load_json
from exml_fast.training import Training, softened_kl, train_classifier
from exml_fast.transfer import Quantization, compiled, load_quantized, quantize
from exml_fast.transfer.quantization.learned import FakeQuantized, _least_error
from exml_fast.transfer.quantization.result import _packed, _unpacked
from exml_fast.transfer.quantization.sensitivity import most_sensitive

pytest.importorskip("torchao")
COLOUR = InputSpec(3, (32, 32), (0.5,) * 3, (0.25,) * 3)
QUICK: dict[str, Any] = {"steps": 6, "batch_size": 16}
FEW: dict[str, Any] = {"calibration": 32, "sensitivity": 16}


class Small(nn.Module):
    """Three convolutions with a shortcut, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(1, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.inner = nn.Conv2d(8, 8, 3, 1, 1)
        self.norm = nn.BatchNorm2d(8)
        self.outer = nn.Conv2d(8, 8, 3, 2, 1)
        self.head = nn.Linear(8 * 16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = torch.relu(x + self.norm(self.inner(x)))
        return self.head(nn.functional.avg_pool2d(self.outer(x), 2).flatten(1))


@pytest.fixture(scope="module")
def taught() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Small()
    config = Training(steps=80, batch_size=32, lr=5e-3)
    return train_classifier(model, quadrants().train, SPEC, config=config).model


@pytest.fixture(scope="module")
def images() -> Tensor:
    return SPEC.prepare(quadrants().train.images[:48])


@pytest.fixture(scope="module")
def static(taught: nn.Module, images: Tensor) -> Any:
    return quantize(taught, images, spec=SPEC, **FEW)


def by_hand(layer: Any, x: Tensor, scale: float, zero: float, last: int) -> Tensor:
    """What a rounded layer computes, with weights in their own scales."""
    weight = layer.codes().float() * layer.of_weight.scale.view(-1, *[1] * (layer.layer.weight.dim() - 1))
    rounded = ((x / scale + zero).round().clamp(0, last) - zero) * scale
    if isinstance(layer.layer, nn.Linear):
        return nn.functional.linear(rounded, weight, layer.layer.bias)
    return nn.functional.conv2d(rounded, weight, layer.layer.bias, layer.layer.stride, layer.layer.padding)


def test_eight_bits_answer_as_the_float_network(taught: nn.Module, images: Tensor, static: Any) -> None:
    with torch.no_grad():
        wanted, found = taught(images), static.model(images)
    assert (found.argmax(1) == wanted.argmax(1)).all() and not torch.equal(found, wanted)
    torch.testing.assert_close(found, wanted, rtol=0.1, atol=0.05 * float(wanted.std()) + 0.2)
    assert static.widths == dict.fromkeys(["first.0", "inner", "outer", "head"], 8) and not static.float_layers
    # The weights are those of the float network in 255 steps, BatchNorm folded in.
    state = static.model.state_dict()
    codes = [tensor for tensor in state.values() if tensor.dtype == torch.int8]
    assert len(codes) == 4 and all(int(c.abs().max()) == 127 for c in codes)
    first: Any = taught.first
    conv, norm = first[0], first[1]
    folded = conv.weight * (norm.weight / (norm.running_var + norm.eps).sqrt()).view(-1, 1, 1, 1)
    weight = codes[0].float() * state["_scale_0"].view(-1, 1, 1, 1)
    torch.testing.assert_close(weight, folded, rtol=0, atol=float(state["_scale_0"].max()) / 1.9)
    assert static.nbytes < static.float_bytes / 2


def test_the_given_network_is_unchanged(taught: nn.Module, images: Tensor) -> None:
    before = everything(taught)
    quantize(taught, images, spec=SPEC, bits=4, **FEW, **QUICK)
    quantize(taught, images, spec=SPEC, **FEW)
    assert unchanged(before, taught)


def test_sensitive_layers_stay_float(taught: nn.Module, images: Tensor, static: Any) -> None:
    assert static.sensitivity.keys() == static.widths.keys() and min(static.sensitivity.values()) >= 0
    most = max(static.sensitivity, key=lambda name: static.sensitivity[name])
    mixed = quantize(taught, images, spec=SPEC, float_layers=1.0, **FEW)
    assert mixed.float_layers == [most] and most not in mixed.widths
    assert quantize(taught, images, spec=SPEC, float_layers=0.25, **FEW).float_layers == [most]
    assert mixed.nbytes > static.nbytes
    with torch.no_grad():
        wanted = taught(images)
        assert softened_kl(wanted, mixed.model(images)) <= softened_kl(wanted, static.model(images)) + 1e-6


def test_the_sensitivity_of_four_bits_is_the_divergence(taught: nn.Module, images: Tensor) -> None:
    result = quantize(taught, images[:16], spec=SPEC, bits=4, **FEW, **{**QUICK, "lr": 1e-12}, ranges="fixed")
    layers = {name: module for name, module in result.model.named_modules() if isinstance(module, FakeQuantized)}
    for name in layers:
        for other, layer in layers.items():
            layer.switch(other == name)
        with torch.no_grad():
            expected = softened_kl(taught(images[:16]), result.model(images[:16]))
        assert result.sensitivity[name] == pytest.approx(float(expected), rel=0.02, abs=1e-6)


def test_a_rounded_layer_is_what_is_computed_by_hand(taught: nn.Module, images: Tensor) -> None:
    result = quantize(taught, images, spec=SPEC, bits=4, **FEW, **QUICK)
    assert result.widths == {"first.0": 8, "inner": 4, "outer": 4, "head": 8}
    layer: Any = result.model.inner
    x = torch.rand(3, 8, 16, 16)
    scale, zero = layer.of_input.scale.item(), layer.of_input.zero_point.item()
    with torch.no_grad():
        torch.testing.assert_close(layer(x), by_hand(layer, x, scale, round(zero), 15), rtol=1e-4, atol=1e-4)
    assert layer.codes().min() >= -8 and layer.codes().max() <= 7


def test_gradients_pass_the_rounding() -> None:
    layer = FakeQuantized(nn.Linear(3, 2), 4)
    with torch.no_grad():
        layer.fitting = True
        x = torch.tensor([[0.0, 0.5, 1.0], [1.0, 0.2, 0.1]])
        layer(x)
        layer.fitting = False
    x.requires_grad_(True)
    layer(x).sum().backward()
    weight = layer.codes().float() * layer.of_weight.scale.view(-1, 1)
    assert x.grad is not None
    torch.testing.assert_close(x.grad, weight.detach().sum(0).expand(2, 3))


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 30), st.integers(0, 2**16), st.booleans())
def test_no_other_share_of_the_range_has_a_smaller_error(n: int, seed: int, symmetric: bool) -> None:
    values = torch.randn(3, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    values = values if symmetric else values.abs()
    high = values.abs().amax(1, keepdim=True)
    low, first, last = (-high, -8, 7) if symmetric else (torch.zeros_like(high), 0, 15)
    scale, zero = _least_error(values, low, high, first, last, symmetric)
    error = (((values / scale).round() + zero).clamp(first, last) - zero).mul(scale).sub(values).square().mean(1)
    for k in range(1, 21):
        other = (high - low) * k / 20 / 15
        rounded = (values / other).round().clamp(first, last) * other
        assert (error <= (rounded - values).square().mean(1) + 1e-12).all()


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(-8, 7), min_size=1, max_size=17))
def test_two_codes_are_one_byte(codes: list[int]) -> None:
    given_codes = torch.tensor(codes, dtype=torch.int8)
    packed = _packed(given_codes)
    assert len(packed) == (len(codes) + 1) // 2 and packed.dtype == torch.uint8
    assert torch.equal(_unpacked(packed, given_codes.shape), given_codes)


def test_learning_brings_the_answers_back(taught: nn.Module, images: Tensor) -> None:
    def divergence(**changes: Any) -> float:
        result = quantize(taught, images, spec=SPEC, bits=4, edges=4, **FEW, **{**QUICK, **changes})
        with torch.no_grad():
            return float(softened_kl(taught(images), result.model(images), 4.0))

    assert divergence(steps=80) < 0.5 * divergence(steps=1, lr=1e-12)


def test_without_learning_the_weights_stay(taught: nn.Module, images: Tensor) -> None:
    result = quantize(taught, images, spec=SPEC, bits=4, learn=False, **FEW)
    assert torch.equal(result.model.inner.layer.weight, taught.inner.weight) and not result.history  # type: ignore[arg-type, union-attr]


@pytest.mark.parametrize("batch_norm", ["kept", "images"])
def test_running_statistics(batch_norm: Any, taught: nn.Module, images: Tensor) -> None:
    result = quantize(taught, images, spec=SPEC, bits=4, batch_norm=batch_norm, **FEW, **QUICK)
    kept = torch.equal(result.model.norm.running_mean, taught.norm.running_mean)  # type: ignore[arg-type, union-attr]
    assert kept == (batch_norm == "kept")


def test_ranges_that_are_fixed_stay(taught: nn.Module, images: Tensor) -> None:
    def scale(**changes: Any) -> Tensor:
        result = quantize(taught, images, spec=SPEC, bits=4, **FEW, **{**QUICK, **changes})
        return result.model.inner.of_weight.scale.detach()  # type: ignore[union-attr, return-value]

    start = scale(lr=1e-12)
    assert torch.equal(scale(ranges="fixed"), start) and not torch.equal(scale(), start)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("count", [0.0, 1.0])
def test_a_file_gives_the_same_network(
    bits: int, count: float, taught: nn.Module, images: Tensor, tmp_path: Path
) -> None:
    result = quantize(taught, images, spec=SPEC, bits=bits, float_layers=count, **FEW, **QUICK)
    result.save(tmp_path / "small")
    fresh = Small()
    before = everything(fresh)
    loaded = load_quantized(tmp_path / "small", fresh)
    assert unchanged(before, fresh)
    with torch.no_grad():
        assert torch.equal(loaded(images), result.model(images))
    size = (tmp_path / "small" / "model.safetensors").stat().st_size
    assert result.nbytes < size < result.nbytes + 4000
    card = load_json(tmp_path / "small" / "card.json")
    assert card["bits"] == bits and card["sensitivity"].keys() == result.sensitivity.keys()
    with pytest.raises(ValueError, match=r"does not fit|activations must be"):
        load_quantized(tmp_path / "small", nn.Sequential(nn.Conv2d(1, 4, 3), nn.AvgPool2d(30), nn.Flatten()))


@pytest.mark.parametrize("vnni", [False, True])
def test_a_file_is_read_on_a_processor_with_other_instructions(
    vnni: bool, taught: nn.Module, images: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: vnni)
    result = quantize(taught, images, spec=SPEC, **FEW)
    result.save(tmp_path / "small")
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: not vnni)
    loaded = load_quantized(tmp_path / "small", Small())
    with torch.no_grad():
        assert torch.equal(loaded(images), result.model(images))
    card = load_json(tmp_path / "small" / "card.json")
    assert card["settings"]["activation_bits"] == (8 if vnni else 7)


def test_a_card_names_the_architecture(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = create("cifar_resnet", depth=8, num_classes=4)
    result = quantize(model, NaturalFields(), spec=COLOUR, calibration=16, sensitivity=0)
    result.save(tmp_path / "a", architecture="cifar_resnet", arguments={"depth": 8, "num_classes": 4})
    result.save(tmp_path / "b")
    x = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(load_quantized(tmp_path / "a")(x), result.model(x))
    with pytest.raises(ValueError, match="model must be a network"):
        load_quantized(tmp_path / "b")


@pytest.mark.parametrize("source", [True, False])
def test_an_interrupted_learning_continues_bit_for_bit(
    source: bool, taught: nn.Module, images: Tensor, tmp_path: Path
) -> None:
    given_images = NaturalFields() if source else images

    def run(**more: Any) -> Any:
        return quantize(
            taught, given_images, spec=SPEC, bits=4, seed=3, **FEW, **{**QUICK, "steps": 120, "batch_size": 4}, **more
        )

    expected = run()

    def interrupt(stage: str, *_: object) -> None:
        if stage == "quantize":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(checkpoint_dir=tmp_path, progress=interrupt)
    assert list(tmp_path.iterdir())
    found = run(checkpoint_dir=tmp_path)
    assert same(expected.model.state_dict(), found.model.state_dict()) and found.history == expected.history
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_compiled_networks_compute_the_same(taught: nn.Module, images: Tensor, static: Any) -> None:
    simulated = quantize(taught, images, bits=4, spec=SPEC, learn=False)
    with torch.no_grad():
        torch.testing.assert_close(simulated.compiled()(images), simulated.model(images), rtol=1e-3, atol=1e-3)
    with torch.no_grad():
        fast = compiled(taught)
        for some in (images, images[:1]):
            torch.testing.assert_close(fast(some), taught(some), rtol=1e-3, atol=1e-3)
        wanted = static.model(images)
        torch.testing.assert_close(static.compiled()(images), wanted, rtol=0.05, atol=0.05 * float(wanted.std()))


class Branches(Small):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if x.mean() > 0 else -x)


class OneSize(Small):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).view(2, 4) if len(x) == 2 else super().forward(x)


def test_a_network_that_cannot_be_exported_is_not_compiled(images: Tensor) -> None:
    with pytest.raises(ValueError, match="Branches cannot be exported"):
        compiled(Branches())(images)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bits": 3}, "bits must be one of"),
        ({"images": torch.randn(4, 1, 16, 16)}, r"images must be \(N, 1, 32, 32\)"),
        ({"images": torch.full((4, 1, 32, 32), torch.nan)}, "images hold NaN"),
        ({"model": Branches()}, "Branches cannot be exported by torch.export"),
        ({"model": OneSize()}, "OneSize cannot be exported by torch.export"),
        ({"float_layers": 4.0}, "float_layers must leave a layer"),
        ({"float_layers": 1.5}, "float_layers must be a number of layers, or a share below 1"),
        ({"float_layers": 1.0, "sensitivity": 0}, "sensitivity must be positive where layers stay float32"),
        ({"precision": "bfloat16"}, "precision must be 'float32'"),
        ({"device": "cuda"}, "device must be 'cpu' with bits 8"),
        ({"colour": 3}, "colour"),
        ({"model": nn.Sequential(nn.Flatten(), nn.Softmax(1))}, "model has no 2d convolution or linear layer"),
        ({"model": nn.Sequential(nn.Flatten(), nn.Softmax(1)), "bits": 4}, "model has no 2d convolution"),
    ],
)
def test_bad_input_is_named(changes: dict[str, Any], message: str, taught: nn.Module, images: Tensor) -> None:
    arguments: dict[str, Any] = {"model": taught, "images": images, "spec": SPEC} | FEW | changes
    with pytest.raises(ValueError, match=message):
        quantize(arguments.pop("model"), arguments.pop("images"), **arguments)


def test_a_loss_that_is_not_finite_is_named(taught: nn.Module, images: Tensor) -> None:
    with pytest.raises(RuntimeError, match="quantize: the loss is"):
        quantize(taught, images, spec=SPEC, bits=4, **FEW, **{**QUICK, "lr": 1e30})


def test_the_extra_is_named_where_torchao_is_missing(
    monkeypatch: pytest.MonkeyPatch, taught: nn.Module, images: Tensor
) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("torchao"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"pip install 'exml_fast\[quantize\]'"):
        quantize(copy.deepcopy(taught), images, spec=SPEC)


def test_the_most_sensitive_layers_keep_their_order() -> None:
    found = {"a": 0.1, "b": 0.5, "c": 0.3, "d": 0.2}
    assert most_sensitive(found, 0.0) == [] and most_sensitive(found, 2.0) == ["b", "c"]
    assert most_sensitive(found, 0.5) == ["b", "c"]
    with pytest.raises(ValueError, match="float_layers"):
        most_sensitive(found, 4.0)


def test_settings_are_plain_values() -> None:
    config = Quantization().replace(bits=4, lr=0.02)
    assert Quantization(**config.to_dict()) == config and config.training.lr == 0.02
