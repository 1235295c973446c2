"""The fused ops against the same formulas in PyTorch: published style, best eager, and compiled.

    make bench                                    # writes benches/results/ops-cpu.json
    pytest benches/bench_ops.py --benchmark-only  # the same

Each case times all contenders, forward and backward, in interleaved rounds. The table that pytest-benchmark prints
shows the fused op only. The shapes occur in the networks of benches/inversion.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from measure import RESULTS, as_row, interleaved, peak_mb, saved_mb, write_results
from torch import Tensor, nn

from exml_fast import ops
from exml_fast.engine.conv_plan import ConvShape, Plan
from exml_fast.engine.frozen_conv import FrozenConv2d
from exml_fast.ops import reference

DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
IMAGES = [(256, 1, 32, 32), (64, 3, 32, 32), (8, 3, 224, 224)]
NORMS: dict[str, tuple[tuple[int, ...], str, bool]] = {
    "lenet-bn": ((256, 6, 28, 28), "tanh", False),
    "resnet18-cifar": ((64, 64, 32, 32), "relu", False),
    "mobilenet_v2": ((16, 96, 64, 64), "relu6", False),
    "resnet50": ((4, 256, 56, 56), "relu", True),
}
# Batch, channels, number of 5×5 filters, and size of the image.
LENETS: dict[str, tuple[int, int, int, int]] = {
    "LeNet-5, first": (256, 1, 6, 32),
    "LeNet-5, second": (256, 6, 16, 14),
    "Caffe's LeNet, second": (256, 20, 50, 14),
}
# 3×3 convolutions: batch, channels (also the number of filters), and size of the image.
CONVOLUTIONS: dict[str, tuple[int, int, int]] = {
    "ResNet-18, first stage": (64, 64, 32),
    "ResNet-18, last stage": (64, 512, 4),
    "ResNet-50, first stage": (4, 64, 56),
    "ResNet-50, last stage": (4, 512, 7),
}
ROWS: dict[str, list[dict[str, Any]]] = {device: [] for device in DEVICES}


@pytest.fixture(scope="module", autouse=True)
def results_file() -> Any:
    yield
    for device, rows in ROWS.items():
        if rows:
            write_results(RESULTS / f"ops-{device}.json", rows, device)


def published_bn_hook(x: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    """Yin 2020, Eq. 4, as published hooks compute it: a pass for the mean, and the variance of a transposed copy."""
    batch_mean = x.mean((0, 2, 3))
    batch_var = x.permute(1, 0, 2, 3).contiguous().view(x.shape[1], -1).var(1, unbiased=False)
    return torch.norm(var - batch_var, 2) + torch.norm(mean - batch_mean, 2)


def compiled(f: Callable[..., Tensor], *args: Any) -> Callable[[], Tensor]:
    torch._dynamo.reset()
    g = torch.compile(f, fullgraph=True, dynamic=False)
    return lambda: g(*args)


def forward_backward(f: Callable[[], Tensor], leaves: Sequence[Tensor]) -> Callable[[], Any]:
    return lambda: torch.autograd.grad(f(), leaves)


def run(benchmark: Any, case: dict[str, Any], contenders: dict[str, Callable[[], Tensor]], *leaves: Tensor) -> None:
    device = leaves[0].device.type
    steps = {name: forward_backward(f, leaves) for name, f in contenders.items()}
    timings = interleaved(steps, device=device)
    ours = timings["exml_fast"].median
    row = {
        **case,
        "device": device,
        "dtype": str(leaves[0].dtype).removeprefix("torch."),
        "ms": as_row(timings),
        "times_faster": {name: round(t.median / ours, 2) for name, t in timings.items() if name != "exml_fast"},
        "peak_mb": {name: round(peak_mb(step, device), 2) for name, step in steps.items()},
        "saved_mb": {name: round(saved_mb(f, *leaves), 3) for name, f in contenders.items()},
    }
    ROWS[device].append(row)
    benchmark.extra_info.update(row)
    benchmark.pedantic(steps["exml_fast"], rounds=10, warmup_rounds=1)
    print(case, row["times_faster"])


def run_calls(benchmark: Any, case: dict[str, Any], contenders: dict[str, Callable[[], Any]], device: str) -> None:
    """As :func:`run`, for ops without a backward pass."""
    timings = interleaved(contenders, device=device)
    ours = timings["exml_fast"].median
    row = {
        **case,
        "device": device,
        "dtype": "float32",
        "ms": as_row(timings),
        "times_faster": {name: round(t.median / ours, 2) for name, t in timings.items() if name != "exml_fast"},
    }
    ROWS[device].append(row)
    benchmark.extra_info.update(row)
    benchmark.pedantic(contenders["exml_fast"], rounds=10, warmup_rounds=1)
    print(case, row["times_faster"])


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("layer", LENETS)
def test_lane_conv2d(benchmark: Any, layer: str, memory_format: str) -> None:
    """Convolutions of few channels in training: the output, and the gradients of x, the weight and the bias."""
    batch, inputs, outputs, size = LENETS[layer]
    x, weight = (
        torch.randn(shape).to(memory_format=FORMATS[memory_format]).requires_grad_()
        for shape in ((batch, inputs, size, size), (outputs, inputs, 5, 5))
    )
    bias = torch.randn(outputs, requires_grad=True)
    contenders = {
        "exml_fast": lambda: ops.lane_conv2d(x, weight, bias, (0, 0)).sum(),
        "pytorch": lambda: F.conv2d(x, weight, bias).sum(),
        "compiled": compiled(lambda *leaves: F.conv2d(*leaves).sum(), x, weight, bias),
    }
    case = {"op": "lane_conv2d", "shape": list(x.shape), "layer": layer, "memory_format": memory_format}
    run(benchmark, case, contenders, x, weight, bias)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layer", CONVOLUTIONS)
def test_winograd_conv2d(benchmark: Any, layer: str, dtype: torch.dtype) -> None:
    """Frozen 3×3 convolutions in channels_last. "packed" uses weights in the layout of oneDNN."""
    batch, channels, size = CONVOLUTIONS[layer]
    x = torch.randn(batch, channels, size, size).to(dtype, memory_format=torch.channels_last).requires_grad_()
    conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False).requires_grad_(False)
    weight = conv.weight.to(dtype, memory_format=torch.channels_last)
    shape = ConvShape.of(conv, x.shape, channels_last=True)
    ours, packed = (FrozenConv2d(conv, dtype, shape, Plan(way, "convolution", way)) for way in ("winograd", "packed"))
    contenders = {
        "exml_fast": lambda: ours(x).sum(),
        "pytorch": lambda: F.conv2d(x, weight, padding=1).sum(),
        "packed": lambda: packed(x).sum(),
        "compiled": compiled(lambda x: F.conv2d(x, weight, padding=1).sum(), x),
    }
    run(benchmark, {"op": "winograd_conv2d", "shape": list(x.shape), "layer": layer}, contenders, x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_frozen_conv2d(benchmark: Any, dtype: torch.dtype) -> None:
    """A first layer of stride 2, whose input gradient is slow in oneDNN. Ours: packed forward, subpixel backward."""
    x = torch.randn(4, 3, 224, 224).to(dtype, memory_format=torch.channels_last).requires_grad_()
    conv = nn.Conv2d(3, 64, 7, 2, 3, bias=False).requires_grad_(False)
    weight = conv.weight.to(dtype, memory_format=torch.channels_last)
    shape = ConvShape.of(conv, x.shape, channels_last=True)
    ours = FrozenConv2d(conv, dtype, shape, Plan("packed", "subpixel", "windows"))
    contenders = {
        "exml_fast": lambda: ours(x).sum(),
        "pytorch": lambda: F.conv2d(x, weight, None, 2, 3).sum(),
        "compiled": compiled(lambda x: F.conv2d(x, weight, None, 2, 3).sum(), x),
    }
    run(benchmark, {"op": "frozen_conv2d", "shape": list(x.shape), "layer": "ResNet-50, stem"}, contenders, x)


@pytest.mark.parametrize("shape", [(256, 6, 28, 28), (256, 16, 10, 10)], ids=str)
def test_average_pool2d(benchmark: Any, shape: tuple[int, ...]) -> None:
    """The two pooling layers of LeNet-5, in channels_last."""
    x = torch.randn(shape).to(memory_format=torch.channels_last).requires_grad_()
    contenders = {
        "exml_fast": lambda: ops.average_pool2d(x, (2, 2)).sum(),
        "pytorch": lambda: reference.average_pool2d(x, (2, 2)).sum(),
        "compiled": compiled(lambda x: reference.average_pool2d(x, (2, 2)).sum(), x),
    }
    run(benchmark, {"op": "average_pool2d", "shape": list(shape), "memory_format": "channels_last"}, contenders, x)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("shape", [(64, 64, 32, 32), (4, 256, 56, 56), (256, 16, 28, 28)], ids=str)
def test_bn_match(benchmark: Any, shape: tuple[int, ...], memory_format: str, device: str) -> None:
    x = torch.randn(shape, device=device).to(memory_format=FORMATS[memory_format]).requires_grad_()
    mean, var = torch.randn(shape[1], device=device), torch.rand(shape[1], device=device) + 0.5
    contenders = {
        "exml_fast": lambda: ops.bn_match(x, mean, var),
        "published": lambda: published_bn_hook(x, mean, var),
        "var_mean": lambda: reference.bn_match(x, mean, var),
        "compiled": compiled(reference.bn_match, x, mean, var),
    }
    run(benchmark, {"op": "bn_match", "shape": list(shape), "memory_format": memory_format}, contenders, x)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layers", [3, 53])
def test_match_statistics(benchmark: Any, layers: int, device: str) -> None:
    """As many statistics as a LeNet and as a ResNet-50 have."""
    channels = (
        [6, 16, 120] if layers == 3 else [64] * 14 + [128] * 12 + [256] * 15 + [512] * 8 + [1024] * 2 + [2048] * 2
    )
    lists = [[torch.rand(c, device=device) + 0.5 for c in channels] for _ in range(4)]
    means, variances = ([t.requires_grad_() for t in ts] for ts in lists[:2])

    def published() -> Tensor:
        layers = zip(*lists, strict=True)
        return torch.stack([torch.norm(var - v, 2) + torch.norm(mean - m, 2) for m, v, mean, var in layers]).sum()

    contenders = {
        "exml_fast": lambda: ops.match_statistics(*lists),
        "published": published,
        "compiled": compiled(lambda m, v: reference.match_statistics(m, v, *lists[2:]), means, variances),
    }
    run(benchmark, {"op": "match_statistics", "layers": layers}, contenders, *means, *variances)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize(("shape", "activation", "residual"), list(NORMS.values()), ids=list(NORMS))
def test_frozen_bn_act(
    benchmark: Any,
    shape: tuple[int, ...],
    activation: str,
    residual: bool,
    memory_format: str,
    dtype: torch.dtype,
    device: str,
) -> None:
    """BatchNorm in evaluation mode, residual, activation, and the statistics that DeepInversion compares."""
    xs = [torch.randn(shape, device=device).to(dtype, memory_format=FORMATS[memory_format]) for _ in range(2)]
    x, other = (t.requires_grad_() for t in xs)
    added = other if residual else None
    leaves = [x, other] if residual else [x]
    gamma, var = (torch.rand(shape[1], device=device) + 0.5 for _ in range(2))
    beta, mean = (torch.randn(shape[1], device=device) for _ in range(2))
    scale = gamma / (var + 1e-5).sqrt()
    shift = beta - scale * mean

    def loss(y: Tensor, batch_mean: Tensor, batch_var: Tensor) -> Tensor:
        return y.sum() + batch_mean.sum() + batch_var.sum()

    def published() -> Tensor:
        batch_mean = x.mean((0, 2, 3))
        batch_var = x.permute(1, 0, 2, 3).contiguous().view(shape[1], -1).var(1, unbiased=False)
        y = F.batch_norm(x, mean, var, gamma, beta)
        return loss(reference.ACTIVATIONS[activation](y if added is None else y + added), batch_mean, batch_var)

    def plain(x: Tensor, scale: Tensor, shift: Tensor, added: Tensor | None) -> Tensor:
        return loss(*reference.frozen_bn_act(x, scale.to(dtype), shift.to(dtype), added, activation))

    contenders = {
        "exml_fast": lambda: loss(*ops.frozen_bn_act(x, scale, shift, added, activation)),
        "published": published,
        "var_mean": lambda: plain(x, scale, shift, added),
        "compiled": compiled(plain, x, scale, shift, added),
    }
    case = {
        "op": "frozen_bn_act",
        "shape": list(shape),
        "activation": f"residual and {activation}" if residual else activation,
        "memory_format": memory_format,
    }
    run(benchmark, case, contenders, *leaves)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("shape", IMAGES, ids=str)
def test_image_prior(benchmark: Any, shape: tuple[int, ...], memory_format: str, device: str) -> None:
    x = torch.randn(shape, device=device).to(memory_format=FORMATS[memory_format]).requires_grad_()

    def plain(x: Tensor) -> Tensor:
        return torch.stack(reference.image_prior(x)).sum()

    contenders = {
        "exml_fast": lambda: torch.stack(ops.image_prior(x)).sum(),
        "pytorch": lambda: plain(x),
        "compiled": compiled(plain, x),
    }
    run(benchmark, {"op": "image_prior", "shape": list(shape), "memory_format": memory_format}, contenders, x)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("dtype", "memory_format"), [(torch.float32, "contiguous"), (torch.bfloat16, "channels_last")], ids=str
)
@pytest.mark.parametrize("shape", IMAGES, ids=str)
def test_jitter_flip(
    benchmark: Any, shape: tuple[int, ...], memory_format: str, dtype: torch.dtype, device: str
) -> None:
    """Includes the cast to the network's dtype and format. The other contenders have a constant shift and flip."""
    x = torch.randn(shape, device=device, requires_grad=True)
    shift, flip = torch.tensor([2, -1], device=device), torch.tensor(True, device=device)
    format_ = FORMATS[memory_format]

    def published(x: Tensor) -> Tensor:
        return torch.roll(x, (2, -1), (2, 3)).flip(3).to(dtype, memory_format=format_)

    weight = torch.randn(shape, device=device).to(dtype, memory_format=format_)
    contenders = {
        "exml_fast": lambda: (ops.jitter_flip(x, shift, flip, dtype, format_) * weight).sum(),
        "published": lambda: (published(x) * weight).sum(),
        "compiled": compiled(lambda x: (published(x) * weight).sum(), x),
    }
    case = {"op": "jitter_flip", "shape": list(shape), "memory_format": memory_format, "to": str(dtype)[6:]}
    run(benchmark, case, contenders, x)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("target", ["indices", "soft"])
