from __future__ import annotations

import pytest
import torch
from merging_networks import expert
from small_experts import real_images, trained

from exml_fast.continual.ex_model.strategies import Procedural
from exml_fast.continual.merging.images import MergeImages
from exml_fast.data import NaturalFields


def test_a_strategy_makes_images_of_each_expert_once() -> None:
    one, other = trained()
    images = MergeImages(real_images(), 12, seed=0)
    first, second = images.of(0, one), images.of(1, other)
    assert images.from_experts and images.known == "replay" and len(first) == len(second) == 12
    assert torch.equal(images.of(0, one), first) and not torch.equal(first, second)
    pool = torch.cat(list(images.batches()))
    assert sorted(pool.sum((1, 2, 3)).tolist()) == sorted(torch.cat([first, second]).sum((1, 2, 3)).tolist())


@pytest.mark.parametrize("source", [NaturalFields(), Procedural(NaturalFields()), torch.rand(5, 1, 32, 32)])
def test_other_images_are_the_same_for_all_experts(source: object) -> None:
    images = MergeImages(source, 5, seed=3)  # type: ignore[arg-type]
    given = expert("lenet")
    assert torch.equal(images.of(0, given), images.of(1, given)) and not images.from_experts
    assert len(torch.cat(list(images.batches()))) == 5
    assert torch.equal(MergeImages(source, 5, seed=3).of(0, given), images.of(0, given))  # type: ignore[arg-type]


def test_known() -> None:
    assert MergeImages(NaturalFields(), 1, 0).known == "random images, what is known: natural images"
    assert MergeImages(torch.rand(1, 1, 2, 2), 1, 0).known == "given images"
    assert MergeImages([torch.rand(1, 1, 2, 2)], 1, 0).known == "images given for each expert"


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="images must be a tensor, a Result, an ImageSource or a Strategy"):
        MergeImages("natural-fields", 1, 0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="count"):
        MergeImages(NaturalFields(), 0, 0)
    with pytest.raises(ValueError, match=r"images must be \(N, C, H, W\) with N > 0, got shape \(3, 4\)"):
        MergeImages(torch.zeros(3, 4), 1, 0).of(0, expert("lenet"))
