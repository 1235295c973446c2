from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from op_checks import TOLERANCE, relative_error

from exml_fast import ops
from exml_fast.ops import reference

DISTANCES = ["l2", "squared", "gaussian_kl"]
MOMENTS = ["var", "std"]
DTYPES = [torch.float32, torch.float64]
Lists = list[list[torch.Tensor]]


def statistics(channels: list[int], device: str = "cpu", dtype: torch.dtype = torch.float32) -> Lists:
    """Means, variances, target means, target variances of so many layers."""
    lists = [[torch.randn(c, dtype=dtype, device=device) for c in channels] for _ in range(4)]
    return [lists[0], [v.square() + 0.3 for v in lists[1]], lists[2], [v.square() + 0.3 for v in lists[3]]]


def check(lists: Lists, weights: list[float] | None, distance: str, moment: str) -> None:
    """Value and all gradients against the reference in float64."""
    means, variances, *targets = lists
    leaves = [[t.detach().requires_grad_() for t in ts] for ts in (means, variances)]
    exact = [[t.detach().double().cpu().requires_grad_() for t in ts] for ts in (means, variances)]
    loss = ops.match_statistics(*leaves, *targets, weights, distance, moment)
    expected = reference.match_statistics(
        *exact, *[[t.double().cpu() for t in ts] for ts in targets], weights, distance, moment
    )
    assert loss.dtype == means[0].dtype and loss.shape == () and loss.device == means[0].device
    tolerance = TOLERANCE[means[0].dtype]
    assert relative_error(loss, expected) <= tolerance
    grads = torch.autograd.grad(1.5 * loss, [*leaves[0], *leaves[1]])
    expected_grads = torch.autograd.grad(1.5 * expected, [*exact[0], *exact[1]])
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        assert grad.dtype == means[0].dtype and grad.shape == expected_grad.shape
        assert relative_error(grad, expected_grad) <= tolerance


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("moment", MOMENTS)
def test_matches_reference(device: str, distance: str, moment: str, dtype: torch.dtype) -> None:
    channels = [1, 64, 7, 256, 3, 1000]
    check(statistics(channels, device, dtype), None, distance, moment)
    check(statistics(channels, device, dtype), [0.5, 10.0, 0.0, 1.0, 2.5, 1e-3], distance, moment)


def test_more_layers_than_a_launch_takes(device: str) -> None:
    check(statistics([3 + i % 9 for i in range(200)], device), [1 + i % 3 for i in range(200)], "l2", "var")


@given(
    channels=st.lists(st.integers(1, 40), min_size=1, max_size=8),
    dtype=st.sampled_from(DTYPES),
    distance=st.sampled_from(DISTANCES),
    moment=st.sampled_from(MOMENTS),
    strided=st.booleans(),
    weights=st.none() | st.lists(st.floats(0.1, 10), min_size=8, max_size=8),
)
def test_any_layers(channels, dtype, distance, moment, strided, weights) -> None:
    lists = statistics(channels, dtype=dtype)
    if strided:
        lists = [[torch.stack([t, t], 1)[:, 0] for t in ts] for ts in lists]
    check(lists, weights and weights[: len(channels)], distance, moment)


def test_is_the_sum_of_bn_match(device: str) -> None:
    xs = [torch.randn(6, c, 5, 5, device=device) for c in (3, 16, 40)]
    means, variances = zip(*(reference.channel_statistics(x) for x in xs), strict=True)
    _, _, *targets = statistics([3, 16, 40], device)
    for distance, moment in itertools.product(DISTANCES, MOMENTS):
        expected = sum(ops.bn_match(x, m, v, distance, moment) for x, m, v in zip(xs, *targets, strict=True))
        loss = ops.match_statistics(list(means), list(variances), *targets, distance=distance, moment=moment)
        torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("moment", MOMENTS)
def test_gradcheck(device: str, distance: str, moment: str) -> None:
    means, variances, *targets = statistics([2, 5], device, torch.float64)
    leaves = [t.requires_grad_() for t in (*means, *variances)]

    def loss(*leaves: torch.Tensor) -> torch.Tensor:
        return ops.match_statistics(leaves[:2], leaves[2:], *targets, [0.7, 2.0], distance, moment)

    assert torch.autograd.gradcheck(loss, leaves)


def test_gradient_of_one_list_only(device: str) -> None:
    means, variances, *targets = statistics([4, 6], device)
    variances[1].requires_grad_()
    ops.match_statistics(means, variances, *targets).backward()
    assert variances[1].grad is not None and variances[1].grad.shape == (6,)


@pytest.mark.compiled
def test_opcheck(device: str) -> None:
    means, variances, *targets = statistics([2, 5], device)
    detached = (means, variances, *targets)
    torch.library.opcheck(torch.ops.exml._match_statistics_forward, (*detached, [1.0, 2.0], "l2", "var"))
    sums = torch.rand(2, 2, dtype=torch.float64, device=device)
    grad = torch.ones((), device=device)
    torch.library.opcheck(torch.ops.exml._match_statistics_backward, (grad, *detached, sums, None, "l2", "var"))
    leaves = [[t.clone().requires_grad_() for t in ts] for ts in (means, variances)]
    torch.library.opcheck(torch.ops.exml.match_statistics, (*leaves, *targets))
    torch.library.opcheck(torch.ops.exml.match_statistics, (*leaves, *targets, [1.0, 2.0], "squared", "std"))


