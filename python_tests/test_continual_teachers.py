"""Teachers by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torchvision
from small_networks import SPEC, network

from exml_fast.continual.teachers import Teacher, open_teacher, pretrained_weights
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


def test_an_unknown_class_name_gets_the_nearest_names() -> None:
    names = dict(enumerate(["Persian cat", "tiger cat", "tiger", "tabby", "dog"]))
    teacher = Teacher("mine", network(), SPEC, None, None, names)
    assert teacher.class_ids(["TABBY", "0"]) == [3, 0]
    with pytest.raises(ValueError, match="classes: 'cat' is no class of mine, whose nearest names are tiger cat, Pers"):
        teacher.class_ids(["cat"])
    with pytest.raises(ValueError, match="'tabi' is no class of mine, whose nearest names are tabby"):
        teacher.class_ids(["tabi"])
    with pytest.raises(ValueError, match="'xyzzy' is no class of mine, which knows Persian cat, tiger cat"):
        teacher.class_ids(["xyzzy"])
    with pytest.raises(ValueError, match="'cat' is no class of mine, whose classes have no names: give ids"):
        Teacher("mine", network(), SPEC, None, None, {}).class_ids(["cat"])


@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_random_weights_need_no_download_and_know_no_classes(library: str) -> None:
    pytest.importorskip(library)
    first, second = (open_teacher(f"{library}/mobilenetv3_small_050" if library == "timm" else
                                  "torchvision/squeezenet1_1", weights="random") for _ in range(2))  # fmt: skip
    assert first.class_names == {} and first.outputs() == 1000 and first.spec.shape == (3, 224, 224)
    for a, b in zip(first.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(a, b)
    few = open_teacher(first.name, weights="random", arguments={"num_classes": 7})
    assert few.outputs() == 7


def test_weights_that_cannot_be_downloaded_are_asked_for_as_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise OSError("<urlopen error [Errno -3]\n Temporary failure in name resolution>")

    monkeypatch.setattr(torchvision.models, "get_model", offline)
    with pytest.raises(OSError, match=r"resnet18 cannot be downloaded \(.*name resolution>\).*--weights FILE"):
        open_teacher("torchvision/resnet18")
    timm = pytest.importorskip("timm")
    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(OSError, match=r"timm/resnet18 cannot be .*--weights FILE.* HF_HUB_OFFLINE=1"):
        open_teacher("timm/resnet18")
