"""The one resume protocol: a run that is interrupted continues from its checkpoint and ends with the same bits.

checkpoint = Checkpoint(path, identity)
if (state := checkpoint.load()) is not None:
    ...                                     # restore
with checkpoint:                            # Ctrl-C writes what was kept last
    while not finished:
        checkpoint.keep(lambda: ...)        # the state is consistent here; written once a minute
        ...
checkpoint.remove()
"""

from __future__ import annotations

import copy
import hashlib
import json
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from exml_fast.storage import PathLike, load_checkpoint, save_checkpoint

__all__ = ["Checkpoint", "Stateful", "fingerprint", "load_state", "random_state", "set_random_state", "state_of"]

SECONDS = 60.0


class Stateful(Protocol):
    """A part of a run that can be saved: a module, an optimiser, a buffer."""

    def state_dict(self) -> Any:
        """Return copies, except for a module or optimiser, which the checkpoint copies."""
        ...

    def load_state_dict(self, state: Any) -> Any:
        """Restore what :meth:`state_dict` gave."""
        ...


class Checkpoint:
    """A file with the state of a run. Without a path all methods do nothing.

    Args:
        path: the file; None disables saving.
        identity: what the run computes (plain values, or a :func:`fingerprint`); another run's file is refused.
        seconds: least time between two writes of :meth:`keep`.
    """

    def __init__(self, path: PathLike | None, identity: Any, seconds: float = SECONDS) -> None:
        self.path = None if path is None else Path(path)
        self.identity = identity
        self._seconds = seconds
        self._written = time.monotonic()
        self._kept: Any = None

    def load(self, device: str | torch.device = "cpu") -> Any:
        """The saved state; None if there is none. ValueError for a damaged file, or one of another run."""
        if self.path is None or not self.path.is_file():
            return None
        saved = load_checkpoint(self.path, device)
        if not isinstance(saved, dict) or "identity" not in saved or "state" not in saved:
            raise ValueError(f"{self.path} holds no checkpoint of this version; remove it or give another folder")
        if difference := _difference(saved["identity"], self.identity):
            raise ValueError(
                f"checkpoint {self.path} belongs to another run: {difference}; remove it or give another folder"
            )
        return saved["state"]

    def keep(self, state: Callable[[], Any], *, write: bool = False) -> None:
        """Remember the state as it is now, which must be consistent; write it if asked to, or once a minute.

        ``state`` is called only if there is a path. Its result must not change afterwards (copy what goes on changing).
        """
        if self.path is None:
            return
        self._kept = state()
        if write or time.monotonic() - self._written >= self._seconds:
            self.write()

    def write(self) -> None:
        """Write what was kept last."""
        if self.path is not None and self._kept is not None:
            save_checkpoint(self.path, {"identity": self.identity, "state": self._kept})
            self._written = time.monotonic()

    def remove(self) -> None:
        """Delete the file; the run is finished."""
        self._kept = None
        if self.path is not None:
            self.path.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        self._written = time.monotonic()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, KeyboardInterrupt | SystemExit) and self.path is not None and self._kept is not None:
            self.write()
            error.add_note(f"checkpoint written to {self.path}: the same call continues from there")


def fingerprint(tensors: Iterable[Tensor], settings: Any) -> str:
    """SHA-256 of what a run computes: tensors, and settings of JSON values and tensors in lists, tuples and dicts.

    TypeError for settings that hold anything else.
    """
    digest = hashlib.sha256()

    def add(tensor: Tensor) -> None:
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)

    def described(value: Any) -> list[Any]:
        if not isinstance(value, Tensor):
            raise TypeError(f"settings must hold JSON values and tensors only, got {type(value).__name__}: {value!r}")
        add(value)
        return ["tensor", str(value.dtype), *value.shape]

    for tensor in tensors:
        add(tensor)
    digest.update(json.dumps(settings, default=described).encode())
    return digest.hexdigest()


def state_of(parts: Mapping[str, Stateful | torch.Generator]) -> dict[str, Any]:
    """A copy of the state of each part; a generator's state is a tensor."""

    def of(part: Stateful | torch.Generator) -> Any:
        if isinstance(part, torch.Generator):
            return part.get_state()
        shared = isinstance(part, torch.nn.Module | torch.optim.Optimizer)  # their tensors are trained in place
        return copy.deepcopy(part.state_dict()) if shared else part.state_dict()

    return {name: of(part) for name, part in parts.items()}


def load_state(parts: Mapping[str, Stateful | torch.Generator], state: Mapping[str, Any]) -> None:
    """Restore what :func:`state_of` gave."""
    for name, part in parts.items():
        if isinstance(part, torch.Generator):
            part.set_state(state[name].cpu())
        else:
            part.load_state_dict(state[name])


def random_state(device: torch.device) -> dict[str, Tensor]:
    """States of torch's global generators of the CPU and, on CUDA, of ``device``."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def set_random_state(states: Mapping[str, Tensor], device: torch.device) -> None:
    """Restore what :func:`random_state` gave; a device it was not taken from is left as it is."""
    torch.set_rng_state(states["cpu"].cpu())
    if "cuda" in states and device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"].cpu(), device)


def _difference(was: Any, now: Any, name: str = "") -> str:
    """In words what differs between two identities, down to the field of nested dicts; empty if they are equal."""
    if isinstance(was, dict) and isinstance(now, dict):
        for key in {**was, **now}:
            path = f"{name}.{key}" if name else str(key)
            if key not in now or key not in was:
                return f"{path} was {was[key]!r}, is absent" if key in was else f"{path} was absent, is {now[key]!r}"
            if found := _difference(was[key], now[key], path):
                return found
        return ""
    if was == now:
        return ""
    return f"{name} was {was!r}, is {now!r}" if name else "networks, images, settings or seed differ"
