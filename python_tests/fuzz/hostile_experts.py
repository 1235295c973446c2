"""Folders of experts as an attacker or a damaged disk makes them: ``make(folder, number)`` for any number.

The first cases are those that once hung, filled a machine or hid other experts; the others combine their parts at
random. Cases that run code if a reader lets them create the file of the environment variable EXML_FUZZ_SENTINEL.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import random
import socket
import struct
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from exml_fast.models import create

Card = dict[str, Any]
Case = Callable[[Path, random.Random], None]

MODEL, CARD = "model.safetensors", "card.json"
SPEC: Card = {"channels": 1, "size": [32, 32], "mean": [0.5], "std": [0.5]}
NUMBERS: list[Any] = [
    -1,
    0,
    1,
    2**31,
    2**63 - 1,
    2**63,
    10**30,
    1e308,
    5e-324,
    -0.0,
    0.5,
    True,
    None,
    "1",
    [],
    {},
    [1, 2],
    4000000,
]
TEXTS = ["", "x" * 10_000, "$x^$", "\\1", "\u202egnp", "../..", "a\x00b", "\x1b[31m", "{}", "%s%n", "🙂" * 50, "\ufeff"]
ARCHITECTURES: list[tuple[Any, Card]] = [
    ("cifar_resnet", {"depth": 6000000002}),
    ("cifar_resnet", {"depth": 60002}),
    ("cifar_resnet", {"depth": -4}),
    ("torchvision/regnet_x_400mf", {"num_classes": 4000000}),
    ("torchvision/regnet_x_400mf", {"num_classes": 100000}),
    ("torchvision/mobilenet_v2", {"inverted_residual_setting": [[1, 16, 1000000000, 1]]}),
    ("torchvision/mobilenet_v2", {"inverted_residual_setting": [[1, 16, 100000, 1]]}),
    ("torchvision/mobilenet_v2", {"width_mult": 1e308}),
    ("torchvision/mobilenet_v2", {"round_nearest": 0}),
    ("torchvision/densenet121", {"block_config": [100000, 1, 1, 1]}),
    ("torchvision/densenet121", {"growth_rate": 131072}),
    ("torchvision/vit_b_16", {"image_size": 131072}),
    ("torchvision/mnasnet0_5", {"dropout": 2.0}),
    ("torchvision/resnet18", {"replace_stride_with_dilation": [1] * 10000}),
    ("torchvision/nothing", {}),
    ("timm/resnet18", {"layers": [1000000] * 4}),
    ("timm/resnet18", {"layers": [60000] * 4}),
    ("timm/vit_tiny_patch16_224", {"depth": 100000}),
    ("timm/vit_tiny_patch16_224", {"img_size": 131072}),
    ("timm/swin_tiny_patch4_window7_224", {"window_size": 131072}),
    ("timm/resnet18", {"pretrained": True}),
    ("timm/resnet18", {"checkpoint_path": "/etc/passwd"}),
    ("timm/hf_hub:owner/name", {}),
    ("timm/../x", {}),
    ("timm/resnet18", {"act_layer": "os.system"}),
    ("slimmed", {"architecture": "slimmed", "arguments": {}, "widths": {}}),
    ("slimmed", {"architecture": "lenet5", "arguments": {}, "widths": {"features.0": [131072, 131072]}}),
    ("lenet5", {"num_classes": 131072}),
    ("lenet5", {"in_channels": 0}),
    ("lenet5", {"__class__": 1}),
    ("os.system", {"command": "true"}),
    ("subprocess.run", {}),
    ("__import__('os')", {}),
    ("lenet5", {"num_classes": [4]}),
    ("wide" * 100, {}),
    (["lenet5"], {}),
    (None, {}),
    ("torch.nn.Linear", {"in_features": 10**9}),
]


@cache
def good() -> tuple[bytes, Card]:
    """The weights and the card of a small expert that loads."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        weights = save(create("cifar_resnet", depth=8, num_classes=4).state_dict())
    card: Card = {
        "architecture": "cifar_resnet",
        "arguments": {"depth": 8, "num_classes": 4},
        "units": [0, 1, 2, 3],
        "classes": [0, 1],
        "class_names": list("abcd"),
        "input_spec": {"channels": 3, "size": [32, 32], "mean": [0.5] * 3, "std": [0.5] * 3},
        "training": {},
        "licence": None,
        "sha256": "",
        "format_version": 1,
    }
    return weights, card