def test_compiles(device: str) -> None:
    _, _, *targets = statistics([4, 4], device)
    x = torch.randn(2, 8, 4, device=device)

    def loss(x: torch.Tensor) -> torch.Tensor:
        means, variances = zip(*(reference.channel_statistics(half.relu()) for half in x.split(4, 1)), strict=True)
        return ops.match_statistics(means, variances, *targets, [1.0, 3.0])

    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    results = []
    for f in (loss, compiled):
        leaf = x.clone().requires_grad_()
        value = f(leaf)
        results.append((value.detach(), *torch.autograd.grad(value, leaf)))
    torch.testing.assert_close(results[1], results[0])


def test_gradient_at_a_perfect_match_is_zero(device: str) -> None:
    means, variances, _, _ = statistics([3, 5], device)
    leaves = [[t.clone().requires_grad_() for t in ts] for ts in (means, variances)]
    for distance, moment in itertools.product(["l2", "squared"], MOMENTS):
        loss = ops.match_statistics(*leaves, means, variances, None, distance, moment)
        grads = torch.autograd.grad(loss, [*leaves[0], *leaves[1]])
        assert loss.item() == 0 and all((grad == 0).all() for grad in grads)


def test_constant_channel_has_no_direction(device: str) -> None:
    var = torch.zeros(2, device=device, requires_grad=True)
    zero, one = torch.zeros(2, device=device), torch.ones(2, device=device)
    (grad,) = torch.autograd.grad(ops.match_statistics([zero], [var], [zero], [one], moment="std"), var)
    assert (grad == 0).all()


def test_nan_stays_nan_in_its_layer(device: str) -> None:
    means, variances, *targets = statistics([3, 5], device)
    means[1][2] = float("nan")
    leaves = [t.requires_grad_() for t in means]
    loss = ops.match_statistics(leaves, variances, *targets)
    grads = torch.autograd.grad(loss, leaves)
    assert loss.isnan() and [bool(g.isnan().any()) for g in grads] == [False, True]


@pytest.mark.compiled
def test_second_derivative_raises() -> None:
    means, variances, *targets = statistics([3, 5])
    leaves = [t.requires_grad_() for t in means]
    grads = torch.autograd.grad(ops.match_statistics(leaves, variances, *targets), leaves, create_graph=True)
    with pytest.raises(RuntimeError, match="match_statistics: second derivatives are not implemented"):
        torch.autograd.grad(grads[1].square().sum(), leaves)


def test_targets_of_other_dtypes() -> None:
    means, variances, target_means, target_variances = statistics([3, 5])
    loss = ops.match_statistics(means, variances, [t.double() for t in target_means], target_variances)
    torch.testing.assert_close(loss, reference.match_statistics(means, variances, target_means, target_variances))


def bad_calls() -> list[tuple[str, tuple, str]]:
    m, v, tm, tv = statistics([3, 5])
    return [
        ("nothing", ([], [], [], []), "means must hold at least one layer"),
        ("no means", ([], v, tm, tv), "means must hold at least one layer"),
        ("variances too short", (m, v[:1], tm, tv), "variances must have one entry for each of the 2 means, got 1"),
        ("targets too short", (m, v, tm[:1], tv), "target_means must have one entry"),
        ("target variances too long", (m, v, tm, [*tv, tv[0]]), "target_variances must have one entry"),
        ("weights too short", (m, v, tm, tv, [1.0]), "weights must have one entry for each of the 2 means, got 1"),
        ("channels", (m, [v[0], v[0]], tm, tv), r"variances\[1\] must have the shape \[5\] of means\[1\], got \[3\]"),
        ("target channels", (m, v, tm, [tv[0], tv[0]]), r"target_variances\[1\] must have the shape"),
        ("rank", ([m[0], m[1][None]], v, tm, tv), r"means\[1\] must have shape \(C,\)"),
        ("no channels", ([m[0], m[1][:0]], v, tm, tv), r"means\[1\] must have shape \(C,\) and not be empty"),
        ("bfloat16", ([t.bfloat16() for t in m], v, tm, tv), "means must be float32 or float64, got BFloat16"),
        ("mixed means", ([m[0], m[1].double()], v, tm, tv), r"means\[1\] must have the dtype of means\[0\]"),
        ("mixed variances", (m, [v[0].double(), v[1]], tm, tv), r"variances\[0\] must have the dtype of means\[0\]"),
        ("integer target", (m, v, [tm[0].long(), tm[1]], tv), r"target_means\[0\] must be floating point"),
        ("target requires grad", (m, v, [tm[0].clone().requires_grad_(), tm[1]], tv), "target_means is taken as a"),
        ("distance", (m, v, tm, tv, None, "l3"), "match_statistics: distance must be"),
        ("moment", (m, v, tm, tv, None, "l2", "skew"), "match_statistics: moment must be"),
    ]


@pytest.mark.compiled
@pytest.mark.parametrize("args,message", [case[1:] for case in bad_calls()], ids=[case[0] for case in bad_calls()])
def test_bad_input_is_named(args: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ops.match_statistics(*args)


@pytest.mark.gpu
def test_mixed_cuda_and_cpu_are_named() -> None:
    means, variances, target_means, target_variances = statistics([3, 5], "cuda")
    with pytest.raises(ValueError, match=r"target_means\[1\] must be on means\[0\]'s device cuda:0"):
        ops.match_statistics(means, variances, [target_means[0], target_means[1].cpu()], target_variances)


@pytest.mark.gpu
def test_in_a_cuda_graph() -> None:
    means, variances, *targets = statistics([3, 64, 500], "cuda")
    leaves = [t.requires_grad_() for t in (*means, *variances)]

    def step() -> list[torch.Tensor]:
        loss = ops.match_statistics(leaves[:3], leaves[3:], *targets, [1.0, 2.0, 0.5])
        return [loss.detach(), *torch.autograd.grad(loss, leaves)]

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = step()
    with torch.no_grad():
        for t in leaves:
            t.mul_(1.5)
    graph.replay()
    torch.testing.assert_close(results, step())
