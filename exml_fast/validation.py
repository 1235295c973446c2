"""Settings, cards and presets are checked by pydantic; an error is one line of ValueError in our words.

A settings class is a frozen dataclass whose fields say what they may hold::

    @settings
    class Attack:
        epsilon: Annotated[float, Field(gt=0, le=1)] = 0.3
        steps: Count = 40

        def check(self) -> None:            # rules between fields; optional
            require(self.step <= self.epsilon, "step", f"at most epsilon = {self.epsilon}", self.step)

Types are strict (``True`` is no integer, ``"3"`` no number) and numbers are finite. Fields hold tuples; a list, as
JSON and TOML have it, is converted. A table stands for a nested settings class. An unknown field is refused, and the
nearest known one is suggested.

Large settings are groups of smaller settings classes. Users name the fields of a group marked ``Flat`` directly::

    @settings
    class Distillation:
        training: Flat[Training] = field(default_factory=Training)
        temperature: Positive = 3.0

    with_flat_changes(Distillation(), {"steps": 500, "temperature": 4.0})    # steps is a field of Training
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import typing
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, TypeVar, dataclass_transform

import pydantic
from pydantic import ConfigDict, Field
from pydantic_core import ErrorDetails, core_schema

from exml_fast.reading import shortened

__all__ = [
    "Count",
    "Flat",
    "Natural",
    "NonNegative",
    "Positive",
    "Precision",
    "Share",
    "field_names",
    "flat_dict",
    "flat_names",
    "from_flat",
    "from_mapping",
    "like",
    "named",
    "nearest",
    "require",
    "require_count",
    "settings",
    "shown",
    "to_dict",
    "with_changes",
    "with_flat_changes",
]

T = TypeVar("T")

Count = Annotated[int, Field(ge=1)]
"""A positive integer."""
Natural = Annotated[int, Field(ge=0)]
"""An integer of at least 0."""
Positive = Annotated[float, Field(gt=0)]
"""A positive finite number."""
NonNegative = Annotated[float, Field(ge=0)]
"""A finite number of at least 0."""
Share = Annotated[float, Field(ge=0, le=1)]
"""A number in [0, 1]."""
Precision = typing.Literal["auto", "float32", "bfloat16"]
"""Arithmetic of a network: "auto" takes bfloat16 where the device computes it faster."""

_FLAT = "fields of this group are named directly"
Flat = Annotated[T, _FLAT]
"""Marks a nested settings class whose fields users name directly; the names of all groups must be distinct."""

# More known names are not listed beside the nearest one.
LONGEST_LIST = 16
LONGEST_NAME = 100

STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, arbitrary_types_allowed=True)


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field, Field))
def settings(cls: type[T]) -> type[T]:
    """Make ``cls`` a frozen, strictly checked dataclass; its ``check`` method, if any, checks rules between fields.

    ``dataclasses.replace``, ``fields`` and ``asdict`` work on it. Constructing one raises ValueError naming the field,
    what was expected and what came.
    """
    made: Any = pydantic.dataclasses.dataclass(frozen=True, config=STRICT)(cls)
    construct = made.__init__

    @functools.wraps(construct)
    def __init__(self: Any, *args: Any, **fields: Any) -> None:
        names = field_names(made)
        if len(args) > len(names):
            raise TypeError(f"{made.__name__} has {len(names)} fields, got {len(args)} values")
        if twice := [name for name in names[: len(args)] if name in fields]:
            raise TypeError(f"{made.__name__}: {twice[0]} is given twice")
        fields |= zip(names, args, strict=False)  # by name, so that errors name the field
        try:
            construct(self, **{name: _with_tuples(value) for name, value in fields.items()})
        except pydantic.ValidationError as error:
            raise ValueError(message(error, made)) from None
        check = getattr(self, "check", None)
        if check is not None:
            check()

    def from_instance_or_table(value: Any) -> Any:
        return value if isinstance(value, made) else from_mapping(made, value)

    def schema(kind: type[Any], source: Any, handler: Any) -> Any:
        if kind is not made:  # a subclass that is being made inherits this method
            return handler(source)
        return core_schema.no_info_plain_validator_function(from_instance_or_table)

    made.__init__ = __init__
    # As the field of another settings class it may be given as a table of its fields.
    made.__get_pydantic_core_schema__ = classmethod(schema)
    return typing.cast(type[T], made)


def require(condition: bool, name: str, expected: str, value: object) -> None:
    """ValueError "``name`` must be ``expected``, got ``value``" unless ``condition`` holds."""
    if not condition:
        raise ValueError(f"{name} must be {expected}, got {shown(value)}")


def shown(value: object) -> str:
    """``repr(value)``, shortened for a message."""
    return shortened(repr(value))


def require_count(name: str, value: object, least: int = 1) -> None:
    """ValueError unless ``value`` is an integer of at least ``least``; True and False are no integers."""
    expected = "a positive integer" if least == 1 else f"an integer of at least {least}"
    require(isinstance(value, int) and not isinstance(value, bool) and value >= least, name, expected, value)


def like(name: object, known: Iterable[str], count: int = 5) -> list[str]:
    """At most ``count`` of the ``known`` names that hold ``name`` or resemble it, the nearest first; ignores case."""
    text = str(name).casefold()
    if not text or len(text) > LONGEST_NAME:  # comparing takes quadratic time
        return []
    by_text = {each.casefold(): each for each in known}
    holding = sorted((other for other in by_text if text in other), key=len)
    similar = difflib.get_close_matches(text, list(by_text), n=count)
    return [by_text[other] for other in dict.fromkeys([*similar, *holding])][:count]


def nearest(name: object, known: Iterable[str]) -> str:
    """ " (did you mean 'x'?)" for a name that resembles a known one; empty otherwise."""
    text = str(name)
    if len(text) > LONGEST_NAME:  # comparing takes quadratic time
        return ""
    found = difflib.get_close_matches(text, list(known), n=1)
    return f" (did you mean {found[0]!r}?)" if found else ""


def named(what: str, name: object, table: Mapping[str, T]) -> T:
    """``table[name]``; ValueError that lists the known names and suggests the nearest one."""
    if isinstance(name, str) and name in table:
        return table[name]
    hint = nearest(name, table)
    known = f"one of {', '.join(table)}" if len(table) <= LONGEST_LIST or not hint else f"one of {len(table)} names"
    raise ValueError(f"{what} must be {known}, got {shown(name)}{hint}")


def field_names(kind: type[Any]) -> list[str]:
    """Names of the fields of a settings class, in order."""
    return [field.name for field in dataclasses.fields(kind)]


def from_mapping(kind: type[T], value: Any, where: str = "") -> T:
    """An instance of the settings class ``kind`` from plain JSON or TOML values; errors begin with ``where``."""
    prefix = f"{where}: " if where else ""
    if not isinstance(value, Mapping):
        raise ValueError(f"{prefix}expected a table of {', '.join(field_names(kind))}, got {shown(value)}")
    try:
        return kind(**value)
    except ValueError as error:
        raise ValueError(f"{prefix}{error}") from None


def with_changes(value: T, changes: Mapping[str, Any]) -> T:
    """A copy of a settings object with some fields changed; ValueError naming one that does not exist."""
    _require_known(changes, field_names(type(value)))
    return typing.cast(T, dataclasses.replace(typing.cast(Any, value), **changes))


def to_dict(value: Any) -> dict[str, Any]:
    """Plain JSON values of a settings object: nested objects become dicts and tuples lists."""
    return dataclasses.asdict(value, dict_factory=_with_lists)


def flat_names(kind: type[Any]) -> list[str]:
    """Names of the fields of a settings class, those of its ``Flat`` groups in place of the groups."""
    groups = _groups(kind)
    return [flat for name in field_names(kind) for flat in (flat_names(groups[name]) if name in groups else [name])]


def flat_dict(value: Any) -> dict[str, Any]:
    """:func:`to_dict` with the fields of the ``Flat`` groups in place of the groups."""
    groups, flat = _groups(type(value)), dict[str, Any]()
    for name, plain in to_dict(value).items():
        flat |= flat_dict(getattr(value, name)) if name in groups else {name: plain}
    return flat


def from_flat(kind: type[T], values: Any, where: str = "") -> T:
    """:func:`from_mapping` with the names of :func:`flat_names`. The other fields of a group keep their defaults."""
    prefix, known = f"{where}: " if where else "", flat_names(kind)
    if not isinstance(values, Mapping):
        raise ValueError(f"{prefix}expected a table of {', '.join(known)}, got {values!r}")
    own = set(field_names(kind)) - set(_groups(kind))
    try:
        _require_known(values, known)
        made = kind(**{name: value for name, value in values.items() if name in own})
        return with_flat_changes(made, {name: value for name, value in values.items() if name not in own})
    except ValueError as error:
        raise ValueError(f"{prefix}{error}") from None


def with_flat_changes(value: T, changes: Mapping[str, Any]) -> T:
    """:func:`with_changes` with the names of :func:`flat_names`; a whole group may be given under its own name too."""
    kind = type(value)
    groups, known = _groups(kind), flat_names(kind)
    _require_known({name: None for name in changes if name not in groups}, known)
    changed = {name: change for name, change in changes.items() if name in field_names(kind)}
    for name, group in groups.items():
        inner = {field: changes[field] for field in flat_names(group) if field in changes and field not in changed}
        if inner:
            base = changed.get(name, getattr(value, name))
            base = from_mapping(group, base, name) if isinstance(base, Mapping) else base
            changed[name] = with_flat_changes(base, inner)
    return typing.cast(T, dataclasses.replace(typing.cast(Any, value), **changed))


def _groups(kind: type[Any]) -> dict[str, type[Any]]:
    """The settings classes of the fields that are marked ``Flat``."""
    hints = typing.get_type_hints(kind, include_extras=True)
    return {
        name: hints[name].__origin__
        for name in field_names(kind)
        if _FLAT in getattr(hints.get(name), "__metadata__", ())
    }


def _require_known(names: Iterable[str], known: list[str]) -> None:
    for name in names:
        if name not in known:
            raise ValueError(_unknown(name, known))


def message(error: pydantic.ValidationError, kind: Any) -> str:
    """The first complaint of pydantic in our words: "field must be …, got …"."""
    first = error.errors(include_url=False)[0]
    known = (
        field_names(kind)
        if isinstance(kind, type) and dataclasses.is_dataclass(kind)
        else list(getattr(kind, "model_fields", {}))
    )
    place = [part for part in first["loc"] if not (isinstance(part, str) and "[" in part)]
    if first["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        nested = known if len(place) == 1 else []
        return _unknown(".".join(map(str, place)), nested, str(place[-1]))
    name = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).lstrip(".")
    if first["type"] in ("missing", "missing_argument", "missing_keyword_only_argument"):
        return f"{name} is missing"
    if first["type"] == "value_error":  # raised in our own words below, or by a nested settings class
        text = str(first["ctx"]["error"])
        return f"{name}.{text}" if name and not text.startswith(("expected", "unknown")) else f"{name}: {text}"
    return f"{name} must be {_expected(first)}, got {shown(first['input'])}"


def _unknown(name: str, known: Iterable[str], last: str | None = None) -> str:
    known = list(known)
    hint = nearest(last or name, known)
    listed = len(known) <= LONGEST_LIST or not hint
    expected = f"; expected one of {', '.join(known)}" if known and listed else ""
    return f"unknown field {shown(name)}{hint}{expected}"


def _expected(error: ErrorDetails) -> str:
    """What pydantic asked for, as the end of "must be …"."""
    context, kind = error.get("ctx", {}), error["type"]
    bounds = {
        "greater_than": ("gt", "greater than"),
        "greater_than_equal": ("ge", "at least"),
        "less_than": ("lt", "less than"),
        "less_than_equal": ("le", "at most"),
    }
    if kind in bounds:
        key, words = bounds[kind]
        bound = context[key]
        if kind == "greater_than" and bound == 0:
            return "positive"
        if kind == "greater_than_equal" and bound == 0:
            return "at least 0"
        return f"{words} {bound:g}"
    fixed = {
        "int_type": "an integer",
        "int_from_float": "an integer",
        "float_type": "a number",
        "finite_number": "a finite number",
        "bool_type": "true or false",
        "string_type": "a string",
        "string_too_long": f"a string of at most {context.get('max_length')} characters",
        "dict_type": "a table",
        "mapping_type": "a table",
        "dataclass_type": "a table",
        "dataclass_exact_type": f"an object of {context.get('class_name', 'its class')}, or a table of its fields",
        "tuple_type": "a list",
        "list_type": "a list",
        "none_required": "None",
    }
    if kind in fixed:
        return fixed[kind]
    if kind == "literal_error":
        return f"one of {context['expected']}"
    if kind in ("too_short", "too_long"):
        words, key = ("at least", "min_length") if kind == "too_short" else ("at most", "max_length")
        return f"a list of {words} {context[key]}"
    if kind == "is_instance_of":
        return f"an object of {context['class']}"
    text = error["msg"]
    return text[0].lower() + text[1:]


def _with_tuples(value: Any) -> Any:
    return tuple(map(_with_tuples, value)) if isinstance(value, list) else value


def _with_lists(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in pairs}
