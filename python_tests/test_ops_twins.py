"""The ops without the compiled extension: in a process of its own, because a process has one kind of ops."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch

import exml_fast
from exml_fast._native import COMPILED

PACKAGES = Path(exml_fast.__file__).resolve().parents[1]


def without_extension(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    environment = {"EXML_EXTENSION": "0", "PYTHONPATH": str(PACKAGES), **environment}
    run = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | environment, capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stderr
    return run


def test_nothing_is_said_where_the_user_chose_it() -> None:
    run = without_extension("import exml_fast; print(exml_fast._native.WHY_NOT, exml_fast.build_info())")
    assert "EXML_EXTENSION=0 turns" in run.stdout and "'compiler': None" in run.stdout
    assert run.stderr == ""


def test_every_op_passes_opcheck_and_compiles() -> None:
    without_extension("""
import torch
from exml_fast import ops
check, exml = torch.library.opcheck, torch.ops.exml
x, c, z = torch.randn(2, 3, 6, 6, requires_grad=True), torch.rand(3) + 0.5, torch.randn(4, 5, requires_grad=True)
w, b, pair = torch.randn(4, 3, 3, 3), torch.randn(4), (1, 1)
plain = x.detach().clone()
for op, arguments in {
    "bn_match": (x, c, c), "frozen_bn_act": (x, c, c, None, "silu"), "image_prior": (x, 3, 1.0, True),
    "match_statistics": ([c.clone().requires_grad_()], [c], [c + 1], [c]), "average_pool2d": (x, (2, 3)),
    "jitter_flip": (x, torch.tensor([[1, 2], [-8, 0]]), torch.tensor([True, False]), torch.bfloat16, None, "zero"),
    "soft_cross_entropy": (z, torch.tensor([0, 1, 2, 4]), 2.0), "jensen_shannon": (z, torch.randn(4, 5)),
    "lane_conv2d": (x, w, b, pair), "frozen_conv2d": (x, w, b, pair, pair, pair, 1), "winograd_weights": (w,),
    "dirichlet_targets": (torch.rand(3, 3) + 0.1, torch.tensor([0, 2]), torch.ones(2)),
    "adam_clip_": (plain, torch.randn_like(plain), plain * 0, plain * 0 + 1, torch.tensor(3), torch.tensor(0.1),
                   0.9, 0.999, 1e-8, -c, c, torch.tensor([True, False])),
}.items():
    # A random op is not the same twice.
    utilities = ("test_schema", "test_faketensor") if op == "dirichlet_targets" else None
    check(getattr(exml, op), arguments, **({"test_utils": utilities} if utilities else {}))
compiled = torch.compile(lambda x: ops.frozen_bn_act(x * 2, c, c, None, "relu")[0].sum(), fullgraph=True,
                         backend="aot_eager")
torch.testing.assert_close(compiled(x), ops.frozen_bn_act(x * 2, c, c, None, "relu")[0].sum())
""")


def test_errors_name_the_op_and_the_argument() -> None:
    without_extension("""
import pytest, torch
from exml_fast import ops
x, c, z = torch.randn(2, 3, 6, 6), torch.rand(3) + 0.5, torch.randn(4, 5)
for call, said in (
    (lambda: ops.bn_match(x, c[:2], c), "bn_match: mean must have shape"),
    (lambda: ops.bn_match(x.half(), c, c), "bn_match: x must be float32"),
    (lambda: ops.bn_match(x, c.requires_grad_(), c), "mean is taken as a constant"),
    (lambda: ops.frozen_bn_act(x, c.detach(), c.detach(), activation="no"), "activation must be 'none', 'relu'"),
    (lambda: ops.image_prior(x, 4), "kernel_size must be odd"),
    (lambda: ops.jitter_flip(x, torch.ones(3, dtype=torch.int64), torch.tensor(True)), "shift must have shape"),
    (lambda: ops.soft_cross_entropy(z, z[:, :2]), "target must have shape"),
    (lambda: ops.jensen_shannon(z, z, 0.0), "temperature must be positive"),
    (lambda: ops.average_pool2d(x, (7, 1)), "kernel must be from 1"),
    (lambda: ops.lane_conv2d(x, torch.randn(4, 2, 3, 3)), "x must have shape"),
    (lambda: ops.frozen_conv2d(x, torch.zeros(()).expand(4, 3, 3, 3)), "read by the compiled extension only"),
    (lambda: ops.adam_clip_(x, x, x * 0, x * 0, 1, 0.1), "must not share memory with grad"),
):
    with pytest.raises(ValueError, match=said):
        call()
with pytest.raises(IndexError, match="target must be in"):
    ops.soft_cross_entropy(z, torch.tensor([0, 1, 2, 5]))
""")


def test_inversion_comes_near_that_of_the_compiled_ops(tmp_path: Path) -> None:
    """The engine, the objective, the optimiser and the resumed run; half of the steps with either kind of ops."""
    code = f"""
import torch, exml_fast
from exml_fast.data import InputSpec
from torch import nn
torch.manual_seed(0)
model = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(),
                      nn.Linear(1024, 4)).eval()
result = exml_fast.invert(model, classes=[0, 3], per_class=2, seed=1, precision="float32",
                          spec=InputSpec(3, (16, 16), (0.5,) * 3, (0.2,) * 3), recipe="deep_inversion", steps=10)
torch.save(result.images, {str(tmp_path)!r} + "/" + str(exml_fast._native.COMPILED))
"""
    without_extension(code)
    assert (tmp_path / "False").exists()
    if COMPILED:
        without_extension(code, EXML_EXTENSION="1")
        mine, theirs = (torch.load(tmp_path / str(kind)) for kind in (False, True))
        torch.testing.assert_close(mine, theirs, atol=2e-3, rtol=0)
