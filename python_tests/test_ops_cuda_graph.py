"""The ops inside a CUDA graph: no host synchronisation, and fresh random draws at every replay."""

from __future__ import annotations

import pytest
import torch

from exml_fast import ops

pytestmark = pytest.mark.gpu


def test_losses_in_a_graph() -> None:
    x = torch.randn(8, 16, 12, 12, device="cuda", requires_grad=True)
    mean, var = torch.randn(16, device="cuda"), torch.rand(16, device="cuda") + 0.5
    target = torch.softmax(torch.randn(8, 16, device="cuda"), 1)

    def loss() -> torch.Tensor:
        logits = x.mean((2, 3))
        classification = ops.soft_cross_entropy(logits, target, 2.0) + ops.jensen_shannon(target, logits, 2.0)
        return ops.bn_match(x, mean, var) + sum(ops.image_prior(x)) + classification

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            torch.autograd.grad(loss(), x)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        value = loss()
        (grad,) = torch.autograd.grad(value, x)
    with torch.no_grad():
        x.copy_(torch.randn_like(x))
    graph.replay()
    expected = loss()
    (expected_grad,) = torch.autograd.grad(expected, x)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(grad, expected_grad)


def test_dirichlet_draws_anew_at_every_replay() -> None:
    similarity = torch.rand(10, 10, device="cuda") + 0.1
    classes = torch.arange(10, device="cuda").repeat(5)
    betas = torch.full((50,), 0.5, device="cuda")
    ops.dirichlet_targets(similarity, classes, betas)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        targets = ops.dirichlet_targets(similarity, classes, betas)
    graph.replay()
    first = targets.clone()
    graph.replay()
    assert not torch.equal(first, targets)
    torch.testing.assert_close(targets.sum(1), torch.ones(50, device="cuda"))
