"""Fixtures and settings of all tests."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings
from small_experts import quadrants
from small_networks import Tiny
from small_training import SMALL, trained_lenet
from torch import Tensor, nn

from exml_fast._native import COMPILED
from exml_fast.data import ImageData, InputSpec, load
from exml_fast.models import OWN, register

# Hypothesis draws the same examples in every run, so that a failure is caused by a change. EXML_EXAMPLES=300 draws 300
# new ones.
settings.register_profile(
    "default", deadline=None, max_examples=int(os.environ.get("EXML_EXAMPLES", "25")),
    derandomize="EXML_EXAMPLES" not in os.environ,
)  # fmt: skip
settings.load_profile("default")

# A temporary cache, also for the commands that tests start, so that nothing is written to the user's home.
os.environ["EXML_FAST_CACHE"] = tempfile.mkdtemp(prefix="exml_fast-")

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not COMPILED:
        for item in items:
            if "compiled" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="needs the compiled extension"))
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def tiny() -> Iterator[type[Tiny]]:
    """A network of a user, registered as "tiny" during the test."""
    register("tiny", Tiny)
    yield Tiny
    OWN.pop("tiny", None)


@pytest.fixture(scope="module")
def data() -> ImageData:
    """The quadrants: four classes, each a bright quarter of the image."""
    return quadrants()


@pytest.fixture(scope="module")
def teacher() -> nn.Module:
    """LeNet-5 that recognises the quadrants."""
    return trained_lenet()


@pytest.fixture(scope="module")
def images() -> Tensor:
    """Random network input (24, 1, 8, 8) for the small networks of small_training.py."""
    return torch.randn(24, *SMALL.shape, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="session")
def digits_teacher() -> tuple[nn.Module, InputSpec]:
    """Two convolutions with BatchNorm, trained to 97 % on scikit-learn's digits; and the specification of its input."""
    data = load("digits")
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(256, 10),
    )  # fmt: skip
    x, y = data.spec.normalize(data.train.images), data.train.labels
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(6):
        for index in torch.randperm(len(x)).split(64):
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(x[index]), y[index]).backward()
            optimiser.step()
    return model.eval(), data.spec
