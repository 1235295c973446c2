"""Data sets and loaders of other libraries where images are taken."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from small_networks import BN, SPEC, network
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

import exml_fast as xf
from exml_fast.data import ImageData, LabelledImages, Split, images_and_labels, load, network_images, to_hugging_face
from exml_fast.data.foreign import class_names_of, is_source, network_statistics
from exml_fast.training import Training, network_input

PIXELS = (torch.arange(6 * 144).view(6, 1, 12, 12) % 251).byte()
LABELS = torch.tensor([0, 1, 2, 0, 1, 2])
INPUT = SPEC.normalize(PIXELS)


class Pictures(Dataset[Any]):
    """As torchvision's: PIL images, classes, an optional transform."""

    classes = ("a", "b", "c")

    def __init__(self, mode: str = "L") -> None:
        self.mode = mode

    def __len__(self) -> int:
        return len(PIXELS)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.fromarray(PIXELS[index, 0].numpy()).convert(self.mode), int(LABELS[index])


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        yield from ({"img": pixels, "fine_label": int(label)} for pixels, label in zip(PIXELS, LABELS, strict=True))


SOURCES = {
    "pictures": Pictures(),
    "tensors": TensorDataset(PIXELS, LABELS),
    "labelled": LabelledImages(PIXELS, LABELS),
    "stream": Stream(),
    "loader": DataLoader(TensorDataset(PIXELS, LABELS), batch_size=4),
    "loader of dicts": DataLoader(Stream(), batch_size=4),
    "loader without batches": DataLoader(TensorDataset(PIXELS, LABELS), batch_size=None),
}


@pytest.mark.parametrize("name", SOURCES)
def test_images_and_labels_come_in_order(name: str) -> None:
    images, labels = images_and_labels(SOURCES[name])
    assert images.dtype == torch.uint8 and torch.equal(images, PIXELS)
    assert labels is not None and labels.dtype == torch.int64 and torch.equal(labels, LABELS)
    few, _ = images_and_labels(SOURCES[name], count=3)
    assert torch.equal(few, PIXELS[:3])
    assert torch.equal(network_images(SOURCES[name], SPEC), INPUT)


def test_arrays_colours_and_sizes() -> None:
    array = np.arange(5 * 4 * 3, dtype=np.uint8).reshape(5, 4, 3)
    images, labels = images_and_labels(_listed([array, array]))
    assert images.shape == (2, 3, 5, 4) and labels is None and int(images[0, 2, 1, 0]) == array[1, 0, 2]
    assert images_and_labels(Pictures("RGB"))[0].shape == (6, 3, 12, 12)
    assert images_and_labels(Pictures("1"), size=(8, 6))[0].shape == (6, 1, 8, 6)
    assert images_and_labels(Pictures("P"), size=7)[0].shape == (6, 3, 7, 7)


def _listed(items: list[Any]) -> Dataset[Any]:
    class Listed(Dataset[Any]):
        def __len__(self) -> int:
            return len(items)

        def __getitem__(self, index: int) -> Any:
            return items[index]

    return Listed()


def test_floating_point_is_network_input() -> None:
    normalised = TensorDataset(INPUT.double())
    found = network_images(normalised, SPEC)
    assert found.dtype == torch.float32 and torch.equal(found, INPUT)
    assert network_images(INPUT, SPEC) is INPUT and network_statistics("running", SPEC) == "running"


