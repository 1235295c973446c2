"""Class orders, protocols and tasks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from exml_fast.continual.class_incremental import Task, class_order, divided, tasks_of
from exml_fast.continual.class_incremental.tasks import positions
from exml_fast.data import ImageData, InputSpec, Split


def data(classes: int = 10) -> ImageData:
    labels = torch.arange(classes).repeat(3)
    images = labels.to(torch.uint8)[:, None, None, None].expand(-1, 1, 4, 4).contiguous()
    split = Split(images, labels)
    names = [str(c) for c in range(classes)]
    return ImageData("numbers", split, split, names, InputSpec(1, (4, 4), (0.5,), (0.5,)))


def test_the_order_is_that_of_icarl() -> None:
    np.random.seed(1993)
    expected = np.arange(100)
    np.random.shuffle(expected)
    assert class_order(100) == expected.tolist()
    assert class_order(100)[:5] == [68, 56, 78, 8, 23]  # the first classes of iCaRL's order of CIFAR-100
    assert class_order(5, None) == [0, 1, 2, 3, 4] and sorted(class_order(50, 7)) == list(range(50))


@pytest.mark.parametrize(
    ("protocol", "sizes"),
    [
        ("b0-10", [10] * 10),
        ("b0-1", [100]),
        ("b50-5", [50, 10, 10, 10, 10, 10]),
        ("b50-25", [50] + [2] * 25),
        ("b0-3", [34, 33, 33]),
    ],
)
def test_protocols(protocol: str, sizes: list[int]) -> None:
    assert divided(100, protocol) == sizes


@given(classes=st.integers(1, 200), base=st.integers(0, 100), count=st.integers(1, 40))
def test_tasks_have_all_classes_in_sizes_that_differ_by_at_most_one(classes: int, base: int, count: int) -> None:
    if classes - base < count:
        with pytest.raises(ValueError, match="protocol must be"):
            divided(classes, f"b{base}-{count}")
        return
    sizes = divided(classes, f"b{base}-{count}")
    later = sizes[1:] if base else sizes
    assert sum(sizes) == classes and len(later) == count and max(later) - min(later) <= 1 and min(sizes) >= 1


def test_the_tasks_of_a_data_set_part_its_images() -> None:
    whole = data()
    tasks = tasks_of(whole, "b4-3", 5)
    assert [len(task.classes) for task in tasks] == [4, 2, 2, 2]
    assert [c for task in tasks for c in task.classes] == class_order(10, 5)
    for task in tasks:
        assert sorted(task.split.labels.tolist()) == sorted(task.classes * 3)
        assert torch.equal(task.split.images[:, 0, 0, 0].long(), task.split.labels)
    assert [task.classes for task in tasks_of(whole, [[3, 1], (9,)])] == [(3, 1), (9,)]


@pytest.mark.parametrize(
    ("protocol", "message"),
    [
        ("b0", "protocol must be 'bB-T', as 'b0-10' or 'b50-5'.*got 'b0' for 10 classes"),
        ("b0-11", "got 'b0-11' for 10 classes"),
        ("b10-1", "got 'b10-1' for 10 classes"),
        ([[1, 10]], r"protocol names the classes \[10\], which 'numbers' does not have"),
        ([[1, 2], [2]], "protocol must name each class once"),
        ([[1], []], "classes must be at least one"),
    ],
)
def test_bad_protocols_are_named(protocol: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tasks_of(data(), protocol)


def test_bad_tasks_are_named() -> None:
    split = data(3).train
    cases: list[tuple[tuple[int, ...], Split, str]] = [
        ((), split, "classes must be at least one, without repetition"),
        ((0, 1, 1, 2), split, "classes must be at least one, without repetition"),
        ((0, 1, 2, 5), split, r"the task has no images of its classes \[5\]"),
        ((0, 1), split, r"the task has images of the classes \[2\], which are not among its own"),
        ((0,), split.subset(torch.zeros(9, dtype=torch.bool)), r"the task has no images of its classes \[0\]"),
        ((0, 1, 2), Split(split.images.float(), split.labels), r"uint8, or float pixels in \[0, 1\] without NaN"),
        ((0, 1, 2), Split(split.images.float() * torch.nan, split.labels), "without NaN"),
    ]
    for classes, images, message in cases:
        with pytest.raises(ValueError, match=message):
            Task(classes, images)
    assert Task(np.array([2, 0, 1]), split).classes == (2, 0, 1)  # type: ignore[arg-type]


@given(classes=st.lists(st.integers(-5, 10**12), min_size=1, max_size=9, unique=True), data=st.data())
def test_positions_are_places_in_the_classes(classes: list[int], data: Any) -> None:
    labels = data.draw(st.lists(st.sampled_from(classes)))
    found = positions(torch.tensor(labels, dtype=torch.int64), classes)
    assert found.tolist() == [classes.index(label) for label in labels]
