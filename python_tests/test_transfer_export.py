"""Files of pruned and quantised networks: read again without code, and what is refused."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from exml_fast.data import InputSpec, NaturalFields
from exml_fast.models import create
from exml_fast.transfer import export, load_pruned, prune, quantize

pytest.importorskip("torch_pruning")
pytest.importorskip("torchao")
SPEC = InputSpec(3, (16, 16), (0.5,) * 3, (0.25,) * 3)


@pytest.fixture(scope="module")
def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return create("cifar_resnet", depth=8, num_classes=4).eval()


@pytest.fixture(scope="module")
def pruned(network: nn.Module) -> Any:
    return prune(
        network, NaturalFields(), 0.2, spec=SPEC, fine_tuning=None, steps=1, batch_size=8, augmentation={},
        precision="float32",
    )  # fmt: skip


@pytest.fixture(scope="module")
def static(network: nn.Module) -> Any:
    return quantize(network, NaturalFields(), spec=SPEC, calibration=8, sensitivity=0)


@pytest.fixture
def images() -> Tensor:
    return torch.randn(3, 3, 16, 16)


def test_a_pruned_network_travels_as_tensors(network: nn.Module, pruned: Any, images: Tensor, tmp_path: Path) -> None:
    export(pruned, tmp_path / "small.pt")
    saved = torch.load(tmp_path / "small.pt", weights_only=True)
    assert saved["widths"] == pruned.widths and saved["rounds"] == pruned.rounds
    with torch.no_grad():
        found = load_pruned(tmp_path / "small.pt", network)(images)
        torch.testing.assert_close(found, pruned.model(images), rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match=r"does not fit|names"):
        load_pruned(tmp_path / "small.pt", create("cifar_resnet", depth=14))


def test_a_quantised_network_travels_as_tensors(static: Any, network: nn.Module, tmp_path: Path) -> None:
    export(static, tmp_path / "small.pt")
    saved = torch.load(tmp_path / "small.pt", weights_only=True)
    assert saved["tensors"].keys() == static.tensors().keys() and saved["card"]["bits"] == 8
    with pytest.raises(ValueError, match="holds no pruned network"):
        load_pruned(tmp_path / "small.pt", network)


@pytest.mark.parametrize("kind", ["pruned", "static", "learned"])
def test_a_program_needs_no_code_of_the_network(
    kind: str, network: nn.Module, pruned: Any, static: Any, images: Tensor, tmp_path: Path
) -> None:
    result = {"pruned": pruned, "static": static}.get(kind)
    if result is None:
        result = quantize(network, NaturalFields(), spec=SPEC, bits=4, learn=False, calibration=8, sensitivity=0)
    export(result, tmp_path / "small.pt2", spec=SPEC)
    program = torch.export.load(tmp_path / "small.pt2").module()
    with torch.no_grad():
        # A value between two codes may be rounded to the other one.
        torch.testing.assert_close(program(images), result.model(images), rtol=1e-3, atol=5e-3)


@pytest.mark.skipif(importlib.util.find_spec("onnx") is not None, reason="onnx is installed")
def test_the_packages_of_onnx_are_named(pruned: Any, tmp_path: Path) -> None:
    with pytest.raises(ImportError, match=r"ONNX files need onnx .*pip install onnx"):
        export(pruned, tmp_path / "small.onnx", spec=SPEC)


def test_onnx(pruned: Any, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    export(pruned, tmp_path / "small.onnx", spec=SPEC)
    assert [path.name for path in tmp_path.iterdir()] == ["small.onnx"]
    assert (tmp_path / "small.onnx").stat().st_size > sum(t.nbytes for t in pruned.model.parameters())


def test_networks_too_large_for_one_onnx_file_are_refused(
    pruned: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.import_module("exml_fast.transfer.export"), "ONNX_LIMIT", 100)
    with pytest.raises(ValueError, match="at most 100 bytes of weights"):
        export(pruned, tmp_path / "small.onnx", spec=SPEC)


@pytest.mark.parametrize(
    ("path", "message"),
    [("small.pkl", r"path must be a file with the suffix .pt, .pt2, .onnx"), ("small.pt2", "spec must be the network")],
)
def test_bad_input_is_named(path: str, message: str, pruned: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        export(pruned, tmp_path / path)
    with pytest.raises(ValueError, match="result must be of prune or quantize"):
        export(pruned.model, tmp_path / "small.pt")
