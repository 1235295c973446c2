"""Parts for Lightning: a callback that matches BatchNorm statistics, and a data module of synthetic images::

from exml_fast.compat.lightning import MatchStatistics, SyntheticImages

trainer = lightning.Trainer(callbacks=[MatchStatistics("teacher", weight=0.01)])
trainer.fit(module, SyntheticImages(result, batch_size=64))
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, random_split

from exml_fast.data import Shards
from exml_fast.engine.statistics import BNStatistics
from exml_fast.inversion import Result
from exml_fast.validation import require, require_count

try:
    from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
except ImportError:
    try:
        from pytorch_lightning import Callback, LightningDataModule, LightningModule, Trainer  # type: ignore[assignment, unused-ignore]
    except ImportError as error:
        raise ImportError("these parts need lightning: pip install 'exml_fast[lightning]'") from error

__all__ = ["MatchStatistics", "SyntheticImages"]


class MatchStatistics(Callback):
    """Adds the distance of BatchNorm inputs to the running statistics to the loss (Yin 2020, Eq. 4).

    ``training_step`` of the module must call the network. Its loss then has the further term ``weight * distance``,
    which is logged as ``name``. Nothing of it stays on the module after ``fit``.

    Args:
        network: name of the network among the module's attributes, such as "teacher"; the module itself when "".
        weight: of the distance.
        first: further factor of the layer that runs first (10 in the published ImageNet settings).
        distance, moment: as in :func:`exml_fast.ops.bn_match`.
        name: under which the distance is logged.

    Raises:
        ValueError: on ``fit``, for a network that is missing or has no BatchNorm, or a step without a loss.
    """

    def __init__(
        self,
        network: str = "",
        *,
        weight: float = 1.0,
        first: float = 1.0,
        distance: str = "l2",
        moment: str = "var",
        name: str = "bn_distance",
    ) -> None:
        super().__init__()
        self.network, self.weight, self.first = network, weight, first
        self.distance, self.moment, self.name = distance, moment, name
        self._stack = ExitStack()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Register the hooks, and let ``training_step`` return the larger loss."""
        network = getattr(pl_module, self.network, None) if self.network else pl_module
        require(isinstance(network, nn.Module), "network", "the name of a network of the module", self.network)
        assert isinstance(network, nn.Module)
        statistics = self._stack.enter_context(BNStatistics(network, self.distance, self.moment))
        step: Callable[..., Any] = pl_module.training_step

        @functools.wraps(step)
        def with_distance(*arguments: Any, **options: Any) -> Any:
            output = step(*arguments, **options)
            distance = statistics.loss(self.first)
            pl_module.log(self.name, distance.detach())
            if isinstance(output, Tensor):
                return output + self.weight * distance
            loss: Any = output.get("loss") if isinstance(output, dict) else None
            require(isinstance(loss, Tensor), "training_step", "a function that returns a loss", output)
            return {**output, "loss": loss + self.weight * distance}

        pl_module.training_step = with_distance  # type: ignore[method-assign, unused-ignore]
        self._stack.callback(lambda: vars(pl_module).pop("training_step", None))

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remove both."""
        self._stack.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Remove both."""
        self._stack.close()


class SyntheticImages(LightningDataModule):
    """A data module of synthetic images and their labels.

    Args:
        images: a Result, :class:`exml_fast.data.Shards`, or another map-style data set of images and labels.
        batch_size: images a batch.
        temperature: of a Result: labels are softmax(logits / τ) instead of class ids.
        validation: share of the images that are kept for validation.
        seed: decides which, and the order of the batches of each epoch.
        workers: processes that load the images.

    Raises:
        ValueError: naming the argument that is out of its range.
    """

    def __init__(
        self,
        images: Result | Shards | Dataset[Any],
        *,
        batch_size: int = 64,
        temperature: float | None = None,
        validation: float = 0.0,
        seed: int = 0,
        workers: int = 0,
    ) -> None:
        super().__init__()
        require_count("batch_size", batch_size)
        require(0 <= validation < 1, "validation", "a share in [0, 1)", validation)
        if isinstance(images, Result):
            data: Dataset[Any] = images.as_dataset(temperature=temperature)
        else:
            require(temperature is None, "temperature", "None for images other than a Result", temperature)
            data = images
        count: int = len(data)  # type: ignore[arg-type]
        held_out = round(validation * count)
        require(count > held_out, "images", "at least one image for training", count)
        generator = torch.Generator().manual_seed(seed)
        self.train, self.held_out = random_split(data, [count - held_out, held_out], generator=generator)
        self.batch_size, self.workers, self._generator = batch_size, workers, generator

    def train_dataloader(self) -> DataLoader[Any]:
        """Shuffled batches of (images, labels)."""
        return self._loader(self.train, shuffle=True, generator=self._generator)

    def val_dataloader(self) -> Any:
        """Batches of the held-out images, in one order; none if there are none."""
        return self._loader(self.held_out) if len(self.held_out) else []

    def _loader(self, data: Dataset[Any], **options: Any) -> DataLoader[Any]:
        return DataLoader(
            data, self.batch_size, num_workers=self.workers, persistent_workers=self.workers > 0, **options
        )
