"""Experts and streams on the Hugging Face Hub. Needs the extra ``hub``.

Only ``model.safetensors``, ``card.json`` and ``stream.json`` are transferred. Every expert is checked before an upload
and after a download as by :meth:`Expert.load`, so that no downloaded file runs code.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from types import ModuleType

from exml_fast.continual.catalogue import check_target, copy_expert, export_stream
from exml_fast.continual.expert import CARD_FILE, MODEL_FILE, Card, read_card
from exml_fast.continual.stream import STREAM_FILE, stream_folders
from exml_fast.storage import atomic_folder

__all__ = ["pull", "push"]

PATTERNS = [MODEL_FILE, CARD_FILE, STREAM_FILE, f"*/{MODEL_FILE}", f"*/{CARD_FILE}"]


def push(
    source: str | os.PathLike[str],
    repo_id: str,
    *,
    revision: str | None = None,
    private: bool = False,
    message: str | None = None,
) -> str:
    """Check and upload an expert's folder, or a stream's with its order; returns the address of the commit.

    Only the expert's files are uploaded. Other files of the repository stay.

    Args:
        repo_id: "owner/name"; created if it does not exist, as a private one with ``private``.
        revision: an existing branch; the main one if not given.

    Raises:
        ValueError: for an expert that :meth:`Expert.load` refuses, or no expert in ``source``.
        ImportError: naming the extra.
        OSError: from the hub: no such branch, not logged in, no connection.
    """
    hub, source = _hub(), Path(source)
    with tempfile.TemporaryDirectory() as folder:
        staged = Path(folder) / "upload"
        if (source / CARD_FILE).is_file():
            staged.mkdir()
            copy_expert(source, staged)
        else:
            export_stream(stream_folders(source), staged)
        hub.create_repo(repo_id, private=private, exist_ok=True)
        commit = hub.upload_folder(
            repo_id=repo_id, folder_path=staged, revision=revision, allow_patterns=PATTERNS,
            commit_message=message or f"Upload {source.resolve().name} with exml_fast",
        )  # fmt: skip
    return str(getattr(commit, "commit_url", commit))


def pull(
    repo_id: str, destination: str | os.PathLike[str], *, revision: str | None = None, overwrite: bool = False
) -> list[Card]:
    """Download an expert or a stream, check it, and write it to ``destination``, whole or not at all.

    Args:
        revision: a branch, tag or commit; only a commit cannot change.
        overwrite: replace an expert by an expert, or a stream by a stream.

    Returns:
        The cards, in the stream's order. ``destination`` is then an expert's folder or a stream's.

    Raises:
        ValueError: for an expert that :meth:`Expert.load` refuses, or a repository without one expert or stream.
        FileExistsError: if there is something at ``destination``.
        ImportError: naming the extra.
        OSError: from the hub: no such repository or revision, no connection.
    """
    hub, destination = _hub(), Path(destination)
    check_target(destination, (CARD_FILE, STREAM_FILE), overwrite)
    try:
        cached = Path(hub.snapshot_download(repo_id, revision=revision, allow_patterns=PATTERNS))
    except hub.errors.LocalEntryNotFoundError as error:
        raise OSError(
            f"{repo_id} cannot be downloaded and is not in the cache of Hugging Face; what is there is found without a "
            "connection, at once with HF_HUB_OFFLINE=1"
        ) from error
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "found"
        if cached.is_dir():  # copied, because the files of the hub's cache are links out of their folder
            shutil.copytree(cached, found)
        return _taken(found, repo_id, destination, overwrite)


def _taken(found: Path, repo_id: str, destination: Path, overwrite: bool) -> list[Card]:
    # The hub's client makes no folder if no file matches the patterns.
    lone, folders = (found / CARD_FILE).is_file(), stream_folders(found) if found.is_dir() else []
    if lone and folders:
        raise ValueError(f"{repo_id} holds an expert and a stream of {len(folders)}: expected one of them")
    if not lone and not folders:
        raise ValueError(f"{repo_id} holds no expert: {CARD_FILE} is missing")
    if not lone:
        return export_stream(folders, destination, overwrite=overwrite).cards
    check_target(destination, (CARD_FILE,), overwrite)
    with atomic_folder(destination, overwrite) as temporary:
        copy_expert(found, temporary)
    return [read_card(destination)]


def _hub() -> ModuleType:
    try:
        import huggingface_hub
    except ImportError as error:
        raise ImportError("the hub needs huggingface_hub: pip install 'exml_fast[hub]'") from error
    module: ModuleType = huggingface_hub
    return module
