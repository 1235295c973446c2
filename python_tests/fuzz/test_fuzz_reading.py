"""Random cards, headers, presets and command lines. EXML_EXAMPLES=2000 tries as many of each; the default is short."""

from __future__ import annotations

import itertools
import json
import os
import string
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

sys.path.insert(0, str(Path(__file__).parent))

from bad_commands import command
from hostile_experts import CASES, NUMBERS, TEXTS, good, make, with_header, write

from exml_fast.cli.app import app
from exml_fast.continual import Card, Catalogue
from exml_fast.models.skeleton import require_modest
from exml_fast.reading import parse_json
from exml_fast.reproduction.runner import check, load_preset
from exml_fast.storage import tensor_header

EXAMPLES = int(os.environ.get("EXML_EXAMPLES", "25"))
counter = itertools.count()

scalars = st.sampled_from([*NUMBERS, *TEXTS]) | st.integers() | st.floats() | st.text(max_size=20) | st.booleans()
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(string.ascii_letters, max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)


def refused_or_read(call: Any) -> None:
    """ValueError of at most a few lines, or nothing."""
    try:
        call()
    except (ValueError, FileNotFoundError, ImportError) as error:
        assert len(str(error)) < 5000


@given(st.dictionaries(st.sampled_from([*good()[1], "other"]), values, max_size=4))
def test_cards(changes: dict[str, Any]) -> None:
    refused_or_read(lambda: Card.from_dict(good()[1] | {"sha256": "0"} | changes))


@given(st.dictionaries(st.sampled_from(["channels", "size", "mean", "std"]), values, max_size=4))
def test_input_specifications(changes: dict[str, Any]) -> None:
    card = good()[1]
    refused_or_read(lambda: Card.from_dict(card | {"input_spec": card["input_spec"] | changes}))


@given(st.dictionaries(st.text(string.ascii_letters, min_size=1, max_size=5), values, max_size=4))
def test_arguments(arguments: dict[str, Any]) -> None:
    refused_or_read(lambda: require_modest(arguments))


@given(st.text(max_size=60) | values.map(lambda value: json.dumps(value)))
def test_json(text: str) -> None:
    refused_or_read(lambda: parse_json(text))


tensor = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "F64", "BOOL", "I64", "X", ""]) | values,
        "shape": st.lists(st.integers(-2, 2**63), max_size=4) | values,
        "data_offsets": st.lists(st.integers(-2, 2**63), max_size=3) | values,
    }
)


@given(
    st.dictionaries(st.text(max_size=6), tensor | values, max_size=4).map(lambda h: json.dumps(h).encode())
    | st.binary(),
    st.binary(max_size=64),
    st.none() | st.integers(0, 2**64 - 1),
)
def test_headers(header: bytes, data: bytes, size: int | None) -> None:
    content = with_header(header, data)
    if size is not None:
        content = size.to_bytes(8, "little") + content[8:]
    file = Path(f"/tmp/exml_fuzz_{os.getpid()}.safetensors")
    file.write_bytes(content)
    try:
        refused_or_read(lambda: tensor_header(file))
    finally:
        file.unlink()


PLACES = ["task", "data", "other", "student", "student.architecture", "teacher", "teacher.steps", "teacher.lr"]
PLACES += ["impressions", "impressions.count", "impressions.recipe", "impressions.lr", "distillation.steps", "a.b.c"]


@given(st.dictionaries(st.sampled_from(PLACES), values, max_size=3))
def test_presets(changes: dict[str, Any]) -> None:
    refused_or_read(lambda: check(load_preset("digits/zskd", changes)))


@pytest.mark.parametrize("number", range(0, len(CASES), 1 if EXAMPLES > 100 else 4))
def test_found_experts_hide_no_others(tmp_path: Path, number: int) -> None:
    make(tmp_path / "catalogue" / "bad", number)
    (tmp_path / "catalogue" / "good").mkdir()
    write(tmp_path / "catalogue" / "good", good()[1])
    catalogue = Catalogue(tmp_path / "catalogue")
    problems = catalogue.verify()
    assert "good" not in problems and all(len(text) < 1000 for text in problems.values())
    assert "good" in [entry.name for entry in catalogue.find()]


@pytest.mark.parametrize("number", range(max(EXAMPLES // 2, 10)))
def test_bad_commands_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    arguments = command(number, tmp_path)
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code in (0, 1, 2) and isinstance(result.exception, SystemExit | None), (arguments, result.output)
    assert "internal error" not in result.output, (arguments, result.output)
