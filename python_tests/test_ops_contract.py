"""Every public op has a documented function, a twin in plain PyTorch, a fake kernel, and registered kernels."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import exml_fast
from exml_fast import ops
from exml_fast.ops import _registration, reference

ROOT = Path(__file__).resolve().parents[1]
# CPU_ONLY, CUDA_ONLY: ops without kernels for the other device. SINGLE: the op that has the kernels, for each op `name`
# without a private op `_name_forward`.
CPU_ONLY = {"average_pool2d", "frozen_conv2d", "lane_conv2d", "winograd_conv2d", "winograd_weights"}
CUDA_ONLY = {"dirichlet_targets"}
SINGLE = {"adam_clip_": "_adam_clip_", "dirichlet_targets": "_dirichlet_targets", "jitter_flip": "_jitter_flip",
          "winograd_weights": "winograd_weights", "winograd_conv2d": "_frozen_conv2d_forward"}  # fmt: skip


def has_kernel(op: str, key: str) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"exml::{op}", key)


@pytest.mark.parametrize("name", ops.__all__)
def test_every_op_is_documented_and_has_its_twin(name: str) -> None:
    op, twin = getattr(ops, name), getattr(reference, name)
    for section in ("Args:", "Returns:", "Raises:"):
        assert section in op.__doc__
    mine, theirs = (inspect.signature(f) for f in (op, twin))
    assert all(p.annotation != p.empty for p in mine.parameters.values())
    positional = [p.name for p in mine.parameters.values() if p.kind != p.KEYWORD_ONLY]
    assert [p for p in theirs.parameters if not p.startswith("_")] == positional


@pytest.mark.compiled
@pytest.mark.parametrize("name", ops.__all__)
def test_every_op_has_its_kernels(name: str) -> None:
    backend = SINGLE.get(name, f"_{name}_forward")
    assert has_kernel(backend, "Meta"), "no fake kernel"
    on_cpu = has_kernel(backend, "CPU") or has_kernel(backend, "CompositeExplicitAutograd")
    assert on_cpu == (name not in CUDA_ONLY)
    with_cuda = exml_fast.build_info()["cuda_archs"] is not None
    assert has_kernel(backend, "CUDA") == (with_cuda and name not in CPU_ONLY)


def test_only_the_ops_package_calls_the_dispatcher() -> None:
    callers = [path for path in (ROOT / "exml_fast").rglob("*.py") if "torch.ops.exml" in path.read_text()]
    assert {path.parent.name for path in callers} == {"ops"}


def test_native_sources_register_without_conditions() -> None:
    """The folder decides what is registered for which device; only the schemas ask which library this is."""
    sources = [path for path in (ROOT / "csrc").rglob("*") if path.suffix in (".h", ".cpp", ".cu")]
    assert [path.name for path in sources if "EXML_CUDA_LIBRARY" in path.read_text()] == ["schema.h"]
    for path in sources:
        for key in re.findall(r"TORCH_LIBRARY_IMPL\(exml, (CPU|CUDA),", path.read_text()):
            assert path.parent.name == key.lower(), path


@pytest.mark.compiled
def test_a_device_without_kernels_has_the_twins(monkeypatch: pytest.MonkeyPatch) -> None:
    means = [torch.tensor([1.0, 3.0]), torch.tensor([2.0])]
    wanted = ops.match_statistics(means, means, means, means)
    calls: list[str] = []

    def forbidden(name: str) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            calls.append(name)
            raise AssertionError(f"{name} has no kernel here")

        return call

    monkeypatch.setattr(_registration, "KERNELS", {"cuda"})
    for name in ("_match_statistics_forward", "_soft_cross_entropy_forward", "_jitter_flip"):
        monkeypatch.setattr(_registration.kernels, name, forbidden(name), raising=False)
    assert torch.equal(ops.match_statistics(means, means, means, means), wanted)
    logits = torch.randn(3, 4, requires_grad=True)
    ops.soft_cross_entropy(logits, torch.tensor([0, 1, 2])).backward()
    assert logits.grad is not None and logits.grad.abs().max() > 0
    images = torch.randn(2, 3, 4, 4)
    assert torch.ops.exml.jitter_flip(images, torch.tensor([0, 0]), torch.tensor(False)).equal(images)
    assert not calls
    monkeypatch.setattr(_registration, "KERNELS", {"cpu"})
    with pytest.raises(AssertionError, match="has no kernel"):
        ops.match_statistics(means, means, means, means)


@pytest.mark.compiled
def test_torch_func_is_refused_by_name() -> None:
    logits, labels = torch.randn(3, 4), torch.tensor([0, 1, 2])
    for transform in (torch.func.grad, torch.func.jacrev, torch.func.vmap):
        with pytest.raises(NotImplementedError, match=r"soft_cross_entropy: torch\.func"):
            transform(lambda z: ops.soft_cross_entropy(z, labels))(logits)
    gradient = torch.func.grad(lambda z: reference.soft_cross_entropy(z, labels))(logits)
    torch.testing.assert_close(gradient.sum(1), torch.zeros(3))
