"""What an ex-model learns of an image: logits of the previous ex-model and of the expert, combined (Eq. 6 to 8).

A class for each place that targets come from: :class:`LiveTargets`, :class:`BlendedTargets`, :class:`FixedTargets`,
:class:`StoredTargets`, :class:`ExpertTargets`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor, nn

from exml_fast.continual.ex_model.head import Head
from exml_fast.continual.expert import Expert
from exml_fast.data import Augmentation, InputSpec
from exml_fast.validation import Count, Positive, settings

if TYPE_CHECKING:
    from exml_fast.continual.ex_model.memory import Memory

__all__ = [
    "BlendedTargets",
    "ExpertTargets",
    "FixedTargets",
    "LiveTargets",
    "StoredTargets",
    "Targets",
    "Teachers",
    "combined_targets",
    "normalize",
    "outputs",
]

NORMALIZATIONS = ("none", "mean", "standardize")
Normalization = Literal["none", "mean", "standardize"]
Combination = Literal["per_unit", "per_sample"]
# Networks see so many images at once: the buffer may be larger than the memory.
BLOCK_IMAGES = 512


def normalize(logits: Tensor, known: Tensor, how: str = "mean") -> Tensor:
    """Eq. 6 and 7, over the known units: ``logits`` (N, K), ``known`` bool (K,) or (N, K); unknown ones become 0.

    "none" leaves them, "mean" subtracts their mean, "standardize" also divides by their standard deviation
    (biased; rows whose known logits are all equal become 0).
    """
    if how not in NORMALIZATIONS:
        raise ValueError(f"how must be one of {list(NORMALIZATIONS)}, got {how!r}")
    logits = torch.where(known, logits, 0.0)
    if how == "none":
        return logits
    count = known.expand_as(logits).sum(1, keepdim=True).clamp(min=1)
    centred = torch.where(known, logits - logits.sum(1, keepdim=True) / count, 0.0)
    if how == "mean":
        return centred
    deviation = (centred.square().sum(1, keepdim=True) / count).sqrt()
    return centred / deviation.clamp(min=torch.finfo(logits.dtype).eps * 16)


def combined_targets(
    previous: Tensor,
    current: Tensor,
    previous_known: Tensor,
    current_known: Tensor,
    labels: Tensor,
    combine: str = "per_unit",
) -> tuple[Tensor, Tensor]:
    """Eq. 8: target logits and their mask, both (N, K).

    Args:
        previous, current: normalised logits of the previous ex-model and the expert on the ex-model's K units.
        previous_known, current_known: bool (K,) or (N, K), the units that each of them knows.
        labels: (N,) positions of the samples' classes among the K units.
        combine: "per_sample": a sample whose label only one model knows takes that model's target and mask. If
            both know the label (and always with "per_unit"), each unit takes the model that knows it, and the
            mean where both do.
    """
    if combine not in ("per_sample", "per_unit"):
        raise ValueError(f"combine must be 'per_sample' or 'per_unit', got {combine!r}")
    use_previous = previous_known.expand_as(previous)
    use_current = current_known.expand_as(current)
    if combine == "per_sample":
        in_previous, in_current = (known.gather(1, labels[:, None]) for known in (use_previous, use_current))
        use_previous, use_current = use_previous & in_previous, use_current & in_current
    total = torch.where(use_previous, previous, 0.0) + torch.where(use_current, current, 0.0)
    target = torch.where(use_previous & use_current, 0.5 * total, total)
    return target, use_previous | use_current


@torch.no_grad()
def outputs(model: nn.Module, images: Tensor) -> Tensor:
    """Logits (N, K) of a network, a block of images at a time."""
    return torch.cat([model(chunk) for chunk in images.split(BLOCK_IMAGES)])


class Targets:
    """Where targets come from. Defaults for kinds without that field."""

    name: ClassVar[str]
    keeps: ClassVar[bool] = False
    """Whether targets are kept with the images and outlive their expert."""
    normalize: Normalization = "none"
    combine: Combination = "per_unit"
    task_labels: bool = False
    views: int = 1
    mixup: float = 0.0

    def change_with(self, augmentation: Augmentation) -> bool:
        """Whether every step needs targets of its own, because it sees the images changed."""
        return False

    def of_new_images(
        self, memory: Memory, images: Tensor, keys: Tensor, previous: nn.Module
    ) -> tuple[Tensor, Tensor | None]:
        """For kinds that keep targets: what is known of new images before their expert is asked.

        Targets (N · views, K), and the units for which an expert gave a logit, bool of the same shape or None for all
        known ones.
        """
        raise NotImplementedError(f"targets {self.name!r} keep no targets, so none are asked of new images")

    def spoken(self, mask: Tensor) -> Tensor | None:
        """For kinds that keep targets: what to keep of the mask (N · views, K) of the targets."""
        return None


@settings
class LiveTargets(Targets):
    """Both models see the augmented images at each step, as in Alg. 1.

    Attributes:
        normalize: Eq. 6 and 7: "none" (as every published configuration), "mean" or "standardize".
        combine: Eq. 8 "per_unit", by each unit's class (as the published code), or "per_sample", by the label.
        task_labels: the task of every image is known (multi-task, Carta 2022, sec. 5): an image of a class of
            experience i trains the units of experience i only, one head of many. Experiences must share no class.
    """

    name: ClassVar[str] = "live"
    normalize: Normalization = "none"
    combine: Combination = "per_unit"
    task_labels: bool = False

    def change_with(self, augmentation: Augmentation) -> bool:
        """See :class:`Targets`."""
        return augmentation.active


@settings
class BlendedTargets(Targets):
    """As "live", but all models see blends of two images. A blend has no label: ``lambda_ce`` must be 0.

    Attributes:
        normalize: as of :class:`LiveTargets`.
        mixup: a of the shares Beta(a, a) with which each image is blended with another random one (Zhang 2018).
    """

    name: ClassVar[str] = "blended"
    normalize: Normalization = "none"
    mixup: Positive = 1.0

    def change_with(self, augmentation: Augmentation) -> bool:
        """See :class:`Targets`."""
        return True


@settings
class FixedTargets(Targets):
    """Targets of the images as they are, computed once for each expert; the ex-model sees the images augmented.

    The fields are those of :class:`LiveTargets`.
    """

    name: ClassVar[str] = "fixed"
    normalize: Normalization = "none"
    combine: Combination = "per_unit"
    task_labels: bool = False


@settings
class StoredTargets(Targets):
    """As "fixed", and kept with the images: an expert's logits of an image outlive the expert.

    The previous ex-model supplies the targets of earlier classes for new images only.

    Attributes:
        normalize, task_labels: as of :class:`LiveTargets`.
        views: number of variants of each image; a step sees one. The first is the image as it is; the others are
            shifted, turned, stretched and bent a little. They are the same from the seed whenever they are made, and
            each has targets of its own. Use them in place of augmentation, which would show the ex-model images that no
            expert has seen. The views of the whole buffer are in memory while an expert is learned, also where the
            buffer is in a folder.
    """

    name: ClassVar[str] = "stored"
    keeps: ClassVar[bool] = True
    normalize: Normalization = "none"
    views: Count = 1
    task_labels: bool = False

    def of_new_images(
        self, memory: Memory, images: Tensor, keys: Tensor, previous: nn.Module
    ) -> tuple[Tensor, Tensor | None]:
        """See :class:`Targets`: the logits of the previous ex-model."""
        return outputs(previous, memory.views_of(images, keys)), None


@settings
class ExpertTargets(Targets):
    """As "stored", but the previous ex-model supplies no targets.

    Units of experts that did not see an image are left out of its distillation loss. In the cross-entropy all seen
    units count. The fields are those of :class:`StoredTargets`.
    """

    name: ClassVar[str] = "experts"
    keeps: ClassVar[bool] = True
    normalize: Normalization = "none"
    views: Count = 1
    task_labels: bool = False

    def of_new_images(
        self, memory: Memory, images: Tensor, keys: Tensor, previous: nn.Module
    ) -> tuple[Tensor, Tensor | None]:
        """See :class:`Targets`: no expert gave a logit for them yet."""
        assert memory.targets is not None
        none = memory.targets.new_zeros((len(images) * self.views, memory.targets.shape[1]))
        return none, none.bool()

    def spoken(self, mask: Tensor) -> Tensor | None:
        """See :class:`Targets`."""
        return mask


class Teachers:
    """The previous ex-model and the current expert, each asked only about the images that need it.

    Args:
        expert: the current expert; ``answers`` gives its logits (N, C) of its own C classes for its input.
        previous: the ex-model after the expert before, None at the first one.
        head: the ex-model's units.
        learned: how many experts came before.
        spec: the ex-model's input.
        config: how to normalise and combine.
    """

    def __init__(
        self,
        expert: Expert,
        answers: Callable[[Tensor], Tensor],
        previous: nn.Module | None,
        head: Head,
        learned: int,
        spec: InputSpec,
        config: Targets,
    ) -> None:
        self.config, self.previous, self._answers = config, previous, answers
        self.current_known, self.previous_known = head.mask(expert.classes), head.mask(head.known(learned))
        self.seen_mask = self.current_known | self.previous_known
        self.seen = torch.nonzero(self.seen_mask)[:, 0]
        self._input, self._spec = expert.input_spec, spec
        self._heads = head.of_tasks() if config.task_labels else None
        self._to = torch.tensor(head.positions(expert.classes), device=head.device)

    @torch.no_grad()
    def __call__(
        self, images: Tensor, positions: Tensor, stored: Tensor | None = None, spoken: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Eq. 6 to 8 for normalised images whose labels are at ``positions``: targets and mask, (N, K).

        ``stored`` (N, K): earlier targets of the images in place of the previous ex-model's outputs; ``spoken`` (N, K):
        units for which an expert gave a logit there, all known ones if None.
        """
        previous_known = self.previous_known if spoken is None else self.previous_known & spoken
        how = self.config.normalize
        shape = (len(images), len(self.current_known))
        current, previous = images.new_zeros(shape), images.new_zeros(shape)
        rows = self._rows(self.current_known, positions)
        mapped = images.new_zeros((len(rows), shape[1]))
        mapped[:, self._to] = self._answers(self._input.convert(images[rows], self._spec))
        current[rows] = normalize(mapped, self.current_known, how)
        if self.previous is not None:
            rows = self._rows(self.previous_known, positions)
            said = outputs(self.previous, images[rows]) if stored is None else stored[rows]
            known = previous_known if previous_known.dim() == 1 else previous_known[rows]
            previous[rows] = normalize(said, known, how)
        target, mask = combined_targets(
            previous, current, previous_known, self.current_known, positions, self.config.combine
        )
        return (target, mask) if self._heads is None else (target, mask & self._heads[positions])

    def of_all(self, memory: Memory, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Targets and mask (rows, K) of all views of all images, which are not augmented."""
        blocks = torch.arange(len(positions), device=positions.device).split(BLOCK_IMAGES)
        found = [self(memory.rows(rows), positions[rows], *memory.kept_targets(rows)) for rows in blocks]
        target, mask = (torch.cat(tensors) for tensors in zip(*found, strict=True))
        return target, mask

    def _rows(self, known: Tensor, positions: Tensor) -> Tensor:
        """Images that a model with these units is asked about."""
        if self.config.combine == "per_unit":
            return torch.arange(len(positions), device=positions.device)
        return torch.nonzero(known[positions])[:, 0]