@pytest.mark.parametrize("shape", [(32, 10), (256, 10), (64, 1000), (256, 1000)], ids=str)
def test_soft_cross_entropy(benchmark: Any, shape: tuple[int, int], target: str, device: str) -> None:
    logits = torch.randn(shape, device=device, requires_grad=True)
    labels = torch.randint(shape[1], (shape[0],), device=device)
    goal = labels if target == "indices" else torch.softmax(torch.randn(shape, device=device), 1)
    contenders = {
        "exml_fast": lambda: ops.soft_cross_entropy(logits, goal, 2.0),
        "pytorch": lambda: F.cross_entropy(logits / 2.0, goal),
    }
    run(benchmark, {"op": "soft_cross_entropy", "shape": list(shape), "target": target}, contenders, logits)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shape", [(32, 10), (256, 10), (64, 1000), (256, 1000)], ids=str)
def test_jensen_shannon(benchmark: Any, shape: tuple[int, int], device: str) -> None:
    """Adaptive DeepInversion needs the gradients of both logits."""
    teacher, student = (torch.randn(shape, device=device, requires_grad=True) for _ in range(2))
    contenders = {
        "exml_fast": lambda: ops.jensen_shannon(teacher, student),
        "pytorch": lambda: reference.jensen_shannon(teacher, student),
        "compiled": compiled(reference.jensen_shannon, teacher, student),
    }
    run(benchmark, {"op": "jensen_shannon", "shape": list(shape)}, contenders, teacher, student)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("classes", [10, 1000])
