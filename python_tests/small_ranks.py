"""Runs a function in several processes with gloo, for tests of what ranks do together."""

from __future__ import annotations

import multiprocessing
import tempfile
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from exml_fast.ranks import Ranks


def on_ranks(function: Callable[..., Any], count: int, *arguments: Any) -> list[Any]:
    """What ``function(ranks, *arguments)``, of a module, returns in each of ``count`` processes."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["exml_fast"])
    with tempfile.NamedTemporaryFile() as file, context.Pool(count) as pool:
        store = f"{file.name}.store"
        tasks = [pool.apply_async(_one, (function, rank, count, store, arguments)) for rank in range(count)]
        return [task.get(timeout=120) for task in tasks]


def _one(function: Callable[..., Any], rank: int, count: int, store: str, arguments: tuple[Any, ...]) -> Any:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(store, count), rank=rank, world_size=count)
    try:
        return function(Ranks.current(), *arguments)
    finally:
        dist.destroy_process_group()