@pytest.mark.parametrize(
    ("items", "says"),
    [
        ([], "images: the Listed holds no images"),
        ([PIXELS[0], PIXELS[0][:, :5]], "images: all images must be alike, got torch.uint8 .1, 12, 12. and .*1, 5, 12"),
        ([{"picture": PIXELS[0]}], r"must have an image under one of image, .*got \['picture'\]"),
        ([()], "an item must begin with an image, got an empty tuple"),
        ([("text", 3)], "an image must be a PIL image, .* got str"),
        ([PIXELS[0].long()], r"an image must be .* got torch.int64 \(1, 12, 12\)"),
        ([(PIXELS[0], 1), (PIXELS[1], "cat")], "images: 1 of 2 images have a label"),
    ],
)
def test_what_is_no_image_is_named(items: list[Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        images_and_labels(_listed(items))
    assert not is_source(items)
    with pytest.raises(ValueError, match="images must be a data set or a DataLoader"):
        images_and_labels(items)


def test_splits_and_data_sets() -> None:
    data = ImageData.of(Pictures(), DataLoader(TensorDataset(PIXELS.float() / 255, LABELS), batch_size=2), name="mine")
    assert torch.equal(data.train.images, PIXELS) and data.class_names == ["a", "b", "c"] and data.name == "mine"
    assert data.spec.size == (12, 12) and data.spec.mean[0] == pytest.approx(
        float(PIXELS.double().mean() / 255), abs=1e-4
    )
    assert data.test.images.dtype == torch.float32 and torch.equal(data.test.labels, LABELS)
    assert ImageData.of(data.train, data.test, spec=SPEC).class_names == ["0", "1", "2"]
    assert Split.of(data.train) is data.train and len(Split.of(Pictures(), count=2)) == 2
    expert = xf.continual.train_expert(data, architecture="lenet5", spec=load("digits").spec, epochs=1, batch_size=4)
    assert expert.expert.card.class_names == ("a", "b", "c")
    with pytest.raises(ValueError, match="train: the items of TensorDataset must have a class as label"):
        ImageData.of(TensorDataset(PIXELS), Pictures())
    with pytest.raises(ValueError, match=r"test: floating-point images must be in .0, 1., got .* normalises them"):
        ImageData.of(Pictures(), TensorDataset(INPUT, LABELS))
    with pytest.raises(ValueError, match=r"test: images must be \(1, 12, 12\), as those of train, got \(3, 12, 12\)"):
        ImageData.of(Pictures(), Pictures("RGB"))
    with pytest.raises(ValueError, match="class_names must name all labels up to 2, got 2 names"):
        ImageData.of(Pictures(), Pictures(), class_names=["a", "b"])
    assert class_names_of(DataLoader(Subset(Pictures(), [0]))) == ["a", "b", "c"]


@pytest.mark.parametrize("name", ["pictures", "loader"])
def test_every_function_of_images_takes_them(name: str) -> None:
    source, model = SOURCES[name], network()
    of_tensors = xf.invert(model, recipe=BN.replace(steps=2), spec=SPEC, per_class=1, statistics=INPUT)
    of_source = xf.invert(model, recipe=BN.replace(steps=2), spec=SPEC, per_class=1, statistics=source)
    assert torch.equal(of_tensors.images, of_source.images)
    for teacher in (xf.FrozenTeacher, xf.engine.EagerTeacher):
        assert torch.equal(*(teacher(model, SPEC, statistics=s)(INPUT)[1][0].target_mean for s in (INPUT, source)))
    assert torch.equal(network_input(source, SPEC)[0], INPUT)
    with pytest.raises(ValueError, match="spec must be given where images are a data set"):
        network_input(source, None)
    taught = [xf.distill(model, network(1), s, spec=SPEC, steps=2, batch_size=4).model for s in (INPUT, source)]
    assert torch.equal(*(t[0].weight for t in taught))
    config = Training(steps=2, batch_size=4)
    taught = [xf.transfer.zskd(model, network(1), s, spec=SPEC, config=config).model for s in (INPUT, source)]
    assert torch.equal(*(t[0].weight for t in taught))
    scored = xf.evaluation.evaluate(of_source, {"judge": model}, source)
    assert scored.neighbours is not None and len(scored.neighbours.distance) == 5
    auxiliary = xf.AuxiliaryData(source)
    assert torch.equal(auxiliary.images, PIXELS)


def test_hugging_face(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=["a", "b", "c"]))
    rows = [{"image": picture, "label": label} for picture, label in (Pictures()[n] for n in range(6))]
    given = datasets.Dataset.from_list(rows, features=features)
    assert is_source(given)
    data = ImageData.of(given, given)
    assert torch.equal(data.train.images, PIXELS) and data.class_names == ["a", "b", "c"]
    images, labels = images_and_labels(given.with_format("torch"))
    assert torch.equal(images, PIXELS) and torch.equal(labels, LABELS)
    assert torch.equal(images_and_labels(given.to_iterable_dataset(), count=4)[0], PIXELS[:4])

    result = xf.invert(network(), [1, 3], recipe=BN.replace(steps=1, clip="valid"), spec=SPEC, per_class=2)
    made = to_hugging_face(result, class_names={1: "crane", 3: "crane"})
    assert made.features["label"].names == ["crane (1)", "crane (3)"]
    assert made["class_id"] == [1, 3, 1, 3] and made["label"] == [0, 1, 0, 1]
    made.save_to_disk(str(tmp_path / "made"))
    again, ids = images_and_labels(datasets.load_from_disk(str(tmp_path / "made")))
    assert torch.equal(again, (result.pixels() * 255).round().byte()) and ids is not None
    assert to_hugging_face(LabelledImages(INPUT, LABELS), spec=SPEC).features["label"].names == ["0", "1", "2"]
    with pytest.raises(ValueError, match="spec must be given for images that carry none"):
        to_hugging_face(LabelledImages(INPUT, LABELS))


def test_webdataset(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    with webdataset.TarWriter(str(tmp_path / "made.tar")) as writer:
        for number in range(6):
            writer.write({"__key__": f"{number:03d}", "png": Pictures()[number][0], "cls": int(LABELS[number])})
    given = webdataset.WebDataset(str(tmp_path / "made.tar"), shardshuffle=False).decode("pil")
    for source in (given, given.to_tuple("png", "cls")):
        images, labels = images_and_labels(source)
        assert (
            torch.equal(images, PIXELS.expand(-1, 3, -1, -1))
            and isinstance(labels, Tensor)
            and torch.equal(labels, LABELS)
        )
