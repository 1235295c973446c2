from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from exml_fast.checkpoint import (
    Checkpoint,
    fingerprint,
    load_state,
    random_state,
    set_random_state,
    state_of,
)
from exml_fast.storage import save_checkpoint


def test_what_is_kept_is_written_on_an_interrupt_and_loaded_by_the_same_run(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "run.pt", {"seed": 1})
    assert checkpoint.load() is None
    with pytest.raises(KeyboardInterrupt) as caught, checkpoint:
        checkpoint.keep(lambda: {"step": 3})
        assert not (tmp_path / "run.pt").exists()
        raise KeyboardInterrupt
    assert "continues from there" in caught.value.__notes__[0]
    assert Checkpoint(tmp_path / "run.pt", {"seed": 1}).load() == {"step": 3}
    with pytest.raises(ValueError, match="another run: seed was 1, is 2"):
        Checkpoint(tmp_path / "run.pt", {"seed": 2}).load()
    checkpoint.remove()
    assert checkpoint.load() is None


def test_it_is_written_when_it_is_due_and_no_other_error_writes_it(tmp_path: Path) -> None:
    due = Checkpoint(tmp_path / "due.pt", "a", seconds=0.0)
    due.keep(lambda: 1)
    assert due.load() == 1
    later = Checkpoint(tmp_path / "later.pt", "a")
    with pytest.raises(RuntimeError), later:
        later.keep(lambda: 1)
        raise RuntimeError
    assert later.load() is None
    later.keep(lambda: 2, write=True)
    assert later.load() == 2
    with pytest.raises(ValueError, match="networks, images, settings or seed differ"):
        Checkpoint(tmp_path / "later.pt", "b").load()


def test_without_a_path_nothing_is_computed(tmp_path: Path) -> None:
    nowhere = Checkpoint(None, "a", seconds=0.0)
    with nowhere:
        nowhere.keep(lambda: pytest.fail("the state was asked for"), write=True)
    nowhere.write()
    nowhere.remove()
    assert nowhere.load() is None


@pytest.mark.parametrize("content", [[1], {"state": 1}])
def test_other_files_are_refused(tmp_path: Path, content: object) -> None:
    save_checkpoint(tmp_path / "run.pt", content)
    with pytest.raises(ValueError, match="no checkpoint of this version"):
        Checkpoint(tmp_path / "run.pt", "a").load()


def test_parts_and_random_states_are_restored() -> None:
    parts = {"layer": nn.Linear(2, 2), "draws": torch.Generator().manual_seed(3)}
    state, randomness = state_of(parts), random_state(torch.device("cpu"))
    weight = parts["layer"].weight.detach().clone()
    first = torch.rand(3, generator=parts["draws"]), torch.rand(3)
    nn.init.zeros_(parts["layer"].weight)
    load_state(parts, state)
    set_random_state(randomness, torch.device("cpu"))
    assert torch.equal(parts["layer"].weight, weight)
    again = torch.rand(3, generator=parts["draws"]), torch.rand(3)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_a_fingerprint_depends_on_tensors_and_settings() -> None:
    x = torch.arange(4.0)
    prints = {fingerprint([x], 1), fingerprint([x], 2), fingerprint([x + 1], 1), fingerprint([x, x], 1)}
    assert len(prints) == 4 and fingerprint([x.clone()], 1) in prints


def test_a_fingerprint_reads_every_value_of_nested_tensors() -> None:
    """A large tensor's repr leaves out its middle."""
    x = torch.arange(4000.0)
    y = x.clone()
    y[2000] = -1
    for nest in (lambda t: t, lambda t: ["a", (t, 1)], lambda t: {"a": {"b": [t]}}):
        found, other = fingerprint([], nest(x)), fingerprint([], nest(y))
        assert found != other and found == fingerprint([], nest(x.clone()))
    assert fingerprint([], [x.view(2, 2000)]) != fingerprint([], [x]) != fingerprint([], [x.int()])
    with pytest.raises(TypeError, match="settings must hold JSON values and tensors only, got dtype"):
        fingerprint([x], {"kind": [torch.float32]})


def test_the_field_that_differs_is_named(tmp_path: Path) -> None:
    was = {"seed": 1, "config": {"lr": 0.1, "model": {"width": 8, "depth": 2}}}
    Checkpoint(tmp_path / "run.pt", was).keep(lambda: 1, write=True)
    for now, said in (
        ({"seed": 1}, "run: config was .*, is absent;"),
        ({**was, "data": "b"}, "run: data was absent, is 'b';"),
        ({**was, "seed": None}, "run: seed was 1, is None;"),
        ({"seed": 1, "config": {"lr": 0.1, "model": {"width": 4, "depth": 2}}}, "config.model.width was 8, is 4;"),
    ):
        with pytest.raises(ValueError, match=said):
            Checkpoint(tmp_path / "run.pt", now).load()
    assert Checkpoint(tmp_path / "run.pt", dict(reversed(was.items()))).load() == 1
