"""The tasks about one teacher on the quadrants, by command."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from small_experts import save_npz
from small_presets import STUDENT, TINY, call, options

from exml_fast.continual import Expert
from exml_fast.reproduction import preset as presets
from exml_fast.storage import load_json, load_tensors


@pytest.fixture(scope="module")
def npz(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_npz(tmp_path_factory.mktemp("data") / "quadrants.npz"))


def test_zskd_by_command(npz: str, tmp_path: Path) -> None:
    changes = TINY | STUDENT | {"compare": True, "sweep": {"sizes": [8, 16, 999], "steps": 2}}
    preset = tmp_path / "mine.toml"
    text = Path(presets.__file__).parent.joinpath("presets/digits/zskd.toml").read_text()
    preset.write_text(
        "compare = true\n"
        + text.replace('data = "digits"', f"data = '{npz}'")
        + "\n[sweep]\nsizes = [8, 16, 999]\nsteps = 2\n\n[paper]\nZSKD = 98.77\n"
    )
    out = tmp_path / "out"
    arguments = ["--preset", preset, "--out", out, "--report", "--json", "--seeds", 2]
    arguments += options({k: v for k, v in changes.items() if k not in ("sweep", "compare")})
    summary = json.loads(call("transfer", "zskd", *arguments).stdout)
    rows = {row["cell"]: row for row in summary["rows"]}
    assert {"Teacher-CE", "ZSKD", "Student-CE", "Student-KD", "Class Impressions", "Data samples, 16"} <= set(rows)
    assert "Data samples, 999" not in rows and rows["ZSKD"]["paper"] == 98.77 and rows["ZSKD"]["seeds"] == 2
    assert load_json(out / "results.json")["rows"] == summary["rows"]
    assert Expert.load(out / "parts" / "seed_1" / "student").model is not None
    page = (out / "report" / "index.html").read_text()
    assert "98.77" in page and page.count("<svg") == 2 and "Class impressions" in page
    assert summary["details"]["impressions"]["images"] == 16
    call("transfer", "zskd", "--out", out, "--resume")


def test_robustness_by_command(npz: str, tmp_path: Path) -> None:
    pytest.importorskip("art", reason="needs the extra attacks")
    changes = TINY | STUDENT | {"attack.steps": 2, "attack.training_steps": 3, "attack.test_images": 10}
    summary = json.loads(
        call("transfer", "robustness", "--data", npz, "--out", tmp_path, "--json", *options(changes)).stdout
    )
    cells = [row["cell"] for row in summary["rows"]]
    assert len(cells) == 35 and "robust Student/pgd A_adv" in cells and "robust Student under attack/A_nat" in cells
    for name in ("student_of_the_non-robust_teacher", "student_of_the_robust_teacher", "student_under_attack"):
        assert Expert.load(tmp_path / "parts" / "seed_0" / name).card.architecture == "lenet5_half"


def test_adaptation_by_command(npz: str, tmp_path: Path) -> None:
    changes = TINY | {
        "adaptation.steps": 3, "adaptation.target": npz, "adaptation.source_images": 100,
        "adaptation.target_images": 50, "adaptation.tsne": 12, "adaptation.batch_size": 8,
        "rehearsal.steps": 3, "rehearsal.batch_size": 8,
    }  # fmt: skip
    arguments = ["--data", npz, "--out", tmp_path, "--json", "--report", *options(changes)]
    summary = json.loads(call("transfer", "adapt", *arguments).stdout)
    rows = {row["cell"]: row for row in summary["rows"]}
    for name in ("Ours", "Rehearsal"):
        average = sum(rows[f"{name}/C{c}"]["ours"] for c in range(1, 5)) / 4
        assert rows[f"{name}/Avg"]["ours"] == pytest.approx(average, abs=0.01)  # the classes are of equal size
    assert rows["Ours/Avg"]["reduced"] and "impressions.steps 3 instead of 1500" in rows["Ours/Avg"]["note"]
    assert (tmp_path / "report" / "index.html").read_text().count("<svg") == 3
    pictures = {file.name for file in (tmp_path / "report").glob("*.png")}
    names = {"before-adaptation", "after-adaptation", "after-rehearsal"}
    assert pictures == {"images.png", *(f"t-sne-of-the-features-{name}.png" for name in names)}


def test_what_adaptation_lacks_is_named(npz: str, tmp_path: Path) -> None:
    data = dict(np.load(npz))
    few = data | {name: data[name][data["y_test"] != 3] for name in ("x_test", "y_test")}
    np.savez(tmp_path / "few.npz", **few)
    for changes, message in (
        ({"adaptation.target": str(tmp_path / "few.npz")}, "adaptation.target has no test images of classes [3]"),
        ({"adaptation.target_images": 161}, "adaptation.target_images must be at most 160, got 161"),
        ({"adaptation.source_images": 161}, "adaptation.source_images must be at most 160, got 161"),
        ({"adaptation.target": "digits"}, "adaptation.target has 10 classes"),
    ):
        changes = (
            TINY | {"adaptation.target": npz, "adaptation.source_images": 9, "adaptation.target_images": 9} | changes
        )
        given = ["--data", npz, "--out", tmp_path / "out", *options(changes)]
        assert message in call("transfer", "adapt", *given, code=2).output
        assert not (tmp_path / "out").exists()


def test_perturbations_of_odd_sizes_are_refused(npz: str, tmp_path: Path) -> None:
    data = dict(np.load(npz))
    np.savez(tmp_path / "odd.npz", **data | {name: data[name][:, :30, :30] for name in ("x_train", "x_test")})
    changes = TINY | {"teacher.architecture": "cifar_resnet", "teacher.arguments": {"depth": 8}}
    given = ["--data", tmp_path / "odd.npz", "--out", tmp_path / "out", *options(changes)]
    assert "multiples of 8" in call("transfer", "perturb", *given, code=2).output
    assert not (tmp_path / "out").exists()


def test_perturbation_by_reproduce(npz: str, tmp_path: Path) -> None:
    changes = TINY | {"data": npz, "perturbation.steps": 3, "perturbation.batch_size": 8, "perturbation.samples": 2}
    changes |= {"perturbation.epsilons": [0.01, 0.9], "teacher.steps": 60, "perturbation.real_images": True}
    results = tmp_path / "rows.json"
    arguments = ["--seeds", 1, "--out", tmp_path / "out", "--results", results, "--report", *options(changes)]
    output = call("reproduce", "digits/perturb", *arguments).output
    rows = {row["cell"]: row["ours"] for row in load_json(results)["rows"]}
    names = {"Ours", "Real images", "Random signs", "PGD for each image"}
    assert names <= set(rows) and "Random signs" in output
    assert {f"{name} at ε = {epsilon}" for name in names for epsilon in (0.01, 0.9)} <= set(rows)
    attack = "PGD for each image"
    assert rows[f"{attack} at ε = 0.01"] < rows[attack] < rows[f"{attack} at ε = 0.9"]
    page = (tmp_path / "out" / "report" / "index.html").read_text()
    assert page.count("<svg") == 1 and page.count('alt="Perturbations, ±ε drawn as white and black"') == 2
    made = load_tensors(tmp_path / "out" / "parts" / "seed_0" / "perturbations.safetensors")["perturbations"]
    assert made.shape == (2, 1, 32, 32) and 0 < made.abs().max() <= 0.2
    assert "nayak2021/table7-mnist" in call("reproduce").stdout
    refused = [*arguments[:2], "--out", tmp_path / "no", *options(changes | {"perturbation.epsilons": [0.1, 2.0]})]
    assert "epsilons[1] must be at most 1, got 2.0" in call("reproduce", "digits/perturb", *refused, code=2).output


def test_no_task_needs_the_command_line() -> None:
    code = (
        "import sys; sys.modules |= dict.fromkeys(('typer', 'rich', 'jinja2', 'matplotlib'))\n"
        "from exml_fast.reproduction.tasks import STREAM_TASKS, TASKS\n"
        "print(sorted(TASKS), sorted(STREAM_TASKS), any(name.startswith('exml_fast.cli') for name in sys.modules))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    tasks = "['adapt', 'delegator', 'incremental', 'perturb', 'prune', 'robustness', 'zskd']"
    assert found.strip() == f"{tasks} ['learn', 'sweep', 'table'] False"
