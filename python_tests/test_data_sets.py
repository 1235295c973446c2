"""Loading data sets by name and from files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from exml_fast.data import ImageData, InputSpec, Split, load
from exml_fast.data.sets import _as_32


def check(data: ImageData) -> None:
    for split in (data.train, data.test):
        assert split.images.shape[1:] == data.spec.shape
        assert sorted(set(split.labels.tolist())) == data.classes
    x = data.train.normalized(data.spec, slice(0, 2000))
    assert abs(float(x.mean())) < 0.2 and abs(float(x.std()) - 1) < 0.2


def test_digits_are_split_the_same_way_every_time() -> None:
    pytest.importorskip("sklearn")
    data, again = load("digits"), load("digits")
    check(data)
    assert len(data.train) + len(data.test) == 1797
    assert data.spec.shape == (1, 32, 32) and data.train.images.dtype == torch.uint8
    assert torch.equal(data.test.images, again.test.images) and data.spec == again.spec
    share = torch.bincount(data.test.labels).float() / torch.bincount(torch.cat([data.train.labels, data.test.labels]))
    assert bool(((share - 0.25).abs() < 0.01).all())


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_torchvision_sets(name: str) -> None:
    folder = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST"}[name]
    root = os.environ.get("EXML_FAST_DATA", "")
    if not (Path(root) / folder / "raw").is_dir():
        pytest.skip(f"set EXML_FAST_DATA to a folder that holds {folder}/raw")
    data = load(name)
    check(data)
    assert len(data.train) == 60000 and len(data.test) == 10000 and data.spec.shape == (1, 32, 32)
    assert data.class_names[1] == {"mnist": "1", "fashion-mnist": "Trouser"}[name]


def test_usps() -> None:
    root = os.environ.get("EXML_FAST_DATA", "")
    if not (Path(root) / "usps.bz2").is_file():
        pytest.skip("set EXML_FAST_DATA to a folder that holds usps.bz2 and usps.t.bz2")
    data = load("usps")
    check(data)
    assert len(data.train) == 7291 and len(data.test) == 2007
    assert data.class_names == [str(c) for c in range(10)]


def test_torchvision_arrays_become_32_pixels() -> None:
    mnist = torch.randint(0, 255, (2, 28, 28), dtype=torch.uint8)
    assert torch.equal(_as_32(mnist)[:, 0, 2:30, 2:30], mnist) and int(_as_32(mnist)[:, :, :2].max()) == 0
    usps = np.full((3, 16, 16), 200, dtype=np.uint8)
    assert _as_32(usps).shape == (3, 1, 32, 32) and _as_32(usps)[0, 0, 2:30, 2:30].unique().tolist() == [200]
    svhn = np.arange(2 * 3 * 32 * 32, dtype=np.uint8).reshape(2, 3, 32, 32)
    assert torch.equal(_as_32(svhn), torch.from_numpy(svhn))
    assert torch.equal(_as_32(svhn.transpose(0, 2, 3, 1)), torch.from_numpy(svhn))


def test_split_selects_classes_and_batches() -> None:
    labels = torch.tensor([0, 1, 2, 1])
    split = Split(torch.arange(4, dtype=torch.uint8).view(4, 1, 1, 1).expand(4, 1, 2, 2), labels)
    part = split.of_classes([1, 2])
    assert part.labels.tolist() == [1, 2, 1] and part.images[:, 0, 0, 0].tolist() == [1, 2, 3]
    spec = InputSpec(1, (2, 2), (0.0,), (1.0,))
    batches = list(split.batches(spec, 3))
    assert [len(y) for _, y in batches] == [3, 1]
    torch.testing.assert_close(torch.cat([x for x, _ in batches]), split.normalized(spec))
    with pytest.raises(ValueError, match="labels must be int64"):
        Split(split.images, labels.int())
    with pytest.raises(ValueError, match="images must be"):
        Split(torch.zeros(4, 2, 2), labels)


def arrays(**change: Any) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    good = {
        "x_train": rng.integers(0, 256, (20, 6, 5), dtype=np.uint8),
        "y_train": np.arange(20) % 3,
        "x_test": rng.integers(0, 256, (6, 6, 5), dtype=np.uint8),
        "y_test": np.arange(6) % 3,
    }
    return {k: v for k, v in {**good, **change}.items() if v is not None}


def test_npz_of_uint8_and_float(tmp_path: Path) -> None:
    np.savez(tmp_path / "grey.npz", **arrays())
    data = load(str(tmp_path / "grey.npz"))
    check(data)
    assert data.name == "grey" and data.spec.shape == (1, 6, 5) and data.class_names == ["0", "1", "2"]
    rng = np.random.default_rng(1)
    np.savez(tmp_path / "colour.npz", **arrays(x_train=rng.random((20, 6, 5, 3)), x_test=rng.random((6, 6, 5, 3))))
    data = load(str(tmp_path / "colour.npz"))
    check(data)
    assert data.spec.shape == (3, 6, 5) and data.train.images.dtype == torch.float32


NAN = np.full((20, 6, 5), np.nan)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y_test": None}, "'y_test' is missing"),
        ({"x_train": np.zeros((20, 6), np.uint8)}, r"'x_train' must be \(N, H, W\)"),
        ({"x_train": np.zeros((20, 6, 5, 2), np.uint8)}, r"'x_train' must be \(N, H, W\)"),
        ({"x_test": np.zeros((0, 6, 5), np.uint8)}, r"'x_test' must be \(N, H, W\)"),
        ({"x_train": np.zeros((20, 6, 5), np.int32)}, "'x_train' must be uint8"),
        ({"x_train": NAN}, "'x_train' holds NaN"),
        ({"x_test": np.full((6, 6, 5), 2.0)}, r"'x_test' must lie in \[0, 1\]"),
        ({"x_test": np.zeros((6, 5, 5), np.uint8)}, "'x_test' has images of shape"),
        ({"y_train": np.zeros(20)}, "'y_train' must be integers"),
        ({"y_train": np.zeros(19, int)}, "'y_train' must be integers of shape"),
        ({"y_train": np.arange(20) % 3 - 1}, "'y_train' must hold at least one label, and none below 0"),
        ({"y_train": np.arange(20) % 3 * 2}, "'y_train' must use every label"),
        ({"y_test": np.full(6, 7)}, "'y_test' has the label 7"),
        ({"x_train": np.array([{}] * 20, dtype=object)}, "must be plain numbers"),
    ],
)
def test_npz_errors_name_the_key(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    np.savez(tmp_path / "bad.npz", **arrays(**change))
    with pytest.raises(ValueError, match=message):
        load(str(tmp_path / "bad.npz"))


def make_folder(path: Path, mode: str = "RGB", size: tuple[int, int] = (8, 6), test: str = "test") -> None:
    rng = np.random.default_rng(0)
    for part in ("train", test):
        for name in ("cat", "dog"):
            (path / part / name).mkdir(parents=True)
            for i in range(3):
                shape = (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0])
                image = Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8), mode)
                image.save(path / part / name / f"{i}.png")


@pytest.mark.parametrize(("mode", "channels", "test"), [("RGB", 3, "test"), ("L", 1, "val")])
def test_image_folder(tmp_path: Path, mode: str, channels: int, test: str) -> None:
    make_folder(tmp_path, mode, test=test)
    data = load(str(tmp_path))
    check(data)
    assert data.spec.shape == (channels, 6, 8) and data.class_names == ["cat", "dog"]
    assert load(str(tmp_path), size=16).spec.shape == (channels, 16, 16)


def test_image_folder_errors(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"train/ and test/ .* is missing"):
        load(str(tmp_path))
    make_folder(tmp_path)
    Image.new("RGB", (3, 3)).save(tmp_path / "train" / "dog" / "9.png")
    with pytest.raises(ValueError, match=r"9\.png is 3 x 3"):
        load(str(tmp_path))
    assert load(str(tmp_path), size=8).spec.shape == (3, 8, 8)
    (tmp_path / "train" / "emu").mkdir()
    with pytest.raises(ValueError, match="every class folder must hold images"):
        load(str(tmp_path))
    Image.new("RGB", (8, 6)).save(tmp_path / "train" / "emu" / "0.png")
    with pytest.raises(ValueError, match=r"different classes: \['emu'\]"):
        load(str(tmp_path))


def test_unknown_name_lists_the_choices_and_suggests_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"one of digits, core50, .* got 'cifar' \(did you mean 'cifar\d+'\?\)"):
        load("cifar")
    with pytest.raises(ValueError, match=r"got 'nothing'$"):
        load("nothing")


def test_a_set_that_cannot_be_downloaded_names_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise RuntimeError("Error downloading train-images-idx3-ubyte.gz")

    monkeypatch.setattr("torchvision.datasets.MNIST", offline)
    with pytest.raises(OSError, match=f"mnist is not in {tmp_path} and cannot be downloaded .*--data-root"):
        load("mnist", tmp_path)
