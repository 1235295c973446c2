"""A trained generator of images with a card that says whose knowledge it holds."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import field
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import save as tensors_to_bytes
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from exml_fast.data import InputSpec
from exml_fast.engine.freezing import device_of
from exml_fast.engine.substitution import copied
from exml_fast.generators import networks
from exml_fast.models.skeleton import limited, require_header, require_modest
from exml_fast.models.weights import require_same_weights
from exml_fast.reading import CARD_BYTES
from exml_fast.storage import PathLike, load_json, load_tensors, save_json, save_tensors, sha256, tensor_header
from exml_fast.validation import Count, Natural, field_names, from_mapping, require, require_count, settings, to_dict

__all__ = ["Generator", "GeneratorCard", "recalibrate"]

FORMAT_VERSION = 1
MODEL_FILE, CARD_FILE = "generator.safetensors", "card.json"
# Numbers of a latent are drawn in multiples of this, because torch draws in blocks of 16. More latents then begin with
# the fewer ones of the same seed.
DRAWN = 16
# Greatest number of values of an image: 3 × 2048 × 2048 fit.
LARGEST = 2**24


@settings
class GeneratorCard:
    """What a generator is, as plain JSON values.

    Attributes:
        architecture, arguments: for :func:`exml_fast.generators.networks.create`.
        latent_size: numbers in a latent.
        input_spec: of the images, which are network input.
        classes: global ids of the classes that the teacher knew; empty if unknown.
        training: how it was made (method, teacher, settings, losses ...).
        sha256: of the weights file; empty until saved.
        format_version: of the card.

    Raises:
        ValueError: naming the field that is wrong.
    """

    architecture: str
    arguments: dict[str, Any]
    latent_size: Count
    input_spec: InputSpec
    classes: tuple[Natural, ...] = ()
    training: dict[str, Any] = field(default_factory=dict)
    sha256: str = ""
    format_version: int = FORMAT_VERSION

    def check(self) -> None:
        """Rules between the fields."""
        require(self.format_version == FORMAT_VERSION, "format_version", str(FORMAT_VERSION), self.format_version)
        if len(set(self.classes)) != len(self.classes):
            raise ValueError(f"classes must not repeat a class id, got {list(self.classes)}")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; the inverse of :meth:`from_dict`."""
        return to_dict(self)

    @classmethod
    def from_dict(cls, value: Any) -> GeneratorCard:
        """ValueError naming the field that is missing, unknown or wrong."""
        if not isinstance(value, Mapping):
            raise ValueError(f"card: expected a JSON object, got {type(value).__name__}")
        if value.get("format_version") != FORMAT_VERSION:
            raise ValueError(f"card: format_version must be {FORMAT_VERSION}, got {value.get('format_version')!r}")
        if missing := [name for name in field_names(cls) if name not in value]:
            raise ValueError(f"card: {missing[0]} is missing")
        return from_mapping(cls, value, "card")


