"""Tiny random models of transformers, without a download."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

import exml_fast as xf
from exml_fast.compat.transformers import ImageClassifier, image_classifier, spec_of

transformers = pytest.importorskip("transformers")
SPEC = xf.InputSpec(3, (32, 32), (0.5,) * 3, (0.25,) * 3)


def resnet(**changes: Any) -> Any:
    torch.manual_seed(0)
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=3,
        id2label={0: "cat", 1: "dog", 2: "bird"}, label2id={"cat": 0, "dog": 1, "bird": 2}, **changes,
    )  # fmt: skip
    return transformers.ResNetForImageClassification(config)


def vit() -> Any:
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, image_size=32, patch_size=8,
        num_labels=3,
    )  # fmt: skip
    return transformers.ViTForImageClassification(config)


@pytest.mark.parametrize("make", [resnet, vit])
def test_the_frozen_teacher_computes_what_the_model_computes(make: Any) -> None:
    model = make().eval()
    teacher = xf.FrozenTeacher(image_classifier(model, spec=SPEC), SPEC, precision="float32")
    images = torch.randn(4, *SPEC.shape)
    with torch.no_grad():
        assert torch.allclose(teacher(images)[0], model(images).logits, atol=1e-4)
    norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert teacher.matched_calls == len(norms) == (0 if make is vit else 6)


def test_images_and_students_of_a_resnet() -> None:
    teacher = image_classifier(resnet(), spec=SPEC)
    assert teacher.class_names == ("cat", "dog", "bird") and not teacher.training
    result = xf.invert(teacher, [0, 2], per_class=2, recipe="deep_inversion", steps=60)
    assert result.spec == SPEC and result.labels.tolist() == [0, 2, 0, 2]
    assert result.history["bn"][-1] < result.history["bn"][0]
    student = image_classifier(resnet(), spec=SPEC)
    taught = xf.distill(teacher, student, result, steps=3, batch_size=4).model
    assert isinstance(taught, ImageClassifier) and taught.model.config.num_labels == 3
    expert = xf.Expert.wrap(teacher, teacher.input_spec, range(3), class_names=teacher.class_names)
    assert "cat, dog, bird" in repr(expert) and torch.equal(expert.logits(result.images), teacher(result.images))


def test_images_of_a_vision_transformer_with_named_layers() -> None:
    teacher = image_classifier(vit(), spec=SPEC)
    photos = torch.randn(4, *SPEC.shape)
    result = xf.invert(
        teacher, [1], per_class=2, recipe="deep_inversion", steps=2, statistics=photos, layers=["*layernorm_after"]
    )
    assert len(result) == 2 and "bn" in result.history


def test_a_folder_brings_its_processor(tmp_path: Path) -> None:
    resnet().save_pretrained(tmp_path)
    with pytest.raises(OSError, match=r"is neither a folder of a model nor can be downloaded.*HF_HUB_OFFLINE=1"):
        image_classifier(str(tmp_path))  # without a processor
    processor = transformers.ConvNextImageProcessor(size={"shortest_edge": 32}, image_mean=[0.1, 0.2, 0.3])
    processor.save_pretrained(tmp_path)
    found = image_classifier(str(tmp_path))
    assert found.input_spec == xf.InputSpec(3, (32, 32), (0.1, 0.2, 0.3), tuple(processor.image_std))
    images = torch.randn(2, *SPEC.shape)
    with torch.no_grad():
        assert torch.equal(found(images), resnet().eval()(images).logits)


def test_processors() -> None:
    sized = transformers.ViTImageProcessor(size={"height": 24, "width": 32}, image_mean=[0.5] * 3, image_std=[0.25] * 3)
    assert spec_of(sized) == xf.InputSpec(3, (24, 32), (0.5,) * 3, (0.25,) * 3)
    cropped = transformers.CLIPImageProcessor(size={"shortest_edge": 40}, crop_size={"height": 32, "width": 32})
    assert spec_of(cropped).size == (32, 32)
    plain = transformers.ViTImageProcessor(size={"height": 32, "width": 32}, do_normalize=False)
    assert spec_of(plain, channels=1) == xf.InputSpec(1, (32, 32), (0.0,), (1.0,))
    with pytest.raises(ValueError, match="processor must be one that gives its images one size"):
        spec_of(transformers.ViTImageProcessor(size={"longest_edge": 40}))


def test_what_does_not_fit_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "HF_HUB_OFFLINE", "1")
    with pytest.raises(ValueError, match="processor or spec must be given for a model without a name"):
        image_classifier(resnet())
    with pytest.raises(ValueError, match="source must be an image-classification model of transformers, got 'Linear'"):
        image_classifier(torch.nn.Linear(2, 2), spec=SPEC)
    with pytest.raises(OSError, match="'nobody/nothing-at-all' is neither a folder of a model nor can be downloaded"):
        image_classifier("nobody/nothing-at-all")
