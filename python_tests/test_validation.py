from __future__ import annotations

import copy
import dataclasses
import math
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field

from exml_fast.validation import (
    Count,
    Flat,
    Natural,
    NonNegative,
    Positive,
    Share,
    field_names,
    flat_dict,
    flat_names,
    from_flat,
    from_mapping,
    named,
    nearest,
    require,
    require_count,
    settings,
    to_dict,
    with_changes,
    with_flat_changes,
)


@settings
class Shift:
    pixels: Natural = 4
    ends: tuple[float, float] = (0.0, 1.0)


@settings
class Attack:
    epsilon: Annotated[float, Field(gt=0, le=1)] = 0.3
    steps: Count = 40
    kind: Literal["pgd", "fgsm"] = "pgd"
    pool: Count | None = None
    share: Share = 0.5
    shift: Shift = dataclasses.field(default_factory=Shift)

    def check(self) -> None:
        require(self.steps % 7 != 0, "steps", "no multiple of 7", self.steps)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"epsilon": 2}, "epsilon must be at most 1, got 2"),
        ({"epsilon": 0}, "epsilon must be positive, got 0"),
        ({"epsilon": "x"}, "epsilon must be a number, got 'x'"),
        ({"epsilon": True}, "epsilon must be a number, got True"),
        ({"epsilon": math.nan}, "epsilon must be a finite number, got nan"),
        ({"steps": 1.5}, "steps must be an integer, got 1.5"),
        ({"steps": True}, "steps must be an integer, got True"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"steps": 14}, "steps must be no multiple of 7, got 14"),
        ({"share": -0.1}, "share must be at least 0, got -0.1"),
        ({"step": 3}, "unknown field 'step' (did you mean 'steps'?); expected one of epsilon, steps"),
        ({"kind": "pdg"}, "kind must be one of 'pgd' or 'fgsm', got 'pdg'"),
        ({"pool": 0}, "pool must be at least 1, got 0"),
        ({"shift": {"pixels": -1}}, "shift.pixels must be at least 0, got -1"),
        ({"shift": {"pixel": 1}}, "shift: unknown field 'pixel' (did you mean 'pixels'?)"),
        ({"shift": 3}, "shift: expected a table of pixels, ends, got 3"),
        ({"shift": {"ends": [1, 2, 3]}}, "shift.ends must be a list of at most 2, got (1, 2, 3)"),
        ({"shift": {"ends": ["a", 2]}}, "shift.ends[0] must be a number, got 'a'"),
    ],
)
def test_an_error_is_one_line_that_names_field_expectation_and_value(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError) as caught:
        Attack(**fields)
    assert str(caught.value).startswith(said) and "\n" not in str(caught.value)


@settings
class Bounds:
    number: float = 0.0
    positive: Positive = 1.0
    at_least_0: NonNegative = 0.0
    count: Count = 1
    natural: Natural = 0


def refused(field: str, value: Any) -> bool:
    try:
        Bounds(**{field: value})
    except ValueError as error:
        return str(error).startswith(f"{field} must be ")
    return False


def test_numbers_are_finite_and_no_truth_values() -> None:
    assert [Bounds(number=value).number for value in (0, -3, 1.5, 1e-300)] == [0, -3, 1.5, 1e-300]
    for field in ("number", "positive", "at_least_0"):
        assert all(refused(field, value) for value in (True, math.nan, math.inf, -math.inf, "1", None, 1j))
    assert not refused("at_least_0", 0) and refused("positive", 0) and refused("at_least_0", -1e-9)


def test_counts_are_integers_from_the_least_on() -> None:
    assert Bounds(count=1).count == 1 and Bounds(natural=0).natural == 0
    for field in ("count", "natural"):
        assert all(refused(field, value) for value in (-1, True, False, 1.0, "1", None))
    assert refused("count", 0) and not refused("natural", 0)


def test_errors_of_positions_name_their_field() -> None:
    with pytest.raises(ValueError, match=r"^epsilon must be at most 1, got 2$"):
        Attack(2)
    with pytest.raises(ValueError, match=r"^steps must be an integer, got 1\.5$"):
        Attack(0.5, 1.5)  # type: ignore[arg-type]
    assert Attack(0.5, 3, shift=Shift(2)) == Attack(epsilon=0.5, steps=3, shift=Shift(2))
    with pytest.raises(TypeError, match="Shift has 2 fields, got 3 values"):
        Shift(1, (0.0, 1.0), 3)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="Shift: pixels is given twice"):
        Shift(1, pixels=2)  # type: ignore[misc]


def test_settings_are_frozen_dataclasses() -> None:
    attack = Attack(0.5, shift={"pixels": 2, "ends": [0, 1]})  # type: ignore[arg-type]
    assert attack.shift == Shift(2, (0.0, 1.0)) and attack.epsilon == 0.5 and field_names(Shift) == ["pixels", "ends"]
    with pytest.raises(dataclasses.FrozenInstanceError):
        attack.steps = 3  # type: ignore[misc]
    assert copy.deepcopy(attack) == attack and dataclasses.replace(attack, steps=3).steps == 3
    assert from_mapping(Attack, to_dict(attack)) == attack and to_dict(attack)["shift"]["ends"] == [0.0, 1.0]


