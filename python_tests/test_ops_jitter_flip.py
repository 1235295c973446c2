from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from op_checks import assert_compiles, laid_out

from exml_fast import ops
from exml_fast.inversion.augmentation import Augmentation, Draws
from exml_fast.ops import reference

DTYPES = [torch.float32, torch.bfloat16, torch.float64]
FORMATS = [None, torch.contiguous_format, torch.channels_last]
BORDERS = ["wrap", "zero"]


def draws(images: int, jitter: int, per_image: bool, device: str = "cpu") -> tuple[torch.Tensor, torch.Tensor]:
    shape = (images,) if per_image else ()
    shift = torch.randint(-jitter, jitter + 1, (*shape, 2), device=device)
    return shift, torch.rand(shape, device=device) < 0.5


def check(x, shift, flip, dtype, memory_format, border) -> None:
    """Value and gradient are moved about and cast, nothing else: they equal the reference's."""
    x = x.detach().requires_grad_()
    exact = x.detach().cpu().contiguous().requires_grad_()
    y = ops.jitter_flip(x, shift, flip, dtype, memory_format, border)
    expected = reference.jitter_flip(exact, shift.cpu(), flip.cpu(), dtype, memory_format, border)
    assert y.dtype == expected.dtype and y.device == x.device
    assert y.is_contiguous(memory_format=memory_format or torch.contiguous_format)
    assert torch.equal(y.cpu(), expected)
    weights = torch.randn(y.shape, dtype=y.dtype)
    (grad,) = torch.autograd.grad(y, x, weights.to(y.device))
    (expected_grad,) = torch.autograd.grad(expected, exact, weights)
    assert grad.dtype == x.dtype and torch.equal(grad.cpu(), expected_grad)


@pytest.mark.parametrize("border", BORDERS)
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "strided"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("out", [None, *DTYPES])
def test_matches_reference(device: str, out, dtype, layout, memory_format, border) -> None:
    for shape in ((3, 3, 32, 32), (4, 1, 28, 28), (2, 5, 7, 9)):
        x = laid_out(torch.randn(shape, device=device).to(dtype), layout)
        for per_image in (False, True):
            check(x, *draws(shape[0], 4, per_image, device), out, memory_format, border)


@given(
    shape=st.tuples(*[st.integers(1, 9)] * 4),
    layout=st.sampled_from(["contiguous", "channels_last", "strided", "expanded"]),
    dtype=st.sampled_from(DTYPES),
    out=st.sampled_from([None, *DTYPES]),
    memory_format=st.sampled_from(FORMATS),
    border=st.sampled_from(BORDERS),
    jitter=st.sampled_from([0, 3, 30]),  # far beyond the image too
    per_image=st.booleans(),
)
def test_any_shape_and_shift(shape, layout, dtype, out, memory_format, border, jitter, per_image) -> None:
    check(
        laid_out(torch.randn(shape).to(dtype), layout), *draws(shape[0], jitter, per_image), out, memory_format, border
    )


@pytest.mark.parametrize("border", BORDERS)
def test_is_the_augmentation_of_the_inversion(border: str) -> None:
    augmentation, x = Augmentation(jitter=3, border=border, flip=True), torch.randn(2, 3, 10, 8)
    for down in range(-3, 4):
        for right in range(-3, 4):
            shift, flip = torch.tensor([[down, right]]), torch.tensor([(down + right) % 2 == 0])
            expected = augmentation(x, Draws(shift, flip, None), 0)
            assert torch.equal(ops.jitter_flip(x, shift[0], flip[0], border=border), expected)


@pytest.mark.parametrize("border", BORDERS)
def test_gradcheck(device: str, border: str) -> None:
    x = torch.randn(3, 2, 4, 5, dtype=torch.float64, device=device, requires_grad=True)
    shift = torch.tensor([[1, -2], [0, 3], [-3, 1]], device=device)
    flip = torch.tensor([True, False, True], device=device)

    def f(x: torch.Tensor) -> torch.Tensor:
        return ops.jitter_flip(x, shift, flip, memory_format=torch.channels_last, border=border)

    assert torch.autograd.gradcheck(f, x)
    assert torch.autograd.gradgradcheck(f, x)


@pytest.mark.compiled
def test_gradient_keeps_the_memory_format(device: str) -> None:
    for memory_format in (torch.contiguous_format, torch.channels_last):
        x = torch.randn(2, 3, 6, 6, device=device).to(memory_format=memory_format).requires_grad_()
        y = ops.jitter_flip(x, *draws(2, 2, True, device), torch.bfloat16, torch.channels_last)
        (grad,) = torch.autograd.grad(y.float().square().sum(), x)
        assert grad.dtype == torch.float32 and grad.is_contiguous(memory_format=memory_format)


