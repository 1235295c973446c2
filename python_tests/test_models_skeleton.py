from __future__ import annotations

import time
from typing import Any

import pytest
import torch
from torch import nn

from exml_fast.models import create
from exml_fast.models.skeleton import filled, require_header, require_modest, skeleton

NAMES = {dtype: name for name, dtype in (("F32", torch.float32), ("I64", torch.int64), ("F64", torch.float64))}


def header_of(model: nn.Module) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {name: (NAMES[t.dtype], tuple(t.shape)) for name, t in model.state_dict().items()}


@pytest.mark.parametrize("name", ["lenet5", "cifar_resnet", "torchvision/regnet_x_400mf", "torchvision/swin_t"])
def test_a_skeleton_is_filled_with_the_weights(name: str) -> None:
    before = torch.get_rng_state()
    real = create(name).eval()
    torch.set_rng_state(before)
    shapes = skeleton(name, {}, len(real.state_dict()))
    assert {p.device.type for p in shapes.parameters()} == {"meta"} and not shapes.training
    require_header(header_of(real), shapes)
    model = filled(shapes, name, {}, real.state_dict())
    assert torch.equal(torch.get_rng_state(), before)
    x = torch.randn(2, 1, 32, 32) if name == "lenet5" else torch.randn(2, 3, 64, 64)
    assert torch.equal(model(x), real(x))
    assert all(p.requires_grad for p in model.parameters())


def test_buffers_that_are_not_in_the_file_are_made() -> None:
    pytest.importorskip("timm")
    name, arguments = "timm/beit_base_patch16_224", {"depth": 1, "num_classes": 3, "use_rel_pos_bias": True}
    real = create(name, **arguments).eval()
    assert any(name not in real.state_dict() for name, _ in real.named_buffers())
    model = filled(skeleton(name, arguments, 30), name, arguments, real.state_dict())
    x = torch.randn(1, 3, 224, 224)
    assert torch.equal(model(x), real(x)) and not model.training


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("cifar_resnet", {"depth": 6000000002}, "'depth' must be at most"),
        ("cifar_resnet", {"depth": 60002}, "far more layers than the 100 weights"),
        ("torchvision/mobilenet_v2", {"inverted_residual_setting": [[1, 16, 10**9, 1]]}, "must be at most"),
        ("torchvision/mobilenet_v2", {"inverted_residual_setting": [[1, 16, 10**5, 1]]}, "far more layers"),
        ("torchvision/regnet_x_400mf", {"num_classes": 4000000}, "must be at most"),
        ("torchvision/vit_b_16", {"num_layers": 10**5}, "unexpected|multiple values|far more layers"),
        ("torchvision/swin_t", {"window_size": [10**5, 10**5]}, "multiple values|not accept"),
        ("timm/resnet18", {"layers": [1000000] * 4}, "must be at most"),
        ("timm/resnet18", {"layers": [50000] * 4}, "far more layers"),
        ("timm/resnet18", {"layers": [100000] * 4}, "must hold fewer values"),
        ("timm/vit_tiny_patch16_224", {"depth": 10**5}, "far more layers"),
        ("lenet5", {"num_classes": 1e300}, "must be at most"),
        ("slimmed", {"architecture": "lenet5", "arguments": {}, "widths": {"": [0] * 20_001}}, "must hold fewer"),
    ],
)
def test_constructions_are_bounded(name: str, arguments: dict[str, Any], message: str) -> None:
    if name.startswith("timm/"):
        pytest.importorskip("timm")
    started = time.monotonic()
    with pytest.raises(ValueError, match=message):
        skeleton(name, arguments, 100)
    assert time.monotonic() - started < 10


def test_headers_and_limits() -> None:
    shapes = skeleton("lenet5", {}, 10)
    good = header_of(shapes)
    name = "classifier.4.bias"
    for change, message in (
        ({name: ("F32", (11,))}, r"has shape \(11,\), expected \(10,\)"),
        ({name: ("F16", (10,))}, "has dtype torch.float16"),
        ({name: ("F8_E4M3", (10,))}, "has dtype F8_E4M3"),
        ({"more": ("F32", (1,))}, "unexpected weight 'more'"),
    ):
        with pytest.raises(ValueError, match=message):
            require_header(good | change, shapes)
    with pytest.raises(ValueError, match=f"weight '{name}' is missing"):
        require_header({key: value for key, value in good.items() if key != name}, shapes)
    with pytest.raises(ValueError, match="at most 20000 tensors"):
        skeleton("lenet5", {}, 20_001)
    shapes.register_buffer("large", torch.empty(2**26, device="meta"), persistent=False)
    with pytest.raises(ValueError, match=r"buffers that are not in the file need 0\.3 GB"):
        require_header(good, shapes)
    require_modest({"a": [1, 2.5, None, True, {"b": "text"}]})