def test_changes_are_checked_like_new_settings() -> None:
    assert with_changes(Attack(), {"steps": 3}).steps == 3
    with pytest.raises(ValueError, match=r"unknown field 'step' \(did you mean 'steps'\?\)"):
        with_changes(Attack(), {"step": 3})
    with pytest.raises(ValueError, match="steps must be at least 1"):
        with_changes(Attack(), {"steps": 0})


def test_errors_of_tables_name_their_place() -> None:
    with pytest.raises(ValueError, match=r"attack: expected a table of epsilon, .*, got \[1\]"):
        from_mapping(Attack, [1], "attack")
    with pytest.raises(ValueError, match="attack: steps must be at least 1"):
        from_mapping(Attack, {"steps": 0}, "attack")


def test_names_are_looked_up_with_a_suggestion() -> None:
    assert named("recipe", "noise", {"noise": 1}) == 1 and nearest("zzz", ["noise"]) == ""
    with pytest.raises(ValueError, match=r"recipe must be one of noise, dream, got 'nois' \(did you mean 'noise'\?\)"):
        named("recipe", "nois", {"noise": 1, "dream": 2})


@pytest.mark.parametrize("value", [0, -1, 2.0, True, "3", None])
def test_counts_are_integers_of_a_least_value(value: object) -> None:
    require_count("steps", 1)
    require_count("steps", 0, least=0)
    with pytest.raises(ValueError, match=r"^steps must be a positive integer, got "):
        require_count("steps", value)
    with pytest.raises(ValueError, match=r"^steps must be an integer of at least 2, got 1"):
        require_count("steps", 1, least=2)


@settings
class Group:
    speed: Positive = 1.0
    attack: Flat[Attack] = dataclasses.field(default_factory=Attack)


def test_fields_of_flat_groups_are_named_directly() -> None:
    assert flat_names(Group) == ["speed", *field_names(Attack)]
    group = from_flat(Group, {"speed": 2.0, "steps": 3})
    assert group == Group(2.0, Attack(steps=3)) and from_flat(Group, flat_dict(group)) == group
    assert with_flat_changes(group, {"steps": 4, "attack": Attack(epsilon=0.5)}).attack == Attack(0.5, steps=4)
    assert with_flat_changes(group, {"steps": 4, "attack": {"epsilon": 0.5}}).attack == Attack(0.5, steps=4)
    with pytest.raises(ValueError, match=r"unknown field 'stepps' \(did you mean 'steps'\?\)"):
        with_flat_changes(group, {"stepps": 3})
    with pytest.raises(ValueError, match=r"^here: unknown field 'sped' \(did you mean 'speed'\?\)"):
        from_flat(Group, {"sped": 3}, "here")
    with pytest.raises(ValueError, match=r"^here: steps must be at least 1, got 0"):
        from_flat(Group, {"steps": 0}, "here")
    with pytest.raises(ValueError, match="expected a table of speed, "):
        from_flat(Group, 3)


@settings
class Base:
    shift: Flat[Shift] = Shift()
    speed: Positive = 1.0

    def check(self) -> None:
        require(self.speed < 9, "speed", "less than 9", self.speed)


@settings
class Derived(Base):
    attack: Flat[Attack] = Attack()
    speed: Positive = 2.0


@settings
class Holder:
    base: Base = Base()
    derived: Derived = Derived()


def test_settings_inherit_fields_and_checks() -> None:
    assert field_names(Derived) == ["shift", "speed", "attack"]
    assert flat_names(Derived) == ["pixels", "ends", "speed", *field_names(Attack)]
    made = from_flat(Derived, {"pixels": 7, "steps": 3})
    assert isinstance(made, Base) and made == Derived(Shift(7), 2.0, Attack(steps=3))
    assert with_flat_changes(made, {"speed": 3, "pixels": 1, "epsilon": 1}).shift == Shift(1)
    assert from_flat(Derived, flat_dict(made)) == made and Derived(**to_dict(made)) == made
    with pytest.raises(ValueError, match=r"^speed must be less than 9, got 9"):
        Derived(speed=9)
    with pytest.raises(ValueError, match=r"^pixels must be at least 0, got -1"):
        with_flat_changes(made, {"pixels": -1})
    with pytest.raises(ValueError, match=r"unknown field 'attack'"):
        Base(attack={})  # type: ignore[call-arg]
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.speed = 1.0  # type: ignore[misc]


def test_a_subclass_of_settings_is_a_field_of_its_own() -> None:
    held = Holder(base={"speed": 4}, derived={"speed": 5, "attack": {"steps": 6}})  # type: ignore[arg-type]
    assert type(held.base) is Base and type(held.derived) is Derived
    assert held.derived.attack.steps == 6 and held.base.speed == 4
    with pytest.raises(ValueError, match="unknown field 'attack'"):
        Holder(base={"attack": {}})  # type: ignore[arg-type]