def make(folder: Path, number: int) -> str:
    """Write the expert of this number into a new folder; returns what kind of case it is."""
    folder.mkdir(parents=True)
    chance = random.Random(number)
    names = list(CASES)
    name = names[number] if number < len(names) else chance.choice(names)
    CASES[name](folder, chance)
    return name


def write(folder: Path, card: Any, weights: bytes | None = None, hashed: bool = True) -> None:
    weights = good()[0] if weights is None else weights
    (folder / MODEL).write_bytes(weights)
    if hashed and isinstance(card, dict) and "sha256" in card:
        card = card | {"sha256": hashlib.sha256(weights).hexdigest()}
    text = card if isinstance(card, str) else json.dumps(card)
    (folder / CARD).write_bytes(text.encode("utf-8", "surrogatepass"))


def sentinel() -> str:
    return os.environ.get("EXML_FUZZ_SENTINEL", "/nonexistent/sentinel")


class Payload:
    """Creates the sentinel where it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (sentinel(), "w"))


def with_header(header: Any, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def changed(tensors: Callable[[dict[str, torch.Tensor], random.Random], None]) -> Case:
    def case(folder: Path, chance: random.Random) -> None:
        from safetensors.torch import load

        state = load(good()[0])
        tensors(state, chance)
        write(folder, good()[1], save(state))

    return case


def card_with(change: Callable[[Card, random.Random], Any]) -> Case:
    def case(folder: Path, chance: random.Random) -> None:
        card = json.loads(json.dumps(good()[1]))
        write(folder, change(card, chance) or card)

    return case


def special(kind: str, name: str) -> Case:
    def case(folder: Path, chance: random.Random) -> None:
        write(folder, good()[1])
        file = folder / name
        content = file.read_bytes()
        file.unlink()
        if kind == "fifo":
            os.mkfifo(file)
        elif kind == "socket":
            with socket.socket(socket.AF_UNIX) as server:
                here = os.getcwd()
                os.chdir(folder)  # the path of a socket is short
                server.bind(name)
                os.chdir(here)
        elif kind == "folder":
            file.mkdir()
        elif kind == "device":
            file.symlink_to("/dev/zero")
        elif kind == "circle":
            file.symlink_to(name)
        elif kind == "outside":
            outside = folder.with_name(f"{folder.name}-{name}")
            outside.write_bytes(content)
            file.symlink_to(outside)
        elif kind == "sparse":
            file.write_bytes(content)
            os.truncate(file, 60 * 2**30)
        elif kind == "empty":
            file.write_bytes(b"")
        elif kind == "cut":
            file.write_bytes(content[: chance.randrange(len(content))])
        elif kind == "noise":
            file.write_bytes(chance.randbytes(chance.randrange(4000)))
        elif kind == "flipped":
            data = bytearray(content)
            for _ in range(chance.randrange(1, 8)):
                data[chance.randrange(min(len(data), 3000))] ^= 1 << chance.randrange(8)
            file.write_bytes(bytes(data))
        elif kind == "pickle":
            file.write_bytes(pickle.dumps(Payload()))

    return case


def random_field(card: Card, chance: random.Random) -> None:
    where: Any = card
    key = chance.choice(list(card))
    if key in ("input_spec", "arguments") and chance.random() < 0.8:
        where, key = card[key], chance.choice(list(card[key]))
    where[key] = chance.choice([*NUMBERS, *TEXTS, SPEC, [chance.choice(NUMBERS)] * chance.randrange(1, 5)])


def several_fields(card: Card, chance: random.Random) -> None:
    for _ in range(3):
        random_field(card, chance)


def architecture(card: Card, chance: random.Random, at: int | None = None) -> None:
    card["architecture"], card["arguments"] = chance.choice(ARCHITECTURES) if at is None else ARCHITECTURES[at]


def random_arguments(card: Card, chance: random.Random) -> None:
    name, arguments = chance.choice([a for a in ARCHITECTURES if isinstance(a[0], str)])
    card["architecture"] = name
    card["arguments"] = {key: chance.choice([*NUMBERS, *TEXTS]) for key in [*arguments, "num_classes"]}


def size(card: Card, chance: random.Random) -> None:
    card["input_spec"]["size"] = chance.choice(
        [[40000, 40000], [65536, 65536], [8000, 8000], [1, 1], [0, 0], [10**12, 1]]
    )


def add_line(line: str) -> Callable[[Card, random.Random], str]:
    return lambda card, _: "{" + line + ", " + json.dumps(card)[1:]


def headers(folder: Path, chance: random.Random) -> None:
    """Headers of safetensors that lie."""
    tensor = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    weights = chance.choice(
        [
            struct.pack("<Q", 2**63) + b"{}",
            struct.pack("<Q", 2**40) + b"{}",
            with_header(b"{}"),
            with_header(b"[]"),
            with_header(b"{" * 100_000),
            with_header({"a": tensor}),
            with_header({"a": tensor | {"shape": [2**62, 4]}}, bytes(4)),
            with_header({"a": tensor | {"data_offsets": [4, 0]}}, bytes(4)),
            with_header({"a": tensor, "b": tensor}, bytes(4)),
            with_header({"a": tensor | {"data_offsets": [0, 2**60]}}, bytes(4)),
            with_header({"a": tensor | {"dtype": "X"}}, bytes(4)),
            with_header({"a": tensor | {"shape": [-1]}}, bytes(4)),
            with_header(b'{"a": 1, "a": 2}'),
            with_header(b"\xff" * 100),
            with_header({f"{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(50_000)}),
            with_header(json.dumps({"__metadata__": {"x": "y" * 7_000_000}}).encode()),
        ]
    )
    write(folder, good()[1], weights)


CASES: dict[str, Case] = {
    **{
        f"{name} as {kind}": special(kind, name)
        for name in (MODEL, CARD)
        for kind in (
            "fifo",
            "socket",
            "folder",
            "device",
            "circle",
            "outside",
            "sparse",
            "empty",
            "cut",
            "noise",
            "flipped",
            "pickle",
        )
    },
    **{
        f"architecture {i}": card_with(lambda card, chance, at=i: architecture(card, chance, at))
        for i in range(len(ARCHITECTURES))
    },
    "random field": card_with(random_field),
    "random arguments": card_with(random_arguments),
    "several fields": card_with(several_fields),
    "size": card_with(size),
    "std": card_with(lambda card, _: card["input_spec"].update(std=[5e-324] * 3)),
    "version": card_with(lambda card, _: card.update(format_version=True)),
    "long names": card_with(lambda card, _: card.update(class_names=["x" * 10_000] * 4)),
    "many names": card_with(lambda card, _: card.update(class_names=[1] * 500_000)),
    "many units": card_with(lambda card, _: card.update(units=list(range(300_000)))),
    "long card": card_with(lambda card, _: card.update(training={"x": "y" * 5_000_000})),
    "deep card": lambda folder, _: write(folder, "[" * 200_000),
    "deep training": lambda folder, _: write(folder, '{"training": ' + '{"a":' * 500 + "1" + "}" * 501),
    "repeated key": card_with(add_line('"architecture": "lenet5"')),
    "large number": card_with(add_line('"training": 1e999')),
    "long number": card_with(add_line('"training": ' + "9" * 100_000)),
    "nan": card_with(add_line('"training": NaN')),
    "surrogate": card_with(add_line('"licence": "\\ud800"')),
    "no text": lambda folder, _: write(folder, "\ud800"),
    "unknown field": card_with(lambda card, _: card.update({"x" * 400_000: 1})),
    "wrong hash": lambda folder, _: write(folder, good()[1], hashed=False),
    "headers": headers,
    "nan weight": changed(lambda t, _: t["conv1.weight"].view(-1)[0].fill_(float("nan"))),
    "infinite weight": changed(lambda t, _: t["linear.bias"][0].fill_(float("-inf"))),
    "negative variance": changed(lambda t, _: t["bn1.running_var"][0].fill_(-1.0)),
    "missing weight": changed(lambda t, chance: t.pop(chance.choice(sorted(t))) is None),
    "other shape": changed(lambda t, chance: t.update({chance.choice(sorted(t)): torch.zeros(3, 1)})),
    "other dtype": changed(lambda t, chance: t.update({(k := chance.choice(sorted(t))): t[k].to(torch.float64)})),
    "more weights": changed(lambda t, _: t.update({f"x{i}": torch.zeros(1) for i in range(30_000)})),
    "no weights": changed(lambda t, _: t.clear()),
}
