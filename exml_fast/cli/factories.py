"""Networks of the user's own, named on the command line as ``package.module:factory``.

The module is imported only because the user typed it in this very command. Neither a card nor a stored run of
``--resume`` can name code that is then imported.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from exml_fast.models import OWN, register

__all__ = ["TYPED", "register_factory", "register_typed", "typed_factories"]

TYPED = re.compile(r"([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*):([A-Za-z_]\w*)(?=$|[:=])")
# Parameters of the commands that name a network.
PARAMETERS = ("architecture", "student", "model", "networks", "judge")


def typed_factories(parameters: Mapping[str, Any]) -> list[str]:
    """The factories that the typed ``parameters`` of a command name."""
    factories = []
    for name in PARAMETERS:
        given = parameters.get(name)
        for text in given if isinstance(given, list | tuple) else [given]:
            found = TYPED.match(str(text)) if text else None
            if found is not None and found[1] not in OWN and not Path(str(text)).exists():
                factories.append(found[0])
    return factories


def register_typed(parameters: Mapping[str, Any]) -> None:
    """Register the factories that the typed ``parameters`` of a command name. ValueError for one that is not there."""
    for factory in typed_factories(parameters):
        register_factory(factory)


def register_factory(text: str) -> None:
    """Import ``package.module:factory``, also from the current folder, and register it under this text.

    ValueError for a text of another form, or a module or factory that is not there.
    """
    found = TYPED.fullmatch(text)
    if found is None:
        raise ValueError(f"architecture must be like package.module:factory, got {text!r}")
    module, name = found.groups()
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        factory = getattr(importlib.import_module(module), name)
    except ImportError as error:
        raise ValueError(f"architecture {text!r}: the module {module!r} cannot be imported: {error}") from error
    except AttributeError as error:
        raise ValueError(f"architecture {text!r}: the module {module!r} has no {name!r}") from error
    register(text, factory, replace=True)
