"""How long a network takes on this machine, from a table of its layers at each width (Yin 2020, App. C.1 and C.2)."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import torch
from torch import Tensor, nn

from exml_fast.engine.freezing import device_of
from exml_fast.models import is_depthwise
from exml_fast.storage import PathLike, load_json, save_json

__all__ = ["LatencyTable", "Layer", "layers_of", "multiply_adds"]

# A shape is timed until this much time is spent, at least so often; the fastest third counts.
SECONDS, LEAST = 0.02, 9


@dataclass(frozen=True)
class Layer:
    """A convolution or linear layer, with the sizes of its input and output."""

    module: nn.Module
    size: tuple[int, ...]
    """(H, W) of the input of a convolution; () for a linear layer."""
    out_size: tuple[int, ...]

    @property
    def widths(self) -> tuple[int, int]:
        """Output and input channels."""
        if isinstance(self.module, nn.Linear):
            return self.module.out_features, self.module.in_features
        assert isinstance(self.module, nn.Conv2d)
        return self.module.out_channels, self.module.in_channels


def layers_of(model: nn.Module, example: Tensor) -> list[Layer]:
    """The 2d convolutions and linear layers that run, in the order in which they do."""
    found: list[Layer] = []

    def look(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        sizes = [tuple(x.shape[2:]) if isinstance(module, nn.Conv2d) else () for x in (inputs[0], output)]
        found.append(Layer(module, *sizes))

    handles = [m.register_forward_hook(look) for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    try:
        with torch.no_grad():
            model(example)
    finally:
        for handle in handles:
            handle.remove()
    return found


def multiply_adds(layers: Sequence[Layer], widths: Mapping[nn.Module, tuple[int, int]] | None = None) -> int:
    """Multiplications of one image, where layers have other ``widths`` than now."""
    total = 0
    for layer in layers:
        outputs, inputs = (widths or {}).get(layer.module, layer.widths)
        module = layer.module
        if isinstance(module, nn.Linear):
            total += outputs * inputs
        else:
            assert isinstance(module, nn.Conv2d)
            terms = inputs // _groups(module, outputs) * math.prod(module.kernel_size)
            total += math.prod(layer.out_size) * outputs * terms
    return total


class LatencyTable:
    """Milliseconds of layers, each with the BatchNorm and ReLU that usually follow it, measured when first asked for.

    The latency of a network is the sum over its layers (Eq. 14).

    Args:
        device: where to measure.
        batch_size: images at once; the paper has 1.
        threads: of the CPU; torch's number when None. With one thread, times are CPU time, which leaves out when other
            processes ran, but not that they take caches and clock speed: measure on a quiet machine (:meth:`fill`).
        path: a file that keeps the measurements for later runs on the same machine. Those of a CPU with other
            instructions are not used.
    """

    def __init__(
        self,
        device: torch.device | str = "cpu",
        *,
        batch_size: int = 1,
        threads: int | None = None,
        path: PathLike | None = None,
    ) -> None:
        self.device, self.batch_size = torch.device(device), batch_size
        self.threads = threads or torch.get_num_threads()
        self.path = None if path is None else Path(path)
        self.milliseconds = self._stored()

    def describe(self) -> dict[str, str | int]:
        """What is measured, as JSON values."""
        return {"device": self.device.type, "batch_size": self.batch_size, "threads": self.threads}

    @classmethod
    def of(cls, model: nn.Module, **options: int | PathLike | None) -> LatencyTable:
        """For the device of ``model``."""
        return cls(device_of(model), **options)  # type: ignore[arg-type]

    def latency(self, layers: Sequence[Layer], widths: Mapping[nn.Module, tuple[int, int]] | None = None) -> float:
        """Milliseconds of a batch, where layers have other ``widths`` than now."""
        return sum(self._of(layer, *(widths or {}).get(layer.module, layer.widths)) for layer in layers)

    def fill(self, layers: Sequence[Layer], chunk: int, rounds: int = 3) -> None:
        """Measure each convolution with 0, 1, 2, … chunks of its outputs and of its inputs left out.

        Otherwise a width is measured when it is first asked for, under the load that the machine has then. Call this on
        a quiet machine if several runs shall share the table. A layer has (outputs / ``chunk``) (inputs / ``chunk``)
        shapes. Each is measured ``rounds`` times, between the others; the fastest time counts. The file is written
        after each round.
        """
        shapes: dict[str, tuple[Layer, int, int]] = {}
        for layer in layers:
            if isinstance(layer.module, nn.Conv2d):
                for outputs, inputs in product(*(range(width, 0, -chunk) for width in layer.widths)):
                    if _exists(layer.module, outputs, inputs):
                        shapes[self._key(layer, outputs, inputs)] = (layer, outputs, inputs)
        fastest = dict.fromkeys(shapes, math.inf)
        for _ in range(rounds):
            for key, shape in shapes.items():
                fastest[key] = min(fastest[key], self._measured(*shape))
            self.milliseconds |= fastest
            self.save()

    def save(self) -> None:
        """Write the measurements beside those of other processes; does nothing without a path."""
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            save_json(self.path, self._stored() | self.milliseconds)

    def _stored(self) -> dict[str, float]:
        if self.path is None or not self.path.is_file():
            return {}
        return {str(key): float(value) for key, value in load_json(self.path).items()}

    def _of(self, layer: Layer, outputs: int, inputs: int) -> float:
        key = self._key(layer, outputs, inputs)
        if key not in self.milliseconds:
            self.milliseconds[key] = self._measured(layer, outputs, inputs)
        return self.milliseconds[key]

    def _key(self, layer: Layer, outputs: int, inputs: int) -> str:
        module = layer.module
        if isinstance(module, nn.Linear):
            key = f"linear {outputs} {inputs}"
        else:
            assert isinstance(module, nn.Conv2d)
            rest = [*module.kernel_size, *module.stride, *_padding(module), *module.dilation, module.groups]
            key = f"conv {outputs} {inputs} {' '.join(map(str, (*rest, *layer.size)))}"
        hardware = torch.backends.cpu.get_cpu_capability() if self.device.type == "cpu" else self.device.type
        return f"{hardware} {self.threads} {self.batch_size} {key}"

    def _measured(self, layer: Layer, outputs: int, inputs: int) -> float:
        module = layer.module
        if isinstance(module, nn.Linear):
            network: nn.Module = nn.Linear(inputs, outputs, module.bias is not None)
            images = torch.randn(self.batch_size, inputs)
        else:
            assert isinstance(module, nn.Conv2d)
            groups = _groups(module, outputs)
            convolution = nn.Conv2d(
                inputs, outputs, module.kernel_size, module.stride, module.padding,  # type: ignore[arg-type]
                module.dilation, groups, module.bias is not None,  # type: ignore[arg-type]
            )  # fmt: skip
            network = nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())
            images = torch.randn(self.batch_size, inputs, *layer.size)
        network, images = network.to(self.device).eval(), images.to(self.device)
        before = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        try:
            with torch.no_grad():
                return _fastest(network, images, self.threads)
        finally:
            torch.set_num_threads(before)


def _fastest(network: nn.Module, images: Tensor, threads: int) -> float:
    """Milliseconds of a call: the mean of the fastest third of many."""
    # The CPU time of a thread leaves out when other processes ran. Several threads wait for each other.
    clock = time.thread_time if threads == 1 and not images.is_cuda else time.perf_counter
    times: list[float] = []
    for _ in range(2):
        network(images)
    while len(times) < LEAST or sum(times) < SECONDS:
        if images.is_cuda:
            torch.cuda.synchronize(images.device)
        begun = clock()
        network(images)
        if images.is_cuda:
            torch.cuda.synchronize(images.device)
        times.append(clock() - begun)
    fastest = sorted(times)[: max(1, len(times) // 3)]
    return 1e3 * sum(fastest) / len(fastest)


def _padding(module: nn.Conv2d) -> tuple[str | int, ...]:
    """In pixels, or "same" or "valid"."""
    return (module.padding,) if isinstance(module.padding, str) else tuple(module.padding)


def _groups(module: nn.Conv2d, outputs: int) -> int:
    """Groups of the convolution if it had so many outputs."""
    return outputs if is_depthwise(module) else module.groups


def _exists(module: nn.Conv2d, outputs: int, inputs: int) -> bool:
    """Whether the convolution can have these widths."""
    return outputs == inputs if is_depthwise(module) else outputs % module.groups == inputs % module.groups == 0
