"""Help and completion import neither PyTorch nor the commands; the package imports what is used."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
from typing import Any

import pytest
import typer

import exml_fast
from exml_fast.cli.app import app
from exml_fast.cli.lazy import COMMANDS

# Calls the command as its entry point does, and says which heavy packages were imported.
PROGRAM = """
import json, sys
from exml_fast.cli import main
sys.argv = ["exml-fast", *json.loads(sys.argv[1])]
try:
    main()
except SystemExit:
    pass
heavy = ("torch", "torchvision", "numpy", "matplotlib", "exml_fast.inversion")
print("heavy:", [name for name in heavy if name in sys.modules])
"""


def called(arguments: list[str], **environment: str) -> str:
    given = [sys.executable, "-c", PROGRAM, json.dumps(arguments)]
    done = subprocess.run(given, capture_output=True, text=True, env=os.environ | environment, timeout=120, check=True)
    return done.stdout


@pytest.mark.parametrize("arguments", [["--help"], [], ["-h"]])
def test_the_help_imports_no_torch(arguments: list[str]) -> None:
    said = called(arguments)
    assert "heavy: []" in said and all(f" {name} " in said for name in COMMANDS)


def test_completion_imports_no_torch() -> None:
    said = called([], _EXML_FAST_COMPLETE="complete_bash", COMP_WORDS="exml-fast in", COMP_CWORD="1")
    assert said.splitlines() == ["invert", "incremental", "heavy: []"]


def test_the_table_says_what_the_commands_say() -> None:
    group: Any = typer.main.get_command(app)
    for name, (_, text) in COMMANDS.items():
        command = group.get_command(None, name)
        assert command.name == name
        paragraph = inspect.cleandoc(command.help).split("\n\n")[0].replace("\n", " ")
        assert paragraph == text, name
    assert group.get_command(None, "nothing") is None


def test_the_package_imports_what_is_used() -> None:
    code = """if True:
        import sys, exml_fast as xf
        assert "torch" not in sys.modules and xf.__version__
        assert xf.InputSpec.__module__ == "exml_fast.data.spec" and "exml_fast.inversion" not in sys.modules
        for name in xf.__all__:
            assert getattr(xf, name) is not None and name in dir(xf), name
        assert xf.progress.TensorBoard is xf.TensorBoard and xf.invert is xf.inversion.invert
        """
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
    with pytest.raises(AttributeError, match="module 'exml_fast' has no attribute 'inverted'"):
        _ = exml_fast.inverted  # type: ignore[attr-defined, unused-ignore]
