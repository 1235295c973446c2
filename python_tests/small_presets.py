"""The command line in tests of presets, and settings that make a preset tiny."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from typer.testing import CliRunner

from exml_fast.cli.app import app
from exml_fast.reproduction import published

TINY = {"teacher.steps": 40, "teacher.batch_size": 32, "impressions.count": 16, "impressions.steps": 3}
STUDENT = {"distillation.steps": 3, "distillation.batch_size": 8}


def call(*arguments: object, code: int = 0) -> Any:
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    assert result.exit_code == code, (result.output, result.exception)
    return result


def options(changes: dict[str, Any]) -> list[str]:
    return [part for name, value in changes.items() for part in ("--set", f"{name}={json.dumps(value)}")]


def published_for_quadrants(data: str, scenario: str) -> published.Published | None:
    """What was published, as if the paper's experts had had the classes of the quadrants."""
    found = published.published(data, scenario)
    experiences = {"joint": (4,), "new-classes": (2, 2)}
    return found and dataclasses.replace(found, experiences=experiences[scenario])
