"""What tests of several modules share."""

from __future__ import annotations

import os
import tempfile

import pytest
import torch
from hypothesis import settings

settings.register_profile("default", deadline=None, max_examples=int(os.environ.get("EXML_EXAMPLES", "25")))
settings.load_profile("default")

# Of this run, and of the commands that its tests start: nothing is left in the user's home.
os.environ["EXML_FAST_CACHE"] = tempfile.mkdtemp(prefix="exml_fast-")

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
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
