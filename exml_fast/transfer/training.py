"""The loop in which students, robust teachers and baselines are trained, and how they are judged."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from exml_fast import ops
from exml_fast._native import reused_memory
from exml_fast.checks import is_count, is_number
from exml_fast.data import Augmentation, InputSpec, Split
from exml_fast.engine.substitution import twin
from exml_fast.inversion import Result
from exml_fast.models import final_linear
from exml_fast.progress import Progress
from exml_fast.training import ARITHMETIC, Rounded, arranged

__all__ = [
    "Training",
    "accuracy",
    "class_accuracies",
    "features",
    "logits_of",
    "network_input",
    "train",
    "train_classifier",
]

# The loss of a network for images x, and what an attack makes of images and labels; both are given the network.
Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]
Attacked = Callable[[nn.Module, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Training:
    """Adam with a cosine to zero, over ``steps`` batches of shuffled images.

    The papers give no optimiser but Adam at 0.001 (published code of Nayak 2021). ``augmentation`` is applied anew to
    each batch. ``arithmetic`` is that of the network that learns (and of the teacher in ``zskd``): "float32", or
    "bfloat16" (torch.autocast: weights, optimiser and loss stay float32), which is faster where the processor has it.
    ValueError naming the field that leaves its range.
    """

    steps: int = 5000
    batch_size: int = 128
    lr: float = 1e-3
    weight_decay: float = 0.0
    augmentation: Augmentation = field(default_factory=lambda: Augmentation(shift=0))
    arithmetic: str = "float32"

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size"):
            value = getattr(self, name)
            if not is_count(value):
                raise ValueError(f"{name} must be a positive integer, got {value!r}")
        if not is_number(self.lr) or not self.lr > 0:
            raise ValueError(f"lr must be a positive number, got {self.lr!r}")
        if not is_number(self.weight_decay) or self.weight_decay < 0:
            raise ValueError(f"weight_decay must be a number of at least 0, got {self.weight_decay!r}")
        if not isinstance(self.augmentation, Augmentation):
            raise ValueError(f"augmentation must be an Augmentation, got {self.augmentation!r}")
        if self.arithmetic not in ARITHMETIC:
            raise ValueError(f"arithmetic must be one of {list(ARITHMETIC)}, got {self.arithmetic!r}")


def network_input(
    images: Result | Tensor, spec: InputSpec | None, name: str = "impressions"
) -> tuple[Tensor, InputSpec]:
    """The images of a result, or network input (N, C, H, W) as it is, and what it was made for.

    float32. ValueError naming the argument where no specification is given, the shape or dtype is another, or a value
    is not finite.
    """
    if isinstance(images, Result):
        spec = spec or images.spec
        images = images.images
    if not isinstance(images, Tensor):
        raise ValueError(f"{name} must be a tensor or what exml_fast.invert gives, got {type(images).__name__}")
    if spec is None:
        raise ValueError(f"spec must be given where {name} are a tensor")
    if images.dim() != 4 or tuple(images.shape[1:]) != spec.shape or len(images) == 0:
        raise ValueError(f"{name} must be (N, {', '.join(map(str, spec.shape))}), got {tuple(images.shape)}")
    if not images.is_floating_point():
        raise ValueError(f"{name} must be floating point, network input and no bytes, got {images.dtype}")
    if not images.isfinite().all():
        raise ValueError(f"{name} hold NaN or infinity")
    return images.float(), spec


def train(
    model: nn.Module,
    images: Tensor,
    loss: Loss,
    config: Training,
    spec: InputSpec,
    *,
    seed: int = 0,
    progress: Progress | None = None,
    stage: str = "train",
) -> Tensor:
    """Minimise ``loss(network, x, index)`` over the model's parameters, in place; it is left in evaluation mode.

    ``network`` is the model by our ops, with its parameters (:func:`~exml_fast.engine.substitution.twin`) and in
    ``config.arithmetic``; they have no second derivatives. ``x`` are augmented rows ``images[index]``, network input on
    the model's device. The caller's random state is left alone. Returns the loss of every step (steps,) float64;
    RuntimeError where it has become no number (seen every 50 steps), ValueError for images that are not finite and for
    a model whose parameters are all frozen.
    """
    if len(images) == 0:
        raise ValueError("images must hold at least one image")
    if not images.isfinite().all():
        raise ValueError("images hold NaN or infinity")
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError("model has no parameter that requires a gradient, so nothing can be trained")
    device = next(model.parameters()).device
    network = Rounded(twin(arranged(model, config.arithmetic)), config.arithmetic)
    images = images.to(device)
    bounds = spec.bounds(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.steps)
    generator = torch.Generator().manual_seed(seed)
    history = torch.zeros(config.steps, dtype=torch.float64)
    batches = _endless_batches(len(images), config.batch_size, generator)
    with reused_memory(), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)  # dropout
        network.train()
        for step in range(config.steps):
            index = next(batches).to(device)
            x = images[index]
            if config.augmentation.active:
                x = config.augmentation(x, bounds, generator)
            value = loss(network, x, index)
            optimizer.zero_grad(set_to_none=True)
            value.backward()
            optimizer.step()
            schedule.step()
            history[step] = value.detach()
            if (step + 1) % 50 == 0 or step + 1 == config.steps:
                last = float(history[step])
                if not math.isfinite(last):
                    raise RuntimeError(
                        f"{stage}: the loss became {last} by step {step + 1}; lr {config.lr} may be high"
                    )
                if progress is not None:
                    progress(stage, step + 1, config.steps, {"loss": last})
    model.eval()
    return history


def train_classifier(
    model: nn.Module,
    split: Split,
    spec: InputSpec,
    config: Training,
    *,
    attack: Attacked | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Tensor:
    """Cross-entropy on real images, or on what ``attack(network, x, labels)`` makes of them; see :func:`train`."""
    labels = split.labels.to(next(model.parameters()).device)

    def loss(network: nn.Module, x: Tensor, index: Tensor) -> Tensor:
        x = x if attack is None else attack(network, x, labels[index])
        return ops.soft_cross_entropy(network(x), labels[index])

    return train(model, spec.prepare(split.images), loss, config, spec, seed=seed, progress=progress)


@torch.no_grad()
def logits_of(model: nn.Module, images: Tensor, batch_size: int = 512) -> Tensor:
    """Logits (N, K) on the CPU of network input (N, C, H, W), in evaluation mode; flags are restored.

    ValueError where one is NaN, of which no prediction can be made.
    """
    device = next(model.parameters()).device
    with _evaluating(model):
        logits = torch.cat([model(part.to(device)).float().cpu() for part in images.split(batch_size)])
    if logits.isnan().any():
        raise ValueError(f"{type(model).__name__}: logits are NaN")
    return logits


def accuracy(model: nn.Module, split: Split, spec: InputSpec) -> float:
    """Share of the images whose largest logit is their label's."""
    right = sum(int((logits_of(model, x).argmax(1) == y).sum()) for x, y in split.batches(spec))
    return right / len(split)


def class_accuracies(model: nn.Module, split: Split, spec: InputSpec, classes: int) -> Tensor:
    """(classes,) float64: the share of each class's images that are recognised; NaN for a class without images."""
    found = torch.cat([logits_of(model, x).argmax(1) for x, _ in split.batches(spec)])
    right = torch.bincount(split.labels[found == split.labels], minlength=classes).double()
    return right / torch.bincount(split.labels, minlength=classes)


@torch.no_grad()
def features(model: nn.Module, images: Tensor, batch_size: int = 512) -> Tensor:
    """What enters the final linear layer, (N, H) on the CPU."""
    device = next(model.parameters()).device
    head = final_linear(model, images[:1].to(device))
    seen: list[Tensor] = []
    handle = head.register_forward_pre_hook(lambda _module, args: seen.append(args[0].float().cpu()))
    try:
        logits_of(model, images, batch_size)
    finally:
        handle.remove()
    return torch.cat(seen)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _endless_batches(count: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Indices, every image once an epoch; the incomplete batch at an epoch's end is left out if there is another."""
    size = min(size, count)
    while True:
        yield from torch.randperm(count, generator=generator)[: count // size * size].split(size)
