"""Fast data-free synthesis: a generator that a few steps adapt to each batch (Fang 2022).

Fang et al., "Up to 100x Faster Data-free Knowledge Distillation" (AAAI 2022). Images of one classifier have features in
common. A meta-generator learns these, so that a batch needs 2 to 10 steps of a copy of it, where pixels need hundreds.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from exml_fast import ops
from exml_fast._native import reused_memory
from exml_fast.data import InputSpec
from exml_fast.engine.freezing import chosen_device, no_autocast
from exml_fast.engine.memory import require_memory
from exml_fast.engine.statistics import LayerStatistics
from exml_fast.engine.substitution import twin
from exml_fast.generators import networks
from exml_fast.generators.generator import draw_latents
from exml_fast.inversion.networks import Networks, SavedPlans
from exml_fast.inversion.objective import CrossEntropy, Objective, StatisticsDistance, Step, Term
from exml_fast.inversion.set_statistics import SetStatistics
from exml_fast.inversion.settings import Matching, StudentCompetition
from exml_fast.training import Rounded, arranged
from exml_fast.training.precision import resolved
from exml_fast.validation import (
    Count,
    Flat,
    Natural,
    NonNegative,
    Positive,
    flat_dict,
    require,
    require_count,
    settings,
    with_flat_changes,
)

__all__ = ["Disagreement", "Fast", "FastSynthesis"]

Below1 = Annotated[float, Field(ge=0, lt=1)]


@settings
class Fast:
    """Settings of :class:`FastSynthesis`. The defaults are those of Fang 2022 for five steps a batch on CIFAR.

    The published weight of the statistics is 10, for a gradient that the average of batches divides by ten. Here the
    gradient is not divided (:class:`exml_fast.inversion.SetStatistics`), so that ``bn`` is 1.
    """

    steps: Count = 5
    """Steps on each batch of images; published are 2, 5, and 10."""
    batch_size: Count = 256
    """Images that one copy of the generator makes."""
    lr_generator: Positive = 3e-3
    """Of the copy's Adam; published: 5e-3 for 2 steps, 3e-3 for 5, 2e-3 for 10."""
    lr_latents: Positive = 1e-2
    """Of the latents; published: 0.015 for 2 steps, else 0.01."""
    adam_betas: tuple[Below1, Below1] = (0.5, 0.999)
    ce: NonNegative = 0.5
    """Weight of the cross-entropy with the drawn class."""
    matching: Flat[Matching] = Matching(bn=1.0, bn_memory=0.9)
    """The distance to the BatchNorms' statistics, of a batch and an average of the batches before."""
    adversarial: NonNegative = 1.33
    """Weight of the divergence of student and teacher, which is maximised (:class:`Disagreement`)."""
    meta: Literal["fomaml", "reptile"] = "fomaml"
    """How the meta-generator learns from its adapted copy, with Adam. "fomaml": by the sum of the gradients of all
    steps (first-order MAML, the published setting); "reptile": towards the copy's weights."""
    lr_meta: Positive | None = None
    """Of the meta-generator; ``lr_generator`` times ``steps`` when None, as published."""
    warmup: Natural = 20
    """Batches that only train the meta-generator, without student, before the first images."""
    reset_after: Natural | None = None
    """Batches after which the first layer is drawn anew once; 140 published, for runs of 220 batches."""
    architecture: str = "upsampling"
    """Of the generator (:data:`exml_fast.generators.networks.NETWORKS`)."""
    width: Count = 64
    """Channels of the generator's last block. The time of a step falls by half to two thirds with half the width."""
    latent_size: Count = networks.LATENT_SIZE
    class_code: NonNegative = 0.0
    """Size c of a code of the drawn class in the latents: they begin as (noise + c · code) / √(1 + c²), with a fixed
    random code of each class. The meta-generator can then learn what the classes look like. 0 is the paper's: a copy of
    the generator learns the classes of its latents anew in each batch."""
    shift: Natural = 4
    """Largest random shift of each image in pixels, over black, before the networks see it; not of images kept."""
    flip: bool = True
    """Flip each image left to right with probability 1/2, likewise."""

    def check(self) -> None:
        """The generator needs a term to learn from; ValueError."""
        learns = self.ce > 0 or self.matching.bn > 0 or self.adversarial > 0
        require(learns, "ce", "positive where bn and adversarial are 0", self.ce)

    def replace(self, **changes: Any) -> Fast:
        """A copy with some settings changed; those of groups are named directly. ValueError for an unknown name."""
        return with_flat_changes(self, changes)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values of all settings in one flat table."""
        return flat_dict(self)


@dataclass(frozen=True)
class Disagreement:
    """−KL(teacher ‖ student) where both name the same class, and 0 elsewhere (Fang 2022, adversarial loss)."""

    weight: float
    name: str = "adversarial"
    couples: bool = False

    def __call__(self, step: Step) -> Tensor:
        """(N,). ValueError without a student."""
        if step.student_logits is None:
            raise ValueError("the adversarial term needs a student")
        log_p, log_q = step.logits.log_softmax(1), step.student_logits.log_softmax(1)
        divergence = (log_p.exp() * (log_p - log_q)).sum(1)
        return -divergence * (log_p.argmax(1) == log_q.argmax(1))


class FastSynthesis:
    """Makes images of a classifier's classes with a generator that learns how to adapt (Fang 2022, Alg. 1).

    For each batch, a copy of the meta-generator and the latents take ``steps`` steps of Adam together. The images of
    the step with the lowest loss are kept. The meta-generator then moves, so that the next copy needs fewer steps.

    Args:
        teacher: a classifier that returns logits (N, K).
        spec: its input.
        settings: how; the published ones when None.
        units: ``units[j]`` is the class id of logit j; 0 to K − 1 when None.
        classes: ids of the classes of which images are made, in equal numbers; all when None.
        device: where to run; the teacher's device when None.
        precision: of all networks, "auto", "float32" or "bfloat16".
        statistics, layers: as :class:`exml_fast.inversion.Synthesizer`.
        seed: of the meta-generator's first weights.

    Raises:
        ValueError: if the teacher cannot be frozen, has no BatchNorm to match (unless ``bn_optional``), or lacks one
            of ``classes``; if the generator cannot make images of this size; if a batch has no room in memory.
    """

    def __init__(
        self,
        teacher: nn.Module,
        spec: InputSpec,
        settings: Fast | None = None,
        *,
        units: Sequence[int] | None = None,
        classes: Sequence[int] | None = None,
        device: torch.device | str | None = None,
        precision: str = "auto",
        statistics: str | Tensor = "running",
        layers: Sequence[str] = (),
        seed: int = 0,
    ) -> None:
        self.settings = settings = settings or Fast()
        self.spec, self.device = spec, chosen_device(device, teacher)
        self.networks = Networks(
            teacher, spec, settings.matching, StudentCompetition(compete=settings.adversarial),
            batch_size=settings.batch_size, device=self.device, precision=precision, engine=True,
            statistics=statistics, layers=layers,
        )  # fmt: skip
        require_memory(self.networks.model, spec, settings.batch_size, self.device)
        outputs = self.networks.num_classes
        self.units = tuple(range(outputs)) if units is None else tuple(int(unit) for unit in units)
        self.classes = self.units if classes is None else tuple(int(i) for i in classes)
        require(len(set(self.units)) == outputs == len(self.units), "units", f"{outputs} distinct class ids", units)
        known = len(self.classes) > 0 and set(self.classes) <= set(self.units)
        require(known, "classes", f"at least one of the teacher's {outputs} classes", classes)
        precision = resolved(precision, self.device)
        self.generator = arranged(self._new_generator(seed).to(self.device).train(), precision)
        """The meta-generator."""
        self._codes = draw_latents(outputs, settings.latent_size, torch.Generator().manual_seed(seed), self.device)
        self._adapted = copy.deepcopy(self.generator)
        self._network = Rounded(twin(self._adapted), precision)
        rate = settings.lr_meta or settings.lr_generator * settings.steps
        self._optimiser = torch.optim.Adam(self.generator.parameters(), rate, settings.adam_betas)
        self._statistics = SetStatistics(settings.matching.bn_memory)
        self._plans: dict[str, SavedPlans] | None = None  # how the networks of the first call compute
        self.batches = 0
        """Batches that the meta-generator has learned from."""
        self.recognised = 0.0
        """Share of the last call's images that the teacher assigns to their class, augmented as they were."""

    def make(self, count: int, student: nn.Module | None, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """``count`` new images, balanced over the classes; the first call begins with the warm-up.

        Args:
            count: how many.
            student: the classifier with which the images compete; a copy is used. Not needed if ``adversarial`` is 0.
            generator: source of all random draws, on the CPU.

        Returns:
            Images (count, C, H, W), normalised, float32; and their class ids (count,) int64; on the CPU.

        Raises:
            ValueError: for a student that is missing or does not fit.
            RuntimeError: if a term is not finite; it names term and batch.
        """
        require_count("count", count)
        with torch.inference_mode(False), torch.enable_grad(), no_autocast(self.device.type), reused_memory():
            self._compete_with(student)
            while self.batches < self.settings.warmup:
                self._batch(self._labels(self.settings.batch_size, generator), generator, compete=False)
            labels = self._labels(count, generator)
            sizes = math.ceil(count / self.settings.batch_size)
            parts = [self._batch(part, generator, compete=True) for part in labels.tensor_split(sizes)]
            self.recognised = float(torch.cat([right for _, right in parts]).double().mean())
            return torch.cat([images for images, _ in parts]), labels

    def state_dict(self) -> dict[str, Any]:
        """Everything that later batches depend on, but the random generator; copies."""
        return {
            "generator": copy.deepcopy(self.generator.state_dict()), "codes": self._codes.cpu(),
            "optimiser": copy.deepcopy(self._optimiser.state_dict()),
            "statistics": self._statistics.state_dict(), "batches": self.batches, "plans": self._plans,
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave."""
        self.generator.load_state_dict(state["generator"])
        self._codes = state["codes"].to(self.device)
        self._optimiser.load_state_dict(copy.deepcopy(state["optimiser"]))
        self._statistics.load_state_dict(state["statistics"])
        self.batches = state["batches"]
        self._plans = state["plans"]

    # One batch.

    def _batch(self, labels: Tensor, generator: torch.Generator, compete: bool) -> tuple[Tensor, Tensor]:
        """Images of the classes ``labels`` (N,), and which of them the teacher recognises; on the CPU.

        The meta-generator learns from the batch.
        """
        settings, device = self.settings, self.device
        targets = self._positions(labels).to(device)
        latents = self._latents(targets, generator).requires_grad_()
        self._adapted.load_state_dict(self.generator.state_dict())
        weights = list(self._adapted.parameters())
        groups: list[dict[str, Any]] = [{"params": weights}, {"params": [latents], "lr": settings.lr_latents}]
        adam = torch.optim.Adam(groups, settings.lr_generator, settings.adam_betas)
        objective = self._objective(compete)
        statistics = self._statistics.to(device)
        sums = [torch.zeros_like(weight) for weight in weights]
        best, right, lowest, layers = latents, targets, math.inf, list[LayerStatistics]()
        for number in range(settings.steps):
            images = self._images(self._network(latents))
            inputs = self._augmented(images, generator)
            logits, layers = self.networks.teacher(inputs)
            student = self.networks.student(inputs)[0] if compete and self.networks.student is not None else None
            mixed = statistics.mixed(layers, len(labels)) if layers else layers
            total, values = objective(Step(images, inputs, logits, targets, mixed, student))
            loss = self._require_finite(objective, values, number)
            if loss < lowest:
                best, right, lowest = images.detach(), logits.argmax(1) == targets, loss
            gradients = torch.autograd.grad(total / len(labels), [*weights, latents])
            for tensor, gradient in zip([*weights, latents], gradients, strict=True):
                tensor.grad = gradient
            torch._foreach_add_(sums, list(gradients[:-1]))
            adam.step()
        if layers:
            statistics.add(layers, len(labels))
            self._statistics = statistics
        self._learn(weights, sums)
        return best.float().cpu(), right.cpu()

    def _learn(self, adapted: list[nn.Parameter], gradients: list[Tensor]) -> None:
        """One step of the meta-generator."""
        for weight, after, gradient in zip(self.generator.parameters(), adapted, gradients, strict=True):
            weight.grad = gradient if self.settings.meta == "fomaml" else weight.detach() - after.detach()
        self._optimiser.step()
        self.batches += 1
        if self.batches == self.settings.reset_after:
            first = next(layer for layer in self.generator.modules() if isinstance(layer, nn.Linear))
            draws = torch.Generator().manual_seed(self.batches)
            with torch.no_grad():
                first.weight.copy_(0.02 * torch.randn(first.weight.shape, generator=draws))
                first.bias.zero_()

    def _objective(self, compete: bool) -> Objective:
        """The terms with a weight; without a student in the warm-up."""
        matching = self.settings.matching
        bn = matching.bn if self.networks.matches_statistics else 0.0
        distance = matching.bn_distance, matching.bn_moment, matching.bn_first, matching.bn_average
        terms: list[Term] = [CrossEntropy(self.settings.ce), StatisticsDistance(bn, *distance)]
        terms += [Disagreement(self.settings.adversarial)] if compete else []
        return Objective([term for term in terms if term.weight > 0])

    def _images(self, output: Tensor) -> Tensor:
        """Network input of the generator's output in [-1, 1]; (tanh x + 1) / 2 is the published sigmoid, of 2x."""
        return self.spec.normalize((output + 1) / 2)

    def _augmented(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """``images`` (N, C, H, W), each with a shift over black and a flip of its own."""
        count, most, device = len(images), self.settings.shift, images.device
        shift = torch.randint(-most, most + 1, (count, 2), generator=generator).to(device)
        flip = (torch.rand(count, generator=generator) < 0.5 * self.settings.flip).to(device)
        low = self.spec.bounds(device)[0]
        return ops.jitter_flip(images - low, shift, flip, border="zero") + low

    def _latents(self, targets: Tensor, generator: torch.Generator) -> Tensor:
        """Initial latents (N, latent_size) of images of the logits ``targets`` (N,)."""
        size, share = self.settings.latent_size, self.settings.class_code
        noise = draw_latents(len(targets), size, generator, self.device)
        if share == 0:
            return noise
        return (noise + share * self._codes[targets]) / math.sqrt(1 + share**2)

    # Around a batch.

    def _new_generator(self, seed: int) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return networks.create(
                self.settings.architecture, latent_size=self.settings.latent_size, width=self.settings.width,
                channels=self.spec.channels, size=list(self.spec.size), helper_bn=False,
            )  # fmt: skip

    def _compete_with(self, student: nn.Module | None) -> None:
        if self.settings.adversarial > 0 and not isinstance(student, nn.Module):
            raise ValueError(
                f"student must be a torch.nn.Module, with which the images compete (adversarial="
                f"{self.settings.adversarial}), got {type(student).__name__}"
            )
        self.networks.compete_with(student)
        if self._plans is not None:
            self.networks.use_plans(self._plans, student)
        self._plans = self.networks.plans()

    def _labels(self, count: int, generator: torch.Generator) -> Tensor:
        """Class ids (count,), as many of each class as of the others, up to one."""
        turns = math.ceil(count / len(self.classes))
        orders = [torch.randperm(len(self.classes), generator=generator) for _ in range(turns)]
        return torch.tensor(self.classes)[torch.cat(orders)[:count]]

    def _positions(self, labels: Tensor) -> Tensor:
        place = {unit: position for position, unit in enumerate(self.units)}
        return torch.tensor([place[label] for label in labels.tolist()])

    def _require_finite(self, objective: Objective, values: Tensor, step: int) -> float:
        """The loss; RuntimeError naming the first term that is not finite."""
        found = dict(zip(objective.names, values.tolist(), strict=True))
        for name, value in found.items():
            if not math.isfinite(value):
                raise RuntimeError(
                    f"{name} became {value} at step {step} of batch {self.batches}; a smaller lr_generator than "
                    f"{self.settings.lr_generator} may help, and the networks' weights should be finite"
                )
        return found["loss"]
