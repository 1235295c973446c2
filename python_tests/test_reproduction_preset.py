"""Presets by name, their figures, and changes."""

from __future__ import annotations

import pytest
from small_experts import save_npz

from exml_fast.reproduction.preset import shortened
from exml_fast.reproduction.runner import load_preset


@pytest.fixture(scope="module")
def npz(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_npz(tmp_path_factory.mktemp("data") / "quadrants.npz"))


def test_presets_know_the_papers_figures() -> None:
    assert load_preset("nayak2021/table1")["paper"]["ZSKD"] == 98.77
    assert load_preset("nayak2021/table4-mnist")["paper"]["robust Student/pgd A_adv"] == 54.38
    assert load_preset("nayak2021/table5-usps-mnist")["paper"]["Ours/Avg"] == 89.15
    assert load_preset("nayak2021/table7-fashion-mnist")["paper"]["Ours"] == 96.37


def test_a_change_to_less_is_said() -> None:
    no_length = {"perturbation.real_images": False, "perturbation.samples": 1, "teacher.lr": 1e-9}
    assert shortened(load_preset("nayak2021/table7-mnist", no_length)) == []
    few = {"attack.test_images": 5}
    assert shortened(load_preset("nayak2021/table4-mnist", few)) == ["attack.test_images 5 instead of all"]
    changes = {"teacher.steps": 1, "distillation.steps": 90000, "impressions.count": 10, "impressions.lr": 0.001}
    assert shortened(load_preset("nayak2021/table1", changes)) == [
        "teacher.steps 1 instead of 14000", "impressions.count 10 instead of 24000",
    ]  # fmt: skip
    batches = {"teacher.batch_size": 64, "distillation.batch_size": 256, "impressions.batch_size": 10}
    assert shortened(load_preset("nayak2021/table1", batches)) == ["teacher.batch_size 64 instead of 128"]
    assert shortened(load_preset("nayak2021/table5-usps-mnist")) == ["adaptation.steps 500 instead of 20000"]


def test_other_data_and_other_teachers_stand_beside_no_papers_figures() -> None:
    for changes, there in (
        ({"data": "data/mnist.npz"}, True), ({"teacher.lr": 0.1}, True), ({"data": "usps"}, False),
        ({"teacher": {"expert": "mine"}}, False), ({"student.architecture": "lenet5"}, False),
        ({"adaptation.target": "svhn"}, False),
    ):  # fmt: skip
        assert ("paper" in load_preset("nayak2021/table5-mnist-usps", changes)) == there
