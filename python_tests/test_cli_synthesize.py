import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from small_jobs import digests, small_teacher
from torchvision.datasets import ImageFolder
from typer.testing import CliRunner, Result

from exml_fast.cli.app import app
from exml_fast.continual import Expert
from exml_fast.data import Shards

QUICK = ("--per-shard", "4", "--recipe", "model_inversion", "--steps", "2")
HERE = ("--workers", "0")


def call(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == code, (result.output, result.exception)
    return result


def as_json(*arguments: object) -> dict[str, Any]:
    return json.loads(call(*arguments, "--json").stdout)


@pytest.fixture(scope="module")
def expert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("experts") / "first"
    small_teacher().save(folder)
    return folder


def test_shards_of_an_expert_and_a_student_that_learns_from_them(expert: Path, tmp_path: Path) -> None:
    job = ("synthesize", expert, "--shards", 3, *QUICK, "--classes", "3,9", "--out", tmp_path / "job")
    summary = as_json(*job, *HERE, "--image-folder", tmp_path / "png", "--webdataset", tmp_path / "tar")
    assert summary["images"] == 12 and summary["shards"] == 3 and summary["executor"] == "local"
    assert ImageFolder(str(tmp_path / "png")).classes == ["3", "9"] and len(list((tmp_path / "tar").iterdir())) == 1
    before = digests(tmp_path / "job")
    assert as_json(*job, *HERE)["shards"] == 3 and digests(tmp_path / "job") == before
    said = call("synthesize", expert, "--shards", 4, *job[4:], *HERE, code=2).output
    assert "holds another job" in said and digests(tmp_path / "job") == before
    learned = as_json("distill", expert, "--images", tmp_path / "job", "--steps", 3, "--out", tmp_path / "student")
    assert learned["images"] == 12 and Expert.load(tmp_path / "student" / "student").units == (3, 5, 7, 9)
    refused = call("distill", expert, "--images", tmp_path / "job", "--classes", 3, "--out", tmp_path / "b", code=2)
    assert "--classes" in refused.output


def test_several_networks_have_a_folder_each(expert: Path, tmp_path: Path) -> None:
    other = tmp_path / "second"
    small_teacher(1).save(other)
    summary = as_json("synthesize", expert, other, "--shards", 1, *QUICK, "--out", tmp_path / "jobs", *HERE)
    assert summary["networks"] == 2 and len(set(summary["jobs"].values())) == 2
    assert {Path(folder).name for folder in summary["jobs"]} == {"first", "second"}
    assert as_json("synthesize", "--out", tmp_path / "jobs", "--resume", *HERE)["networks"] == 2
    twice = call("synthesize", expert, expert, "--out", tmp_path / "twice", code=2).output
    assert "two networks would share a folder" in twice


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((), "NETWORK is missing"), (("lenet5", "--executor", "spark"), "--executor must be local, ray or slurm"),
     (("lenet5", "--gpus", "0.5"), "--gpus is for --executor ray"), (("lenet5", "--slurm", "a=1"), "--slurm is for"),
     (("--resume",), "no synthesis job in"), (("lenet5",), "weights must be a local file"),
     (("--resume", "--seed", "3"), "leave out seed")],
)  # fmt: skip
def test_wrong_options_are_named(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    said = call("synthesize", *arguments, "--out", tmp_path / "out", code=2).output
    assert message in " ".join(said.split())
    assert not (tmp_path / "out").exists()


def test_ctrl_c_drains_and_resume_goes_on(expert: Path, tmp_path: Path) -> None:
    out = tmp_path / "job"
    command = [sys.executable, "-m", "exml_fast.cli", "synthesize"]
    job = [str(expert), "--shards", "24", "--per-shard", "8", "--recipe", "model_inversion", "--steps", "120"]
    # A group of its own: Ctrl-C reaches the workers too.
    process = subprocess.Popen(
        [*command, *job, "--workers", "1", "--out", str(out)], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    until = time.monotonic() + 120
    while not list(out.glob("shards/*/0*")) and time.monotonic() < until:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    said = process.communicate(timeout=120)[1]
    assert process.returncode == 130 and "synthesize --out" in said and "--resume" in said
    done = len(Shards(out).indices)
    assert 1 <= done < 24 and len(digests(out)) == done
    first = digests(out)
    summary = as_json("synthesize", "--out", out, "--resume", *HERE)
    assert summary["shards"] == 24 and first.items() <= digests(out).items()
