"""The sdist holds everything from which a wheel is built, and the wheel everything that the package reads."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("csrc/*.h", "csrc/*.cpp", "csrc/*.cu")
PACKAGE_DATA = ("exml_fast/py.typed", "exml_fast/reproduction/presets/*.toml", "exml_fast/report/templates/*")
ALONE = ("setup.py", "pyproject.toml", "README.md", "LICENSE", "CMakeLists.txt", "Makefile", "examples/quick_start.py")


def tracked(*patterns: str) -> set[str]:
    git = subprocess.run(["git", "ls-files", *patterns], capture_output=True, text=True, cwd=ROOT)
    if git.returncode:
        pytest.skip("needs a checkout and git")
    return set(git.stdout.split("\n")) - {""}


def setup(folder: Path, *command: str) -> None:
    """Run a command of setup.py, which compiles nothing."""
    done = subprocess.run([sys.executable, "setup.py", "-q", *command], capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr


def test_an_sdist_holds_what_a_wheel_needs(tmp_path: Path) -> None:
    copy = tmp_path / "copy"  # the commands write beside setup.py
    for name in tracked():
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, copy / name)
    (copy / "exml_fast/_built_for.py").write_text("TORCH = 'of this machine'\n")
    setup(copy, "sdist", "--dist-dir", str(tmp_path))
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path / "sdist", filter="data")
    (sdist,) = (tmp_path / "sdist").iterdir()
    have = {str(path.relative_to(sdist)) for path in sdist.rglob("*")}
    package = tracked("exml_fast/*.py") | tracked(*PACKAGE_DATA)
    assert len(tracked("csrc/*.h")) > 20 and len(tracked(*PACKAGE_DATA)) > 20
    assert not (tracked(*SOURCES) | package | tracked(*ALONE)) - have
    assert not {name for name in have if name.endswith((".so", "_built_for.py"))}

    setup(sdist, "build_py", "--build-lib", str(tmp_path / "wheel"))
    assert not {name for name in package if not (tmp_path / "wheel" / name).is_file()}
