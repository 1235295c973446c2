from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from exml_fast.ownership import LIST_FILE, RunFolder, claim, remove_tree
from exml_fast.storage import save_json


def files(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() and p.name != LIST_FILE)


def test_only_listed_files_are_replaced_and_deleted(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with RunFolder(out) as folder:
        save_json(out / "results.json", 1)
        save_json(out / "report" / "a.json", 1)
        save_json(out / "results.json", 2)
        (out / "report" / "mine.txt").write_text("mine")
        (out / "mine.json").write_text("mine")
        with pytest.raises(FileExistsError, match=r"mine\.json is not replaced: this run did not write it"):
            save_json(out / "mine.json", 3)
        save_json(tmp_path / "elsewhere.json", 1)
        assert folder.owns(out / "results.json") and not folder.owns(out / "mine.json")
        assert folder.holds(out / "report") and not folder.holds(out / "rep")
        remove_tree(out / "report")
        assert files(out) == ["mine.json", "report/mine.txt", "results.json"]
    with RunFolder(out) as folder:
        folder.remove()
        assert files(out) == ["mine.json", "report/mine.txt"] and files(tmp_path)[0] == "elsewhere.json"
    save_json(out / "mine.json", 4)
    remove_tree(out / "report")
    assert files(out) == ["mine.json"], "outside a run's folder nothing is looked up"


def test_empty_folders_go_with_their_files(tmp_path: Path) -> None:
    with RunFolder(tmp_path):
        (tmp_path / "checkpoints/empty").mkdir(parents=True)
        save_json(tmp_path / "checkpoints/a/b.json", 1)
        remove_tree(tmp_path / "checkpoints")
        remove_tree(tmp_path / "missing")
        assert os.listdir(tmp_path) == [LIST_FILE]


def test_temporary_files_that_a_killed_process_left_are_swept(tmp_path: Path) -> None:
    with RunFolder(tmp_path):
        claim(tmp_path / "a" / "model.safetensors")
        (tmp_path / "a").mkdir()
    for name in (".0123456789ab.model.safetensors", ".0123456789ab.other", ".mine.model.safetensors"):
        (tmp_path / "a" / name).write_text("")
    with RunFolder(tmp_path):
        assert files(tmp_path) == ["a/.0123456789ab.other", "a/.mine.model.safetensors"]


def test_links_out_of_the_folder_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "else").mkdir()
    out = tmp_path / "out"
    with RunFolder(out):
        save_json(out / "report" / "a.json", 1)
    (out / "report").rename(tmp_path / "gone")
    (out / "report").symlink_to(tmp_path / "gone")
    with RunFolder(out) as folder:
        folder.remove()
    assert files(tmp_path / "gone") == ["a.json"]


@pytest.mark.parametrize("content", [b'"a"\nb\n', b"\xff\n", b"1\n", b'"/etc/passwd"\n', b"[" * 10_000 + b"\n"])
def test_a_damaged_list_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / LIST_FILE).write_bytes(content)
    with pytest.raises(ValueError, match=r"\.written is damaged"), RunFolder(tmp_path):
        pass


def test_names_that_lead_out_and_lines_cut_off_by_a_kill_are_ignored(tmp_path: Path) -> None:
    out, mine = tmp_path / "out", tmp_path / "mine"
    out.mkdir()
    mine.write_text("mine")
    (out / LIST_FILE).write_text(json.dumps("../mine") + "\n" + '"mi')
    with RunFolder(out) as folder:
        folder.remove()
    assert mine.read_text() == "mine"


HOLD = """
import sys
from exml_fast.ownership import RunFolder
RunFolder(sys.argv[1]).__enter__()
print(flush=True)
input()
"""


def test_one_process_writes_at_a_time(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(ValueError, match="another process writes into"), RunFolder(tmp_path):
            pass
        other.kill()
    with RunFolder(tmp_path):
        pass
