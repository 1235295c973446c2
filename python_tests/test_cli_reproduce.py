"""The commands `transfer` and `reproduce`: what is kept, resumed and refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_experts import save_npz
from small_presets import STUDENT, TINY, call, options

from exml_fast.reproduction.runner import load_preset, run
from exml_fast.storage import load_json


@pytest.fixture(scope="module")
def npz(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_npz(tmp_path_factory.mktemp("data") / "quadrants.npz"))


def test_a_mistake_leaves_a_finished_run_alone(npz: str, tmp_path: Path) -> None:
    arguments = ["transfer", "zskd", "--data", npz, "--out", tmp_path, *options(TINY | STUDENT)]
    call(*arguments)
    before = (tmp_path / "results.json").read_bytes()
    for mistake, message in (
        (("--set", "teacher.lr=-1"), "teacher: lr must be positive, got -1"),
        (("--device", "gpu"), "--device must be cpu, cuda or cuda:<n>, got 'gpu'"),
        (("--seed", -1), "--seed"),
        (("--set", "impressions.compete=1.0"), "impressions: compete must be 0"),
        (("--teacher", tmp_path), "--teacher takes a trained network: leave out --set teacher.steps"),
    ):
        assert message in call(*arguments, *mistake, code=2).output
        assert (tmp_path / "results.json").read_bytes() == before and (tmp_path / "parts/seed_0/teacher").is_dir()
    for source, message in (
        (("--teacher", tmp_path), "card.json"),
        (("--teacher", tmp_path / "parts/seed_0/teacher"), "which the run would replace: give another --out"),
    ):
        short = [*arguments[:6], *source, *options(STUDENT | {"impressions.count": 16})]
        assert message in call(*short, code=2).output
        assert (tmp_path / "results.json").read_bytes() == before and (tmp_path / "parts/seed_0/teacher").is_dir()
    # Also without the commands: a preset that cannot run, or a folder of another making.
    with pytest.raises(ValueError, match="teacher: lr must be"):
        run(load_preset("digits/zskd", {"teacher.lr": -1}), tmp_path)
    assert (tmp_path / "parts/seed_0/teacher").is_dir()
    (tmp_path / "parts/seed_0/preset.json").unlink()
    with pytest.raises(ValueError, match="seed_0 holds files that no run of a preset made"):
        run(load_preset("digits/zskd"), tmp_path)
    assert "seed_0 holds files that no run of a preset made" in call(*arguments, code=2).output
    assert (tmp_path / "parts/seed_0/teacher").is_dir() and (tmp_path / "results.json").read_bytes() == before


def interrupted(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_an_interrupted_run_goes_on_as_it_was_typed(npz: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results, out = tmp_path / "rows.json", tmp_path / "out"
    arguments = ["digits/zskd", "--out", out, "--results", results, "--seeds", 1, "--report"]
    arguments += options(TINY | STUDENT | {"data": npz})
    monkeypatch.setattr("sys.argv", ["exml-fast", "reproduce", *map(str, arguments)])
    with monkeypatch.context() as patch:
        patch.setattr("exml_fast.reproduction.lab.zskd", interrupted)
        call("reproduce", *arguments, code=130)
    assert not results.exists()
    monkeypatch.setattr("sys.argv", ["exml-fast", "reproduce", "--out", str(out), "--resume"])
    for _ in range(2):  # the second finds everything done
        call("reproduce", "--out", out, "--resume")
        written = load_json(results)
        assert written["command"].startswith("exml-fast reproduce digits/zskd") and written == load_json(
            out / "results.json"
        )
        assert {"teacher", "impressions", "zskd"} <= set(written["seconds"])
        assert written["details"]["impressions"]["images"] == 16
        assert (out / "report" / "index.html").read_text().count("<img") == 4


def test_options_that_do_not_fit_are_named(tmp_path: Path) -> None:
    assert "--resume needs --out" in call("reproduce", "--resume", code=2).output
    bad = call("reproduce", "digits/zskd", "--out", tmp_path / "out", "--results", tmp_path, code=2).output
    assert f"--results must be a file, {tmp_path} is a folder" in bad and not (tmp_path / "out").exists()
    bad = call("reproduce", "digits/zskd", "--out", tmp_path, "--set", "impressions.count", code=2).output
    assert "--set must be NAME=VALUE, got 'impressions.count'" in bad
    (tmp_path / "run.json").write_text('{"version": 1, "command": "reproduce", "settings": {}}')
    bad = call("reproduce", "digits/zskd", "--out", tmp_path, "--seeds", 2, "--resume", code=2).output
    assert "leave out --seeds, NAME" in bad


def test_the_wrong_task_is_named(tmp_path: Path) -> None:
    result = call("transfer", "perturb", "--preset", "digits/zskd", "--out", tmp_path / "x", code=2)
    assert "is for `exml-fast transfer zskd`" in result.output and not (tmp_path / "x").exists()
