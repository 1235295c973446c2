"""A group of commands that are imported when they are called, so that help and completion need no PyTorch."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any, ClassVar

import typer
from typer.core import TyperCommand, TyperGroup

__all__ = ["COMMANDS", "LazyGroup"]

COMMANDS: Mapping[str, tuple[str, str]] = {
    "train-experts": (
        "experts:train_experts_command",
        "Train one expert an experience and save each as a folder with model.safetensors and card.json.",
    ),
    "invert": ("invert:invert", "Make images of a classifier's classes from the classifier alone."),
    "synthesize": (
        "synthesize:synthesize",
        "Make images of classifiers in shards on disk. Ctrl-C finishes the shards in flight, a second one ends at "
        "once.",
    ),
    "distill": (
        "distill:distill",
        "Teach a fresh network what a classifier knows, on images made from the classifier alone.",
    ),
    "generator": (
        "generator:generator",
        "Train a generator whose images teach a student what a classifier knows, without data (Ye 2022).",
    ),
    "prune": (
        "prune:prune",
        "Remove the filters of a classifier that matter least, on images that need not be real (Yin 2020).",
    ),
    "quantize": (
        "quantize:quantize",
        "Compute a classifier in 8 or 4 bits, with ranges from images that need not be real.",
    ),
    "learn": (
        "learn:learn",
        "Learn one model from a stream of experts without their data, beside the baselines on the same experts.",
    ),
    "incremental": (
        "incremental:incremental",
        "Teach one network classes task by task, by one or several methods, and test it after each task.",
    ),
    "evaluate": (
        "experts:evaluate",
        "Accuracy of an expert or ex-model on a data set's test images: overall, by class, and the confusion matrix.",
    ),
    "leaks": (
        "leaks:leaks",
        "Measure copies of training images among synthetic ones, and whether networks reveal their training images.",
    ),
    "demo": (
        "learn:demo",
        "Show everything in minutes: experts on digits, three ways to learn from them, baselines and a page.",
    ),
    "doctor": (
        "doctor:doctor",
        "Print what is there (torch, CUDA, compiler, extras, caches, offline flags), and what to do.",
    ),
    "reproduce": (
        "reproduce:reproduce_command",
        "Compute a published table again and print the paper's figures beside ours; shorter runs are labelled reduced.",
    ),
    "catalogue": ("catalogue:app", "Choose among experts in a folder, check them, and hand them on."),
    "transfer": ("reproduce:transfer", "Experiments with the impressions of a network (Nayak 2021)."),
}
"""File and function of each command, and the first line of its help."""


class LazyGroup(TyperGroup):
    """The commands of :data:`COMMANDS`. Only lists of commands are made without importing them."""

    _loaded: ClassVar[dict[str, Any]] = {}

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._listing = False

    def list_commands(self, ctx: Any) -> list[str]:
        """The names, in the order of the help."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command; while commands are listed, one that has only a name and a help."""
        if cmd_name not in COMMANDS:
            return None
        if self._listing:
            return TyperCommand(cmd_name, help=COMMANDS[cmd_name][1])
        if cmd_name not in self._loaded:
            self._loaded[cmd_name] = _load(cmd_name)
        return self._loaded[cmd_name]

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """The help of the group."""
        self._listing = True
        try:
            super().format_help(ctx, formatter)
        finally:
            self._listing = False

    def shell_complete(self, ctx: Any, incomplete: str) -> Any:
        """Completions of a command's name."""
        self._listing = True
        try:
            return super().shell_complete(ctx, incomplete)
        finally:
            self._listing = False


def _load(name: str) -> Any:
    file, _, attribute = COMMANDS[name][0].partition(":")
    found = getattr(importlib.import_module(f"exml_fast.cli.{file}"), attribute)
    if not isinstance(found, typer.Typer):
        only = typer.Typer(add_completion=False)
        only.command(name)(found)
        found = only
    command: Any = typer.main.get_command(found)
    command.name = name
    return command