class Generator:
    """A network that makes images of latents; a source of images (:class:`exml_fast.data.ImageSource`).

    Args:
        network: maps latents (N, latent_size) to network input (N, C, H, W). A network in evaluation mode is kept as it
            is; of another one a copy in evaluation mode is kept.
        latent_size: numbers in a latent, which are drawn from a standard normal distribution.
        spec: of the images.
        card: with which :meth:`load` rebuilds the network. Without a card the generator cannot be saved.

    Raises:
        ValueError: if the network makes no images of ``spec`` of latents of this size, or the card says otherwise.
    """

    domain: ClassVar[str] = "the teacher's training images"

    def __init__(
        self, network: nn.Module, latent_size: int, spec: InputSpec, card: GeneratorCard | None = None
    ) -> None:
        require_count("latent_size", latent_size)
        require(isinstance(network, nn.Module), "network", "a torch.nn.Module", type(network).__name__)
        if card is not None:
            require(
                card.latent_size == latent_size, "latent_size", f"{card.latent_size}, as the card says", latent_size
            )
            require(card.input_spec == spec, "spec", f"{card.input_spec}, as the card says", spec)
        training = any(module.training for module in network.modules())
        self.network = copied(network).eval() if training else network
        self.latent_size, self.spec, self.card = latent_size, spec, card
        _require_images(self.network, latent_size, spec)

    @classmethod
    def create(
        cls,
        architecture: str,
        spec: InputSpec,
        *,
        latent_size: int = networks.LATENT_SIZE,
        classes: tuple[int, ...] = (),
        seed: int = 0,
        **arguments: Any,
    ) -> Generator:
        """A generator with random weights.

        Args:
            architecture: a name in :data:`exml_fast.generators.networks.NETWORKS`: "upsampling", "deconvolution".
            spec: of the images.
            latent_size: numbers in a latent.
            classes: global ids of the teacher's classes, for the card.
            seed: of the weights; the caller's random state is left alone.
            arguments: further arguments of the network, as ``width``, ``helper_bn``.

        Raises:
            ValueError: naming the argument that is wrong.
        """
        sizes = {"latent_size": latent_size, "channels": spec.channels, "size": list(spec.size)}
        complete = sizes | arguments
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = networks.create(architecture, **complete)
        return cls(network, latent_size, spec, GeneratorCard(architecture, complete, latent_size, spec, tuple(classes)))

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return device_of(self.network)

    @property
    def classes(self) -> tuple[int, ...]:
        """Global ids of the teacher's classes; empty if unknown."""
        return () if self.card is None else self.card.classes

    def sample(self, count: int, seed: int = 0, batch_size: int = 256) -> Tensor:
        """Images (count, C, H, W) float32, network input, on the CPU.

        A seed gives the same images in every process and, up to rounding, for every ``batch_size``. More images begin
        with the images of a smaller ``count``.

        Raises:
            ValueError: for a negative count.
            RuntimeError: if a weight or a pixel is NaN or infinite.
        """
        return self._images(count, torch.Generator().manual_seed(seed), batch_size)

    def draw(self, count: int, spec: InputSpec, generator: torch.Generator) -> Tensor:
        """``count`` images of latents from ``generator``, normalised for ``spec``: float32 (count, C, H, W), CPU.

        Images for another specification than the generator's own are clamped to [0, 1], resized and normalised anew.
        Raises as :meth:`sample`.
        """
        return spec.convert(self._images(count, generator), self.spec)

    def latents(self, count: int, generator: torch.Generator) -> Tensor:
        """Latents (count, latent_size) float32 from a standard normal distribution, on the generator's device."""
        return draw_latents(count, self.latent_size, generator, self.device)

    def describe(self) -> dict[str, Any]:
        """What the generator is, as JSON values; "weights" is the fingerprint."""
        known: dict[str, Any] = {} if self.card is None else self.card.to_dict()
        kept: dict[str, Any] = {
            name: known[name] for name in ("architecture", "arguments", "classes", "training") if name in known
        }
        return {"source": type(self).__name__} | kept | {"weights": self.fingerprint()}

    def fingerprint(self) -> str:
        """SHA-256 of the weights as they are now."""
        state = {k: v.detach().cpu().contiguous().clone() for k, v in self.network.state_dict().items()}
        return hashlib.sha256(tensors_to_bytes(state)).hexdigest()

    def to(self, device: torch.device | str) -> Generator:
        """A copy on ``device``."""
        return Generator(copy.deepcopy(self.network).to(device), self.latent_size, self.spec, self.card)

    def noted(self, network: nn.Module, classes: tuple[int, ...], training: Mapping[str, Any]) -> Generator:
        """A generator of ``network``, a trained copy of this one's, whose card says what it was trained on and how."""
        card = self.card
        if card is not None:
            card = dataclasses.replace(card, classes=classes, training=dict(training), sha256="")
        return Generator(network, self.latent_size, self.spec, card)

    def save(self, folder: PathLike) -> GeneratorCard:
        """Write ``generator.safetensors`` and then ``card.json`` into ``folder``; returns the card with the hash.

        ValueError for a generator that :meth:`load` could not rebuild; nothing is written then.
        """
        card, path = self._require_loadable(), Path(folder)
        save_tensors(path / MODEL_FILE, self.network.state_dict())
        self.card = dataclasses.replace(card, sha256=sha256(path / MODEL_FILE))
        save_json(path / CARD_FILE, self.card.to_dict())
        return self.card

    @classmethod
    def load(cls, folder: PathLike, device: str | torch.device = "cpu") -> Generator:
        """Read a generator; no code from the folder is run.

        The card reaches only :func:`exml_fast.generators.networks.create`, and the caller's random state is left alone.

        Raises:
            FileNotFoundError: if the folder holds no generator.
            ValueError: naming the file, field or weight, for a wrong format version or field, a wrong hash, an unknown
                architecture or argument, a weight that is missing, unexpected, not finite or of another shape or dtype,
                or images of another shape than the specification's.
        """
        path = Path(folder)
        card, file = read_card(path), path / MODEL_FILE
        header = tensor_header(file, within=path)
        try:
            shapes = _skeleton(card, len(header))
            require_header(header, shapes, f"{MODEL_FILE}: ")
            size = math.prod(card.input_spec.shape)
            require(size <= LARGEST, "input_spec: the values of an image", f"at most {LARGEST:,}", size)
            _require_images(shapes, card.latent_size, card.input_spec)
            if (found := sha256(file, within=path)) != card.sha256:
                raise ValueError(f"{MODEL_FILE}: sha256 is {found}, the card says {card.sha256!r}")
            tensors = load_tensors(file, within=path)
            require_same_weights(tensors, shapes, f"{MODEL_FILE}: ")
            with torch.random.fork_rng(devices=[]):
                network = networks.create(card.architecture, **card.arguments)
            network.load_state_dict(tensors)
            return cls(network.eval().to(device), card.latent_size, card.input_spec, card)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def _require_loadable(self) -> GeneratorCard:
        try:
            if self.card is None:
                raise ValueError("it has no card")
            require_same_weights(self.network.state_dict(), _skeleton(self.card, len(self.network.state_dict())))
        except ValueError as error:
            raise ValueError(
                f"the generator cannot be saved, because Generator.load could not rebuild it: {error}. For a network "
                "of your own, call exml_fast.generators.register(name, factory), and give its name and arguments in a "
                "card"
            ) from error
        return self.card

    @torch.no_grad()
    def _images(self, count: int, generator: torch.Generator, batch_size: int = 256) -> Tensor:
        require_count("count", count, 0)
        require_count("batch_size", batch_size)
        # An infinite weight may end as an ordinary pixel, because Tanh bounds it.
        for name, weight in self.network.state_dict().items():
            if weight.is_floating_point() and not bool(weight.isfinite().all()):
                raise RuntimeError(f"the generator's weight {name!r} is not finite everywhere: its training diverged")
        latents = draw_latents(count, self.latent_size, generator, self.device)
        images = torch.empty(count, *self.spec.shape)
        with _evaluating(self.network):
            for rows in torch.arange(count).split(batch_size):
                images[rows] = self.network(latents[rows.to(latents.device)]).float().cpu()
        if not bool(images.isfinite().all()):
            raise RuntimeError("the generator gives images that are not finite: its training diverged")
        return images


