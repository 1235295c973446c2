from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from op_checks import laid_out, relative_error

from exml_fast import ops
from exml_fast.ops import reference

TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-13}


def state(shape: tuple[int, ...], layout: str, dtype: torch.dtype, device: str = "cpu") -> list[torch.Tensor]:
    """x, exp_avg, exp_avg_sq."""
    x, m, v = torch.randn(3, *shape, dtype=torch.float64, device=device).unbind(0)
    return [laid_out(t.to(dtype), layout) for t in (x, 0.1 * m, 0.01 * v.square())]


def bounds(channels: int, device: str = "cpu") -> tuple[torch.Tensor, torch.Tensor]:
    low = -0.5 - torch.rand(channels, dtype=torch.float64, device=device)
    return low, low + 1.0 + torch.rand(channels, dtype=torch.float64, device=device)


def check(x, grad, m, v, step, lr, betas, eps, low, high, active) -> None:
    exact = [t.detach().double().cpu().clone() for t in (x, m, v)]
    optional = [None if t is None else t.cpu() for t in (low, high, active)]
    reference.adam_clip_(
        exact[0], grad.double().cpu(), exact[1], exact[2], float(step), float(lr), betas, eps, *optional
    )
    strides = [t.stride() for t in (x, m, v)]
    assert ops.adam_clip_(x, grad, m, v, step, lr, betas, eps, low, high, active) is x
    assert strides == [t.stride() for t in (x, m, v)]
    for got, expected in zip((x, m, v), exact, strict=True):
        assert relative_error(got, expected) <= TOLERANCE[x.dtype]


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("grad_layout", ["contiguous", "channels_last", "strided"])
@pytest.mark.parametrize("grad_dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (3, 3, 7, 5), (4, 3, 32, 32), (2, 3, 40, 37), (5, 20)])
def test_matches_reference(device: str, shape, grad_dtype, grad_layout, layout, dtype) -> None:
    x, m, v = state(shape, layout, dtype, device)
    grad = laid_out(torch.randn(shape, device=device, dtype=torch.float64).to(grad_dtype), grad_layout)
    low, high = bounds(shape[1], device)
    active = torch.rand(shape[0], device=device) < 0.6
    betas = (0.9, 0.999)
    check(x, grad, m, v, 1, 0.05, betas, 1e-8, None, None, None)
    check(x, grad, m, v, torch.tensor(7, device=device), torch.tensor(0.1, device=device), betas, 1e-8, low, high, None)
    check(x, grad, m, v, torch.tensor(2000.0, device=device), 0.1, (0.5, 0.9), 1e-3, low.float(), None, active)
    check(x, grad, m, v, 3, 0.1, (0.0, 0.99), 1e-8, None, high, active)


@given(
    shape=st.lists(st.integers(1, 12), min_size=2, max_size=5).map(tuple),
    layout=st.sampled_from(["contiguous", "channels_last"]),
    grad_layout=st.sampled_from(["contiguous", "channels_last", "strided", "expanded"]),
    dtype=st.sampled_from(list(TOLERANCE)),
    grad_dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
    step=st.integers(1, 10**6),
    lr=st.floats(1e-4, 1),
    beta1=st.floats(0, 0.99),
    beta2=st.floats(0.5, 0.9999),
    bounded=st.booleans(),
    some=st.booleans(),
)
def test_any_shape(shape, layout, grad_layout, dtype, grad_dtype, step, lr, beta1, beta2, bounded, some) -> None:
    x, m, v = state(shape, layout, dtype)
    grad = laid_out(torch.randn(shape).to(grad_dtype), grad_layout)
    low, high = bounds(shape[1]) if bounded else (None, None)
    active = torch.rand(shape[0]) < 0.5 if some else None
    check(x, grad, m, v, step, lr, (beta1, beta2), 1e-8, low, high, active)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_is_torchs_adam(device: str, memory_format: torch.memory_format) -> None:
    x = torch.randn(4, 3, 9, 9, device=device).to(memory_format=memory_format)
    theirs = x.clone().requires_grad_()
    adam = torch.optim.Adam([theirs], lr=0.05, betas=(0.5, 0.9))
    m, v = torch.zeros_like(x), torch.zeros_like(x)
    low, high = torch.full((3,), -1.5, device=device), torch.full((3,), 1.5, device=device)
    for step in range(1, 21):
        grad = torch.randn_like(x)
        theirs.grad = grad
        adam.step()
        with torch.no_grad():
            theirs.clamp_(-1.5, 1.5)
        ops.adam_clip_(x, grad, m, v, step, 0.05, (0.5, 0.9), low=low, high=high)
    torch.testing.assert_close(x, theirs.detach())
    assert x.abs().max() == 1.5


def test_images_at_rest_keep_their_bits(device: str) -> None:
    for layout in ("contiguous", "channels_last"):
        tensors = state((4, 3, 8, 8), layout, torch.float32, device)
        before = [t.clone() for t in tensors]
        active = torch.tensor([True, False, True, False], device=device)
        low = torch.zeros(3, device=device)  # a clip would change them too
        x, m, v = tensors
        ops.adam_clip_(x, torch.randn_like(x), m, v, 5, 0.1, low=low, active=active)
        for t, b in zip(tensors, before, strict=True):
            assert torch.equal(t[1::2], b[1::2]) and not torch.equal(t[0], b[0])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_clip_does_not_hide_nan(device: str, bad: float) -> None:
    for layout in ("contiguous", "channels_last"):
        x, m, v = state((2, 3, 6, 6), layout, torch.float32, device)
        grad = torch.randn(2, 3, 6, 6, device=device)
        grad[1, 2, 3, 4] = bad
        ops.adam_clip_(x, grad, m, v, 1, 0.1, low=-torch.ones(3, device=device), high=torch.ones(3, device=device))
        assert x[1, 2, 3, 4].isnan() and x.isnan().sum() == 1


def test_empty_batch_is_nothing_to_do(device: str) -> None:
    x = torch.zeros(0, 3, 4, 4, device=device)
    assert ops.adam_clip_(x, x.clone(), x.clone(), x.clone(), 1, 0.1) is x


def test_does_not_depend_on_threads() -> None:
    threads, results = torch.get_num_threads(), []
    for count in (1, 3):
        torch.manual_seed(1)
        torch.set_num_threads(count)
        x, m, v = state((8, 3, 65, 63), "contiguous", torch.float32)
        results.append(ops.adam_clip_(x, torch.randn_like(x), m, v, 4, 0.1))
    torch.set_num_threads(threads)
    assert torch.equal(*results)


def test_autograd_sees_the_mutation(device: str) -> None:
    x, m, v = state((2, 3, 4, 4), "contiguous", torch.float32, device)
    x.requires_grad_()
    with pytest.raises(RuntimeError, match="x requires grad and is written in place"):
        ops.adam_clip_(x, torch.randn_like(x), m, v, 1, 0.1)
    loss = x.square().sum()
    with torch.no_grad():
        ops.adam_clip_(x, torch.randn_like(x), m, v, 1, 0.1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_opcheck(device: str) -> None:
    x, m, v = state((2, 3, 4, 4), "channels_last", torch.float32, device)
    step, lr = torch.tensor(2, device=device), torch.tensor(0.1, device=device)
    low, high = (b.float() for b in bounds(3, device))
    active = torch.tensor([True, False], device=device)
    op = torch.ops.exml.adam_clip_
    torch.library.opcheck(op, (x, torch.randn_like(x), m, v, step, lr, 0.9, 0.999, 1e-8, low, high, active))
    torch.library.opcheck(op, (x, torch.randn_like(x).bfloat16(), m, v, step, lr, 0.9, 0.999, 1e-8))


def test_compiles(device: str) -> None:
    step, lr = torch.tensor(2, device=device), torch.tensor(0.1, device=device)
    low, high = (b.float() for b in bounds(3, device))
    grad = torch.randn(2, 3, 4, 4, device=device)

    def update(x: torch.Tensor, m: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return ops.adam_clip_(x, 2 * grad, m, v, step, lr, low=low, high=high).square().sum()

    torch._dynamo.reset()
    results = []
    for f in (update, torch.compile(update, fullgraph=True, backend="aot_eager")):
        torch.manual_seed(3)
        tensors = state((2, 3, 4, 4), "contiguous", torch.float32, device)
        results.append((f(*tensors), *tensors))
    torch.testing.assert_close(results[1], results[0])


def bad_calls() -> list[tuple[str, dict, str]]:
    x = torch.randn(2, 3, 4, 4)
    last = x.to(memory_format=torch.channels_last)
    return [
        ("bfloat16", {"x": x.bfloat16()}, "x must be float32 or float64, got BFloat16"),
        ("rank", {"x": torch.randn(3)}, "x must have 2 to 5 dimensions"),
        ("strided x", {"x": torch.randn(2, 3, 4, 8)[..., ::2]}, "x is written in place and must be contiguous or"),
        ("state shape", {"exp_avg": x[:1]}, "exp_avg must have x's dtype and shape"),
        ("state dtype", {"exp_avg_sq": x.double()}, "exp_avg_sq must have x's dtype and shape"),
        ("state format", {"exp_avg": last}, "exp_avg must have x's memory format"),
        ("state of x channels_last", {"x": last}, "exp_avg must have x's memory format"),
        ("grad shape", {"grad": x[:, :2]}, "grad must have x's shape"),
        ("grad dtype", {"grad": x.long()}, "grad must be float32, bfloat16 or float64"),
        ("step shape", {"step": torch.ones(1)}, "step must be a scalar"),
        ("step dtype", {"step": torch.tensor(1, dtype=torch.int32)}, "step must be int64 or float32"),
        ("step zero", {"step": 0}, "step counts from 1 and must fit into int64, got 0"),
        ("step tensor zero", {"step": torch.tensor(0)}, "step counts from 1, got 0"),
        ("lr shape", {"lr": torch.ones(2)}, "lr must be a scalar"),
        ("lr dtype", {"lr": torch.tensor(1)}, "lr must be floating point"),
        ("betas", {"betas": (0.9, 1.0)}, r"betas must be in \[0, 1\), got 0.9 and 1"),
        ("eps", {"eps": -1.0}, "eps must be finite and not negative"),
        ("low shape", {"low": torch.zeros(4)}, "low must have shape"),
        ("high shape", {"high": torch.zeros(1, 3, 1, 1)}, "high must have shape"),
        ("high dtype", {"high": torch.zeros(3, dtype=torch.int64)}, "high must be floating point"),
        ("active shape", {"active": torch.ones(3, dtype=torch.bool)}, "active must be bool of shape"),
        ("active dtype", {"active": torch.ones(2)}, "active must be bool of shape"),
    ]


@pytest.mark.compiled
@pytest.mark.parametrize("change,message", [case[1:] for case in bad_calls()], ids=[case[0] for case in bad_calls()])
def test_bad_input_is_named(change: dict, message: str) -> None:
    x = torch.randn(2, 3, 4, 4)
    arguments = {"x": x, "grad": x.clone(), "exp_avg": x.clone(), "exp_avg_sq": x.clone(), "step": 1, "lr": 0.1}
    arguments |= change
    before = {name: t.clone() for name, t in arguments.items() if isinstance(t, torch.Tensor)}
    with pytest.raises(ValueError, match=message):
        ops.adam_clip_(**arguments)
    assert all(torch.equal(arguments[name], t) for name, t in before.items())


@pytest.mark.gpu
def test_in_a_cuda_graph() -> None:
    """Each replay reads the step count and the rate anew."""
    x, m, v = state((4, 3, 16, 16), "contiguous", torch.float32, "cuda")
    expected = [t.clone() for t in (x, m, v)]
    grad = torch.randn_like(x)
    step, lr = torch.zeros((), dtype=torch.int64, device="cuda"), torch.tensor(0.1, device="cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step += 1
        ops.adam_clip_(x, grad, m, v, step, lr)
    for i in range(1, 4):
        lr.fill_(0.1 * i)
        graph.replay()
        ops.adam_clip_(expected[0], grad, expected[1], expected[2], i, 0.1 * i)
    torch.testing.assert_close([x, m, v], expected)


@pytest.mark.parametrize("capability", ["baseline", "avx2"])
def test_every_cpu_capability(capability: str) -> None:
    code = (
        "import torch; from exml_fast import ops; from exml_fast.ops import reference as r\n"
        "for f in (torch.contiguous_format, torch.channels_last):\n"
        "  a = [t.to(memory_format=f) for t in torch.rand(4, 2, 3, 17, 19).unbind(0)]\n"
        "  b = [t.double() for t in a]\n"
        "  low, high = torch.full((3,), .2), torch.full((3,), .8)\n"
        "  ops.adam_clip_(*a, 3, .1, low=low, high=high); r.adam_clip_(*b, 3, .1, low=low, high=high)\n"
        "  for s, t in zip(a, b): torch.testing.assert_close(s.double(), t, rtol=1e-5, atol=1e-5)\n"
    )
    environment = {**os.environ, "EXML_CPU_CAPABILITY": capability}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
