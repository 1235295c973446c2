"""Teachers by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from exml_fast.continual.teachers import pretrained_weights
from exml_fast.models import create
from exml_fast.storage import save_tensors


def test_experts_can_start_from_published_weights(tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    save_tensors(file, create("torchvision/squeezenet1_1").state_dict())
    like = create("torchvision/squeezenet1_1", num_classes=3).state_dict()
    found = pretrained_weights("torchvision/squeezenet1_1", str(file), like)
    assert set(like) - set(found) == {"classifier.1.weight", "classifier.1.bias"}
    with pytest.raises(ValueError, match="weights must be one of"):
        pretrained_weights("torchvision/squeezenet1_1", "x", like)
