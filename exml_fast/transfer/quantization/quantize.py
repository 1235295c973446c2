"""A network of 8 or 4 bits out of a trained one, on images that need not be real."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor, nn

from exml_fast.data import DataSource, ImageSource, InputSpec
from exml_fast.engine.freezing import chosen_device, probe, unpacked
from exml_fast.engine.substitution import copied
from exml_fast.inversion import Result
from exml_fast.profiling import Meter
from exml_fast.progress import Progress, ProgressOption, callback_of, reports_progress
from exml_fast.storage import PathLike
from exml_fast.training import (
    Answers,
    Batch,
    TrainingResult,
    network_input,
    seeded,
    softened_kl,
    train,
    unlabelled_batches,
)
from exml_fast.training.loop import forked
from exml_fast.transfer.pruning.latency import layers_of
from exml_fast.transfer.quantization.config import Quantization
from exml_fast.transfer.quantization.learned import FakeQuantized, fit_ranges, layer_names, with_fake_quantized
from exml_fast.transfer.quantization.result import QuantizeResult
from exml_fast.transfer.quantization.sensitivity import most_sensitive, sensitivities
from exml_fast.transfer.quantization.static import activation_bits, converted, prepared, simulated, torchao
from exml_fast.validation import require

__all__ = ["quantize"]


@reports_progress
def quantize(
    model: Any,
    images: Result | Tensor | DataSource | ImageSource,
    *,
    config: Quantization | None = None,
    spec: Any = None,
    seed: int = 0,
    device: torch.device | str | None = None,
    progress: ProgressOption = None,
    checkpoint_dir: PathLike | None = None,
    **overrides: Any,
) -> QuantizeResult:
    """Compute a network's weights and activations in 8 or 4 bits.

    With 8 bits, torchao exports the network and sets the ranges of the activations from ``images`` (static
    quantisation). Activations have 7 bits where the processor lacks VNNI instructions: the result's
    ``settings["activation_bits"]`` has their number. With 4 bits, the layers round their weights and inputs, and the
    network learns from the float network on the images (Esser 2020; the loss is the divergence of the softened
    outputs). No labels are needed, so the images may be synthetic.

    Args:
        model: a classifier, or an object with one as ``.model`` (an Expert). It is not changed.
        images: a Result, normalised images (N, C, H, W), or a source of images.
        config: :class:`Quantization`'s defaults when None. ``overrides`` are fields of it, as ``bits=4``.
        spec: the input; read from the model or the Result when None.
        seed: decides which images calibrate, and the order of the fine-tuning.
        device: where the network learns with 4 bits; its own when None. 8 bits run on CPUs alone.
        progress: stages "calibrate" and "sensitivity", with 4 bits also "quantize".
        checkpoint_dir: a folder from which the same call continues the fine-tuning after an interruption.

    Raises:
        ImportError: without torchao.
        ValueError: naming the argument; for a network that cannot be exported, with what to change.
        RuntimeError: if a loss is not finite.
    """
    progress = callback_of(progress)
    config = (config or Quantization()).replace(**overrides)
    torchao()
    spec = InputSpec.of(spec if spec is not None else images.spec if isinstance(images, Result) else model)
    model, *_ = unpacked(model)
    given = images if isinstance(images, ImageSource) else network_input(images, spec)[0]
    if config.bits == 8:
        on_cpu = str(device or "cpu").startswith("cpu")
        require(on_cpu, "device", "'cpu' with bits 8, as torchao quantises statically for CPUs alone", str(device))
        device = "cpu"
    device = chosen_device(device, model)
    with seeded(seed, device), Meter(device) as meter:
        original = copied(model).to(device).eval().requires_grad_(False)
        some = _some(given, max(config.calibration, config.sensitivity), spec, seed).to(device)
        probe(original, some[:2], spec)
        run = _Run(original, some, config, spec, device, progress)
        made = run.static() if config.bits == 8 else run.learned(given, seed, checkpoint_dir)
    made.peak_mb = meter.peak_mb
    source = given.describe() if isinstance(given, ImageSource) else {"images": len(given)}
    made.settings = {**config.to_dict(), "source": source, "seed": seed}
    if config.bits == 8:
        made.settings["activation_bits"] = activation_bits()
    return made


class _Run:
    """One call."""

    def __init__(
        self,
        original: nn.Module,
        images: Tensor,
        config: Quantization,
        spec: InputSpec,
        device: torch.device,
        progress: Progress | None,
    ) -> None:
        self.original, self.images, self.config, self.spec = original, images, config, spec
        self.device, self.progress, self.begun = device, progress, time.monotonic()
        self.float_bytes = sum(tensor.nbytes for tensor in original.state_dict().values())

    def static(self) -> QuantizeResult:
        """8 bits."""
        graph = self._observed([])
        found, left = dict[str, float](), list[str]()
        network, layers = simulated(graph)
        if self.config.sensitivity:
            found = self._sensitivities(network, layers)
            left = most_sensitive(found, self.config.float_layers)
            graph = self._observed(left) if left else graph
        widths = {name: 8 for name in layers if name not in left}
        return self._result(TrainingResult(converted(graph), {}, {}, 0.0), widths, left, found)

    def learned(self, given: Tensor | ImageSource, seed: int, checkpoint_dir: PathLike | None) -> QuantizeResult:
        """4 bits."""
        config, training = self.config, self.config.training
        network = copied(self.original).requires_grad_(True)
        names, edges = layer_names(network), self._edges()
        if not names:
            raise ValueError("model has no 2d convolution or linear layer of PyTorch that can be quantised")
        widths: dict[str, int] = {name: config.edges if name in edges else 4 for name in names}
        found, left = dict[str, float](), list[str]()
        if config.sensitivity:
            found = self._sensitivities(*self._rounded(copied(network), widths))
            left = most_sensitive(found, config.float_layers)
            widths = {name: bits for name, bits in widths.items() if name not in left}
        network, layers = self._rounded(network, widths)
        if not config.learn:
            return self._result(TrainingResult(network.eval(), {}, {}, 0.0), widths, left, found)
        for (layer,) in layers.values():
            layer.learn_ranges(config.ranges == "learned")
        answers, generator = Answers(self.original, self.spec, training), torch.Generator().manual_seed(seed)
        if isinstance(given, Tensor):
            answers.remember(given)
        batches = unlabelled_batches(given, training, self.spec, generator, self.device)

        def loss(rounded: nn.Module, batch: Batch) -> dict[str, Tensor]:
            if config.batch_norm == "kept":
                for module in rounded.modules():
                    if isinstance(module, nn.modules.batchnorm._BatchNorm):
                        module.eval()
            wanted = answers.of(batch)
            try:
                logits = rounded(batch.images)
            except RuntimeError as error:  # torch refuses a range that is not finite
                raise RuntimeError(f"quantize: the loss is not finite; lower lr ({training.lr})") from error
            agreement = (logits.argmax(1) == wanted.argmax(1)).to(logits.dtype).mean()
            return {"loss": softened_kl(wanted, logits, config.temperature), "agreement": agreement}

        identity = [config.to_dict(), self.spec.to_dict(), *self.original.state_dict().values()]
        identity.append(given if isinstance(given, Tensor) else given.describe())
        taught = train(
            network, batches, loss, training, identity=identity, seed=seed, stage="quantize", progress=self.progress,
            checkpoint_dir=checkpoint_dir,
        )  # fmt: skip
        return self._result(taught, widths, left, found)

    def _observed(self, float_layers: list[str]) -> torch.fx.GraphModule:
        """A prepared graph that has seen the calibration images."""
        graph = prepared(self.original, self.spec, float_layers)
        parts = self.images[: self.config.calibration].split(self.config.training.batch_size)
        with torch.no_grad():
            for k, part in enumerate(parts):
                graph(part)
                self._tell("calibrate", k + 1, len(parts))
        return graph

    def _rounded(self, network: nn.Module, widths: dict[str, int]) -> tuple[nn.Module, dict[str, list[FakeQuantized]]]:
        """The network with rounded layers, in place, and the layers by name."""
        with_fake_quantized(network, widths).to(self.device)
        fit_ranges(network, self.images[: min(self.config.calibration, self.config.training.batch_size)])
        found = {name: module for name, module in network.named_modules() if isinstance(module, FakeQuantized)}
        return network, {name: [found[name]] for name in widths}

    def _sensitivities(self, network: nn.Module, layers: Any) -> dict[str, float]:
        def tell(done: int, total: int) -> None:
            self._tell("sensitivity", done, total)

        few = self.images[: self.config.sensitivity]
        return sensitivities(network, layers, few, self.config.training.batch_size, tell)

    def _edges(self) -> set[str]:
        """The layers that run first and last."""
        layers = layers_of(self.original, self.images[:1])
        ends = {id(layer.module) for layer in (*layers[:1], *layers[-1:])}
        return {name for name, module in self.original.named_modules() if id(module) in ends}

    def _tell(self, stage: str, step: int, total: int) -> None:
        if self.progress is not None:
            with forked(self.device):
                self.progress(stage, step, total, {})

    def _result(
        self, taught: TrainingResult, widths: dict[str, int], left: list[str], found: dict[str, float]
    ) -> QuantizeResult:
        learned = sum(taught.seconds.values())
        seconds = {"calibrate": time.monotonic() - self.begun - learned, **taught.seconds}
        return QuantizeResult(
            taught.model, taught.history, seconds, 0.0, self.config.bits, self.spec, widths, left, found,
            self.float_bytes,
        )  # fmt: skip


def _some(images: Tensor | ImageSource, count: int, spec: InputSpec, seed: int) -> Tensor:
    """At most ``count`` of the images, by the seed."""
    generator = torch.Generator().manual_seed(seed)
    if isinstance(images, ImageSource):
        return images.draw(count, spec, generator)
    return images[torch.randperm(len(images), generator=generator)[:count]]
