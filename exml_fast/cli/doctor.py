"""`exml-fast doctor`: what is there on this machine, and what to do about what is not."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import torch
import typer

from exml_fast._native import COMPILED, HOW_TO_COMPILE, WHY_NO_CUDA, WHY_NO_REUSED_MEMORY, WHY_NOT, build_info

__all__ = ["advice", "doctor", "findings"]

OFFLINE = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE", "EXML_FAST_CACHE", "EXML_EXTENSION",
           "CUDA_VISIBLE_DEVICES")  # fmt: skip
TRUE = ("1", "true", "yes", "on")


def doctor() -> None:
    """Print what is there (torch, CUDA, compiler, extras, caches, offline flags), and what to do."""
    for section, rows in findings().items():
        typer.echo(section)
        for name, value in rows.items():
            typer.echo(f"  {name:<22} {value}")
    for title, lines in (("What to do", advice()), ("Optional, where a command asks for it", optional())):
        typer.echo(title)
        for line in lines or ["Nothing: everything is there."]:
            typer.echo(f"  {line}")


def findings() -> dict[str, dict[str, str]]:
    """Names and values by section."""
    return {
        "exml_fast": _package(),
        "PyTorch": _torch(),
        "Compiler": _compilers(),
        "Extras": _extras(),
        "Caches": _caches(),
        "Environment": {name: os.environ.get(name) or "not set" for name in OFFLINE},
    }


def advice() -> list[str]:
    """One line for each thing that a user may want to change."""
    lines = []
    if not COMPILED:
        lines.append(f"The fast ops are not in use: {WHY_NOT}. Compile them: {HOW_TO_COMPILE}")
        if _version_of("c++") is None:
            lines.append("There is no C++ compiler: install g++ 11 or later (Debian: apt install g++), then compile.")
    elif WHY_NO_REUSED_MEMORY is not None:
        lines.append(f"Memory is not reused between steps: {WHY_NO_REUSED_MEMORY}. Compile again: {HOW_TO_COMPILE}")
    if shutil.which("nvidia-smi") and torch.version.cuda is not None and not torch.cuda.is_available():
        lines.append("There is an NVIDIA driver, but torch finds no GPU: look at nvidia-smi and CUDA_VISIBLE_DEVICES.")
    if torch.cuda.is_available() and COMPILED and build_info()["cuda_archs"] is None:
        lines.append(f"CUDA kernels are not in use: {WHY_NO_CUDA}. Compile them with EXML_CUDA=1: {HOW_TO_COMPILE}")
    if shutil.which("nvidia-smi") and torch.version.cuda is None:
        lines.append("There is an NVIDIA driver, but this torch has no CUDA: install a CUDA build (pytorch.org).")
    for name in OFFLINE[:3]:
        if os.environ.get(name, "").lower() in TRUE:
            lines.append(f"{name} is set: nothing is downloaded; unset it to fetch weights and data.")
    return lines


def optional() -> list[str]:
    """How to install each extra that is missing."""
    missing = [extra for extra, state in _extras().items() if state.startswith("missing")]
    return [f'{extra}: pip install "exml_fast[{extra}]"' for extra in missing]


def _package() -> dict[str, str]:
    info = build_info()
    return {
        "version": str(info["version"]),
        "folder": str(Path(__file__).resolve().parents[1]),
        "ops": "compiled" if COMPILED else f"PyTorch's ({WHY_NOT})",
        "compiled against": f"torch {info['built_for']}" if COMPILED else "nothing",
        "reused memory": str(info["reused_memory"]),
        "CPU kernels": info["cpu_capability"] or "none",
        "CUDA kernels": info["cuda_archs"] or "none",
        "compiled by": info["compiler"] or "nothing",
    }


def _torch() -> dict[str, str]:
    found = {"torch": torch.__version__, "Python": platform.python_version(), "platform": platform.platform()}
    found["CPU"] = f"{torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"
    found["CUDA"] = torch.version.cuda or "none (a CPU build)"
    gpus = range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
    for i in gpus:
        properties = torch.cuda.get_device_properties(i)
        memory = properties.total_memory / 2**30
        found[f"GPU {i}"] = f"{properties.name}, capability {properties.major}.{properties.minor}, {memory:.0f} GiB"
    if not gpus:
        found["GPU"] = "none"
    return found


def _compilers() -> dict[str, str]:
    return {name: _version_of(name) or "not found" for name in ("c++", "ninja", "nvcc")}


def _version_of(program: str) -> str | None:
    """The line of ``program --version`` with a number; None where it is not installed or does not run."""
    path = shutil.which(program)
    if path is None:
        return None
    try:
        said = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = [line for line in said.stdout.splitlines() if re.search(r"\d+\.\d+", line)]
    return lines[0].strip() if lines and said.returncode == 0 else None


def _extras() -> dict[str, str]:
    """Each extra of the package and whether its packages are installed."""
    states: dict[str, str] = {}
    for extra, wanted in _requirements():
        missing = [name for name in wanted if not _is_installed(name)]
        states[extra] = f"missing {', '.join(missing)}" if missing else "installed"
    return states or {"unknown": "the package runs from a folder and is not installed"}


def _requirements() -> Iterator[tuple[str, list[str]]]:
    try:
        meta = importlib.metadata.metadata("exml_fast")
        requires = importlib.metadata.requires("exml_fast") or []
    except importlib.metadata.PackageNotFoundError:
        return
    for extra in meta.get_all("Provides-Extra") or []:
        names = [
            found[1]
            for line in requires
            if (found := re.match(r"([A-Za-z0-9_.-]+)", line)) and re.search(rf"extra == ['\"]{extra}['\"]", line)
        ]
        own = [name for name in names if name.replace("-", "_") != "exml_fast"]  # an extra made of others
        if own and extra not in ("test", "dev"):
            yield extra, own


def _is_installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _caches() -> dict[str, str]:
    own = Path(os.environ.get("EXML_FAST_CACHE") or "~/.cache/exml_fast").expanduser()
    hub = Path(os.environ.get("HF_HOME") or "~/.cache/huggingface").expanduser()
    return {
        "exml_fast": _described(own),
        "torch.hub": _described(Path(torch.hub.get_dir())),
        "Hugging Face": _described(hub),
    }


def _described(folder: Path) -> str:
    try:
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file() and not file.is_symlink())
    except OSError as error:
        return f"{folder} (cannot be read: {error.strerror})"
    return f"{folder} ({size / 2**20:.0f} MiB)" if folder.exists() else f"{folder} (empty)"
