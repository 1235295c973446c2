"""The hub is replaced by folders: no network. The calls are checked against the real functions' parameters."""

from __future__ import annotations

import inspect
import shutil
import sys
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from small_experts import trained

from exml_fast.continual import hub
from exml_fast.continual.catalogue import Catalogue
from exml_fast.continual.expert import Expert
from exml_fast.continual.stream import ExpertStream

huggingface_hub = pytest.importorskip("huggingface_hub")


def copy_matching(source: Path, target: Path, patterns: list[str]) -> None:
    for file in sorted(source.rglob("*")):
        name = str(file.relative_to(source))
        if file.is_file() and any(fnmatch(name, pattern) for pattern in patterns):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target / name)


@pytest.fixture
def repos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for owner/name/revision."""
    root = tmp_path / "hub"
    real = {name: inspect.signature(getattr(huggingface_hub, name)) for name in ("create_repo", "upload_folder",
                                                                                "snapshot_download")}  # fmt: skip

    def create_repo(*arguments: Any, **options: Any) -> None:
        call = real["create_repo"].bind(*arguments, **options).arguments
        (root / call["repo_id"] / "main").mkdir(parents=True, exist_ok=call["exist_ok"])
        (root / call["repo_id"] / ("private" if call["private"] else "public")).touch()

    def upload_folder(**options: Any) -> Any:
        call = real["upload_folder"].bind(**options).arguments
        target = root / call["repo_id"] / (call["revision"] or "main")
        copy_matching(Path(call["folder_path"]), target, call["allow_patterns"])
        return SimpleNamespace(commit_url=f"commit:{call['commit_message']}")

    def snapshot_download(*arguments: Any, **options: Any) -> str:
        call = real["snapshot_download"].bind(*arguments, **options).arguments
        source = root / call["repo_id"] / (call["revision"] or "main")
        if not source.is_dir():
            raise FileNotFoundError(f"Revision Not Found: {call['revision']}")
        cache = tmp_path / "cache" / call["repo_id"]
        copy_matching(source, cache, call["allow_patterns"])
        return str(cache)

    for fake in (create_repo, upload_folder, snapshot_download):
        monkeypatch.setattr(huggingface_hub, fake.__name__, fake)
    return root


@pytest.fixture
def stream(tmp_path: Path) -> Path:
    """Exported in an order that is not that of the names, with a file that concerns nobody."""
    catalogue = Catalogue(tmp_path / "catalogue")
    for name, expert in zip(("b", "a"), trained(), strict=True):
        catalogue.add(expert, name)
    catalogue.export(tmp_path / "stream", ["b", "a"])
    (tmp_path / "stream" / "secret.json").write_text("{}")
    (tmp_path / "stream" / "b" / "train.py").write_text("raise SystemExit")
    return tmp_path / "stream"


def files(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


STREAM_FILES = ["a/card.json", "a/model.safetensors", "b/card.json", "b/model.safetensors", "stream.json"]


def test_a_stream_there_and_back(repos: Path, stream: Path, tmp_path: Path) -> None:
    assert hub.push(stream, "me/quadrants", private=True) == "commit:Upload stream with exml_fast"
    pushed = repos / "me" / "quadrants" / "main"
    assert files(pushed) == STREAM_FILES and (pushed.parent / "private").exists()
    # Whatever else is in the repository is not even downloaded.
    for name in ("evil.py", "pytorch_model.bin", "b/optimizer.pt", "config.json", "other.safetensors"):
        (pushed / name).write_text("not for us")
    cards = hub.pull("me/quadrants", tmp_path / "pulled")
    assert files(tmp_path / "cache/me/quadrants") == files(tmp_path / "pulled") == STREAM_FILES
    assert (
        [card.classes for card in cards] == [(0, 1), (2, 3)] == [e.classes for e in ExpertStream(tmp_path / "pulled")]
    )
    assert ExpertStream(tmp_path / "pulled").fingerprints() == ExpertStream(stream).fingerprints()
    with pytest.raises(FileExistsError, match="exists already"):
        hub.pull("me/quadrants", tmp_path / "pulled")
    hub.pull("me/quadrants", tmp_path / "pulled", overwrite=True)


def test_an_expert_on_a_revision(repos: Path, stream: Path, tmp_path: Path) -> None:
    (repos / "me" / "one" / "v2").mkdir(parents=True)
    assert hub.push(stream / "a", "me/one", revision="v2", message="second") == "commit:second"
    assert files(repos / "me" / "one" / "v2") == ["card.json", "model.safetensors"]
    assert files(repos / "me" / "one" / "main") == [] and (repos / "me" / "one" / "public").exists()
    (card,) = hub.pull("me/one", tmp_path / "pulled", revision="v2")
    assert Expert.load(tmp_path / "pulled").card == card and card.classes == (2, 3)
    with pytest.raises(FileNotFoundError, match="Revision Not Found: v3"):
        hub.pull("me/one", tmp_path / "other", revision="v3")


def test_nothing_damaged_goes_up_or_comes_down(repos: Path, stream: Path, tmp_path: Path) -> None:
    hub.push(stream, "me/quadrants")
    for weights in (
        stream / "b" / "model.safetensors",
        repos / "me" / "quadrants" / "main" / "b" / "model.safetensors",
    ):
        weights.write_bytes(weights.read_bytes()[:-1] + b"\xff")
    with pytest.raises(ValueError, match="sha256 is"):
        hub.push(stream, "me/other")
    assert not (repos / "me" / "other").exists()
    with pytest.raises(ValueError, match="sha256 is"):
        hub.pull("me/quadrants", tmp_path / "pulled")
    assert not (tmp_path / "pulled").exists()


def test_repositories_without_one_clear_content(repos: Path, stream: Path, tmp_path: Path) -> None:
    (repos / "me" / "empty" / "main").mkdir(parents=True)
    with pytest.raises(ValueError, match="me/empty holds no expert"):
        hub.pull("me/empty", tmp_path / "pulled")
    hub.push(stream, "me/both")
    hub.push(stream / "a", "me/both")
    with pytest.raises(ValueError, match="me/both holds an expert and a stream of 2"):
        hub.pull("me/both", tmp_path / "pulled")
    with pytest.raises(ValueError, match="no such folder"):
        hub.push(tmp_path / "nowhere", "me/x")
    (tmp_path / "bare").mkdir()
    with pytest.raises(ValueError, match="no expert to write"):
        hub.push(tmp_path / "bare", "me/x")


def test_a_plain_folder_of_experts_can_be_pulled(repos: Path, stream: Path, tmp_path: Path) -> None:
    shutil.copytree(stream, repos / "me" / "plain" / "main")
    (repos / "me" / "plain" / "main" / "stream.json").unlink()
    assert [card.classes for card in hub.pull("me/plain", tmp_path / "pulled")] == [(2, 3), (0, 1)]
    assert (tmp_path / "pulled" / "stream.json").is_file()


def test_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r"exml_fast\[hub\]"):
        hub.pull("me/one", tmp_path / "x")