def test_dirichlet_targets(benchmark: Any, classes: int, device: str) -> None:
    """Against torch.distributions, whose float32 draws are inexact for small concentrations."""
    similarity = torch.rand(classes, classes, device=device) + 0.1
    labels = torch.arange(256, device=device) % classes
    betas = torch.full((256,), 0.1, device=device)
    contenders: dict[str, Callable[[], Any]] = {
        "exml_fast": lambda: ops.dirichlet_targets(similarity, labels, betas),
        "torch.distributions": lambda: torch.distributions.Dirichlet(betas[:, None] * similarity[labels]).sample(),
        "float64 in log space": lambda: reference.dirichlet_targets(similarity, labels, betas),
    }
    run_calls(benchmark, {"op": "dirichlet_targets", "shape": [256, classes]}, contenders, device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("shape", IMAGES, ids=str)
def test_adam_clip(benchmark: Any, shape: tuple[int, ...], memory_format: str, device: str) -> None:
    """Against torch.optim.Adam (plain and fused) plus a clamp, and against both compiled as one function."""
    start = torch.randn(shape, device=device).to(memory_format=FORMATS[memory_format])
    images = [start.clone() for _ in range(4)]
    grad = torch.randn_like(start)
    low, high = torch.full((shape[1],), -2.0, device=device), torch.full((shape[1],), 2.0, device=device)
    moments = [torch.zeros_like(grad) for _ in range(4)]
    step, lr = torch.tensor(1, device=device), torch.tensor(0.05, device=device)
    settings = ((0.9, 0.999), 1e-8, low, high)

    def optimiser(x: Tensor, fused: bool) -> Callable[[], Any]:
        x.requires_grad_().grad = grad
        adam = torch.optim.Adam([x], lr=0.05, fused=fused)
        low_pixels, high_pixels = low.view(-1, 1, 1), high.view(-1, 1, 1)

        def update() -> Tensor:
            adam.step()
            with torch.no_grad():
                return torch.clamp(x, low_pixels, high_pixels, out=x)

        return update

    contenders: dict[str, Callable[[], Any]] = {
        "exml_fast": lambda: ops.adam_clip_(images[0], grad, *moments[:2], step, lr, *settings),
        "torch.optim": optimiser(images[1], False),
        "torch.optim fused": optimiser(images[2], True),
        "compiled": compiled(reference.adam_clip_, images[3], grad, *moments[2:], step, lr, *settings),
    }
    case = {"op": "adam_clip_", "shape": list(shape), "memory_format": memory_format}
    run_calls(benchmark, case, contenders, device)
