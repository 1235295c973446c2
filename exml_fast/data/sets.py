"""Loads image data sets into memory, by name or from files."""

from __future__ import annotations

import os
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from exml_fast.data.core50 import CLASS_NAMES, EVERY, is_core50, read_core50
from exml_fast.data.image_files import IMAGE_SUFFIXES, open_image, read_image
from exml_fast.data.npz import read_npz
from exml_fast.data.spec import InputSpec
from exml_fast.data.split import ImageData, Split, measured_spec
from exml_fast.profiling import free_bytes
from exml_fast.validation import nearest

__all__ = ["NAMES", "load", "some_images"]

NPZ_KEYS = ("x_train", "y_train", "x_test", "y_test")
DIGITS_TEST_SHARE = 0.25
# CORe50 is learned with networks pretrained on ImageNet, so it gets their normalisation.
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Class of torchvision, and published mean and std; None measures them. The numbers of MNIST and Fashion-MNIST are those
# of the 28×28 images, although the images are padded to 32×32.
TORCHVISION_SETS = {
    "mnist": ("MNIST", (0.1307,), (0.3081,)),
    "fashion-mnist": ("FashionMNIST", (0.2860,), (0.3530,)),
    "usps": ("USPS", None, None),
    "svhn": ("SVHN", None, None),
    "cifar10": ("CIFAR10", (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ("CIFAR100", (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}
NAMES = ("digits", "core50", *TORCHVISION_SETS)


def load(
    name: str, root: str | os.PathLike[str] | None = None, size: int | None = None, every: int = EVERY
) -> ImageData:
    """Load a data set.

    Args:
        name: one of

            - "digits": from scikit-learn, without a download; 8×8 images enlarged to 32×32.
            - "mnist" and "fashion-mnist" (28×28, padded to 32×32), "usps" (16×16, enlarged to 28×28 and padded),
              "svhn", "cifar10" and "cifar100" (32×32): downloaded into ``root`` on first use.
            - "core50": read from ``root/core50_128x128``, which the user extracts there.
            - the path of a ``.npz`` file with x_train, y_train, x_test and y_test. Images are (N, H, W) or
              (N, H, W, C), uint8 or float in [0, 1]; labels are integers from 0.
            - the path of a folder with ``train/<class>/`` and ``test/<class>/`` (or ``val/<class>/``), or of CORe50.
        root: folder of the downloaded data sets. The default is the environment variable EXML_FAST_DATA, or
            ~/.cache/exml_fast.
        size: height and width to which the images of a folder are resized; required if their sizes differ.
        every: read every n-th frame of CORe50's films; 20 gives one a second, 1 reads all (8 GB).

    Raises:
        ValueError: naming the key, file or name that is wrong.
        ImportError: for "digits" if scikit-learn is missing.
    """
    if name == "digits":
        return _digits()
    if name in TORCHVISION_SETS:
        return _torchvision(name, _root(root))
    path = Path(name).expanduser()
    if name == "core50" and not path.exists():
        path = _root(root) / "core50_128x128"
        if not path.is_dir():
            raise ValueError(f"no such folder: {path}; extract CORe50's core50_128x128.zip there")
    if path.is_file() and path.suffix == ".npz":
        return _npz(path)
    if path.is_dir() and is_core50(path):
        train, test = read_core50(path, size, every)
        spec = InputSpec(3, (train.images.shape[2], train.images.shape[3]), *IMAGENET)
        return ImageData("core50", train, test, CLASS_NAMES, spec)
    if path.is_dir():
        return _folder(path, size)
    raise ValueError(
        f"data set must be one of {', '.join(NAMES)}, an existing .npz file or an image folder, "
        f"got {str(name)!r}{nearest(name, NAMES)}"
    )


def _root(root: str | os.PathLike[str] | None) -> Path:
    return Path(root or os.environ.get("EXML_FAST_DATA") or "~/.cache/exml_fast").expanduser()


def some_images(source: str | os.PathLike[str], size: tuple[int, int], count: int = 100) -> Tensor:
    """Read some images, at equal distances in the list of all, for statistics or as a comparison.

    Args:
        source: a data set that :func:`load` reads, whose training images are taken in their own size; or a folder that
            holds image files at any depth.
        size: (height, width) to which the images of a folder are resized.
        count: greatest number of images.

    Returns:
        uint8 or float in [0, 1], (N, 1 or 3, H, W) with N at most ``count``.

    Raises:
        ValueError: if ``source`` is no data set and the folder holds no images.
    """
    path = Path(source).expanduser()
    if not path.is_dir():
        images = load(str(source)).train.images
        return images[torch.linspace(0, len(images) - 1, min(count, len(images))).long()]
    files = sorted(f for f in path.rglob("*") if f.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise ValueError(f"{path} holds no images: expected files that end in {', '.join(sorted(IMAGE_SUFFIXES))}")
    found = []
    for i in torch.linspace(0, len(files) - 1, min(count, len(files))).long().tolist():
        with open_image(files[i]) as opened:
            image = opened.convert("RGB").resize(size[::-1], Image.Resampling.BILINEAR)
        found.append(pil_to_tensor(image))
    return torch.stack(found)


def _digits() -> ImageData:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError("the data set digits needs scikit-learn: pip install 'exml_fast[eval]'") from error
    bunch = load_digits()
    small = torch.from_numpy(bunch.images).float()[:, None] / 16
    images = F.interpolate(small, (32, 32), mode="bilinear", align_corners=False)
    images = (images * 255).round().to(torch.uint8)
    labels = torch.from_numpy(bunch.target).long()
    generator = torch.Generator().manual_seed(0)
    is_test = torch.zeros(len(labels), dtype=torch.bool)
    for c in range(10):
        members = torch.nonzero(labels == c)[:, 0]
        order = torch.randperm(len(members), generator=generator)
        is_test[members[order[: round(DIGITS_TEST_SHARE * len(members))]]] = True
    train = Split(images[~is_test], labels[~is_test])
    test = Split(images[is_test], labels[is_test])
    return ImageData("digits", train, test, [str(c) for c in range(10)], measured_spec(train.images))


def _torchvision(name: str, root: Path) -> ImageData:
    import torchvision

    class_name, mean, std = TORCHVISION_SETS[name]
    constructor = getattr(torchvision.datasets, class_name)
    given: list[dict[str, Any]] = [{"train": True}, {"train": False}]
    if name == "svhn":
        given = [{"split": "train"}, {"split": "test"}]
    try:
        parts = [constructor(root, download=True, **which) for which in given]
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise OSError(
            f"the data set {name} is not in {root} and cannot be downloaded ({reason}): give the folder that holds it "
            "as root, on the command line --data-root or EXML_FAST_DATA, or use the bundled digits"
        ) from error
    train, test = (
        Split(_as_32(part.data), torch.as_tensor(part.labels if name == "svhn" else part.targets).long())
        for part in parts
    )
    class_names = list(getattr(parts[0], "classes", map(str, range(10))))
    class_names = [c.split(" - ")[0] if name in ("mnist", "usps") else c for c in class_names]
    spec = measured_spec(train.images) if mean is None or std is None else InputSpec(len(mean), (32, 32), mean, std)
    return ImageData(name, train, test, class_names, spec)


def _as_32(data: Any) -> Tensor:
    """Convert uint8 (N, 28, 28), (N, 16, 16), (N, 3, 32, 32) or (N, 32, 32, 3) to (N, C, 32, 32)."""
    images = torch.as_tensor(data)
    if images.dim() == 3:
        images = images[:, None]
        if images.shape[-1] != 28:
            enlarged = F.interpolate(images.float(), (28, 28), mode="bilinear", align_corners=False)
            images = enlarged.round().to(torch.uint8)
        return F.pad(images, (2, 2, 2, 2))
    return images if images.shape[1] == 3 else images.permute(0, 3, 1, 2).contiguous()


def _npz(path: Path) -> ImageData:
    arrays = read_npz(path, NPZ_KEYS)
    splits = []
    for part in ("train", "test"):
        images = _npz_images(path, f"x_{part}", arrays[f"x_{part}"])
        y = arrays[f"y_{part}"]
        if y.dtype.kind not in "iu" or y.shape != (len(images),):
            raise ValueError(
                f"{path}: 'y_{part}' must be integers of shape ({len(images)},), got {y.dtype} of shape {y.shape}"
            )
        if y.dtype.kind == "u" and len(y) and int(y.max()) > np.iinfo(np.int64).max:
            raise ValueError(f"{path}: 'y_{part}' must fit into int64, got {y.max()}")
        labels = torch.from_numpy(y.astype(np.int64))
        if len(labels) == 0 or int(labels.min()) < 0:
            raise ValueError(f"{path}: 'y_{part}' must hold at least one label, and none below 0")
        splits.append(Split(images, labels))
    train, test = splits
    if train.images.shape[1:] != test.images.shape[1:]:
        raise ValueError(
            f"{path}: 'x_test' has images of shape {tuple(test.images.shape[1:])}, "
            f"'x_train' of {tuple(train.images.shape[1:])}"
        )
    count, used = int(train.labels.max()) + 1, set(train.labels.tolist())
    if len(used) < count:
        missing = list(islice((label for label in range(count) if label not in used), 5))
        raise ValueError(f"{path}: 'y_train' must use every label from 0 to {count - 1}; {missing} do not occur")
    if int(test.labels.max()) >= count:
        raise ValueError(
            f"{path}: 'y_test' has the label {int(test.labels.max())}, but 'y_train' only 0 to {count - 1}"
        )
    return ImageData(path.stem, train, test, [str(c) for c in range(count)], measured_spec(train.images))


def _npz_images(path: Path, key: str, x: np.ndarray) -> Tensor:
    if x.dtype != np.uint8 and x.dtype.kind != "f":
        raise ValueError(f"{path}: {key!r} must be uint8 in [0, 255] or float in [0, 1], got {x.dtype}")
    if x.ndim not in (3, 4) or (x.ndim == 4 and x.shape[3] not in (1, 3)) or 0 in x.shape:
        raise ValueError(f"{path}: {key!r} must be (N, H, W) or (N, H, W, 1 or 3), got shape {x.shape}")
    if x.dtype.kind == "f":
        x = x.astype(np.float32)
        if not np.isfinite(x).all():
            raise ValueError(f"{path}: {key!r} holds NaN or infinite values")
        if x.min() < 0 or x.max() > 1:
            raise ValueError(f"{path}: {key!r} must lie in [0, 1], got {x.min():g} to {x.max():g}")
    images = torch.from_numpy(np.ascontiguousarray(x))
    return images[:, None] if x.ndim == 3 else images.permute(0, 3, 1, 2).contiguous()


def _folder(path: Path, size: int | None) -> ImageData:
    from torchvision.datasets import ImageFolder

    test_path = path / "test" if (path / "test").is_dir() else path / "val"
    for part in (path / "train", test_path):
        if not part.is_dir():
            raise ValueError(f"{path}: expected the folders train/ and test/ (or val/), {part.name}/ is missing")
    try:
        train_files, test_files = ImageFolder(str(path / "train")), ImageFolder(str(test_path))
    except FileNotFoundError as error:
        raise ValueError(f"{path}: every class folder must hold images: {error}") from error
    if train_files.classes != test_files.classes:
        differing = sorted(set(train_files.classes) ^ set(test_files.classes))
        raise ValueError(f"{path}: train/ and {test_path.name}/ have different classes: {differing[:5]}")
    grey = _first_is_grey(train_files.samples)
    train, test = (_read_images(files.samples, grey, size) for files in (train_files, test_files))
    if train.images.shape[1:] != test.images.shape[1:]:
        raise ValueError(f"{path}: train and test images differ in size; give size=... to resize them")
    return ImageData(path.name, train, test, list(train_files.classes), measured_spec(train.images))


def _first_is_grey(samples: list[tuple[str, int]]) -> bool:
    with open_image(samples[0][0]) as image:
        return str(image.mode) in ("1", "L", "I;16")


def _read_images(samples: list[tuple[str, int]], grey: bool, size: int | None) -> Split:
    images: list[Tensor] = []
    room = free_bytes()
    for file, _ in samples:
        tensor = read_image(file, grey, size)
        if not images and room is not None and 2 * len(samples) * tensor.nbytes > room:
            raise ValueError(
                f"{len(samples)} images like {file} need {2 * len(samples) * tensor.nbytes / 1e9:.1f} GB, and "
                f"{room / 1e9:.1f} GB of memory are free; give a smaller size=..."
            )
        if images and tensor.shape != images[0].shape:
            raise ValueError(
                f"{file} is {tensor.shape[1]} x {tensor.shape[2]}, {samples[0][0]} is "
                f"{images[0].shape[1]} x {images[0].shape[2]}; give size=... to resize them"
            )
        images.append(tensor)
    return Split(torch.stack(images), torch.tensor([label for _, label in samples], dtype=torch.int64))