@pytest.mark.compiled
def test_saves_no_image() -> None:
    saved: list[torch.Tensor] = []
    x = torch.randn(2, 3, 8, 8, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        ops.jitter_flip(x, *draws(2, 2, True))
    assert sum(t.numel() for t in saved) == 4 + 2


@pytest.mark.compiled
def test_opcheck(device: str) -> None:
    x = torch.randn(2, 3, 6, 5, device=device).to(memory_format=torch.channels_last).requires_grad_()
    shift, flip = draws(2, 2, True, device)
    torch.library.opcheck(torch.ops.exml.jitter_flip, (x, shift, flip, torch.bfloat16, torch.channels_last))
    for adjoint in (False, True):
        arguments = (x, shift, flip, torch.float32, torch.contiguous_format, "zero", adjoint)
        torch.library.opcheck(torch.ops.exml._jitter_flip, arguments)


@pytest.mark.parametrize("border", BORDERS)
def test_compiles(device: str, border: str) -> None:
    shift, flip = draws(2, 2, False, device)
    x = torch.randn(2, 3, 6, 5, device=device)
    assert_compiles(
        lambda x: ops.jitter_flip(2 * x, shift, flip, torch.float64, torch.channels_last, border).square().sum(), x
    )


def test_empty_batch(device: str) -> None:
    x = torch.zeros(0, 3, 4, 4, device=device)
    assert ops.jitter_flip(x, *draws(0, 2, False, device)).shape == x.shape


def bad_calls() -> list[tuple[str, dict, str]]:
    x = torch.randn(2, 3, 4, 4)
    return [
        ("rank", {"x": x[0]}, "x must have shape"),
        ("integer pixels", {"x": x.long()}, "x must be float32, bfloat16 or float64"),
        ("shift dtype", {"shift": torch.zeros(2)}, "shift must be int64"),
        ("shift shape", {"shift": torch.zeros(3, 2, dtype=torch.int64)}, r"shift must have shape \(2,\) or \(N, 2\)"),
        ("flip dtype", {"flip": torch.tensor(1)}, "flip must be bool"),
        ("flip shape", {"flip": torch.zeros(3, dtype=torch.bool)}, r"flip must have shape \(\) or \(N,\)"),
        ("dtype", {"dtype": torch.float16}, "dtype must be float32, bfloat16 or float64, got Half"),
        (
            "format",
            {"memory_format": torch.preserve_format},
            "memory_format must be contiguous_format or channels_last",
        ),
        ("border", {"border": "reflect"}, "border must be 'wrap' or 'zero', got 'reflect'"),
    ]


@pytest.mark.compiled
@pytest.mark.parametrize("change,message", [case[1:] for case in bad_calls()], ids=[case[0] for case in bad_calls()])
def test_bad_input_is_named(change: dict, message: str) -> None:
    shift, flip = draws(2, 2, False)
    with pytest.raises(ValueError, match=message):
        ops.jitter_flip(**{"x": torch.randn(2, 3, 4, 4), "shift": shift, "flip": flip} | change)


@pytest.mark.gpu
def test_in_a_cuda_graph() -> None:
    """Each replay reads shift and flip anew."""
    x = torch.randn(4, 3, 16, 16, device="cuda", requires_grad=True)
    shift, flip = torch.zeros(4, 2, dtype=torch.int64, device="cuda"), torch.zeros(4, dtype=torch.bool, device="cuda")

    def step() -> tuple[torch.Tensor, torch.Tensor]:
        y = ops.jitter_flip(x, shift, flip, torch.bfloat16, torch.channels_last)
        return y.detach(), torch.autograd.grad(y.float().pow(3).sum(), x)[0]

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = step()
    for _ in range(3):
        new_shift, new_flip = draws(4, 5, True, "cuda")
        shift.copy_(new_shift)
        flip.copy_(new_flip)
        graph.replay()
        for got, expected in zip(results, step(), strict=True):
            assert torch.equal(got, expected)


@pytest.mark.parametrize("capability", ["baseline", "avx2"])
def test_every_cpu_capability(capability: str) -> None:
    code = (
        "import torch; from exml_fast import ops; from exml_fast.ops import reference as r\n"
        "x, s = torch.randn(2, 3, 20, 37), torch.tensor([3, -5])\n"
        "for f in (torch.contiguous_format, torch.channels_last):\n"
        "  for flip in (True, False):\n"
        "    a = (x, s, torch.tensor(flip), torch.bfloat16, f)\n"
        "    assert torch.equal(ops.jitter_flip(*a), r.jitter_flip(*a))\n"
    )
    environment = {**os.environ, "EXML_CPU_CAPABILITY": capability}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