def draw_latents(count: int, size: int, generator: torch.Generator, device: torch.device | str) -> Tensor:
    """Latents (count, size) from a standard normal distribution; the first rows do not depend on ``count``."""
    drawn = -(-size // DRAWN) * DRAWN
    return torch.randn(count, drawn, generator=generator, device=generator.device)[:, :size].to(device)


@torch.no_grad()
def recalibrate(
    network: nn.Module, latent_size: int, generator: torch.Generator, batches: int, batch_size: int
) -> None:
    """Set the running statistics of every BatchNorm to the average over ``batches`` batches of new latents.

    During training they trail behind the weights, which then make other images in evaluation mode than in training
    mode. The network is in evaluation mode afterwards.
    """
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a cumulative average
    network.train()
    device = device_of(network)
    for _ in range(batches if norms else 0):
        network(draw_latents(batch_size, latent_size, generator, device))
    network.eval()
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def read_card(folder: PathLike) -> GeneratorCard:
    """The card of the generator in ``folder``; FileNotFoundError or ValueError naming the file."""
    path = Path(folder) / CARD_FILE
    if not os.path.lexists(path):
        raise FileNotFoundError(f"no generator in {folder}: {CARD_FILE} is missing")
    try:
        return GeneratorCard.from_dict(load_json(path, limit=CARD_BYTES, within=folder))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _skeleton(card: GeneratorCard, tensors: int) -> nn.Module:
    """The card's network on "meta", where nothing is allocated, for a file of so many ``tensors``."""
    require_modest(card.arguments)
    with limited(tensors), torch.device("meta"):
        return networks.create(card.architecture, **card.arguments)


@contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@torch.no_grad()
def _require_images(network: nn.Module, latent_size: int, spec: InputSpec) -> None:
    """ValueError unless ``network`` maps latents of this size to images of ``spec``."""
    device = device_of(network)
    try:
        with _evaluating(network):
            images = network(torch.zeros(2, latent_size, device=device))
    except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"the network does not take latents of latent_size {latent_size}: {reason}") from error
    found = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
    if found != (2, *spec.shape):
        raise ValueError(f"the network must make images {(2, *spec.shape)} of two latents, got {found}")
