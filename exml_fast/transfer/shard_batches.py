"""Batches of images that lie in shards on disk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from exml_fast.data import InputSpec, Shards
from exml_fast.ranks import Ranks
from exml_fast.training import Batch, Training
from exml_fast.training.batches import PreparedBatches
from exml_fast.transfer.pool import places

__all__ = ["ShardBatches"]

# Images that are reported at the end, in place of all.
SHOWN_IMAGES = 256
# Shards whose images are mixed, and are in memory together: at least so many, and so many batches of images.
BLOCK_SHARDS, BLOCK_BATCHES = 8, 4


class ShardBatches(PreparedBatches):
    """Every image once an epoch; the incomplete batch at an epoch's end is left out.

    Args:
        config, spec, device, generator: as :class:`exml_fast.training.PreparedBatches`.
        shards: the images.
        units: class id of each logit.
        seed: decides the order.
        ranks: processes that train one student, each on shards of its own and its share of each batch.

    Raises:
        ValueError: for another input specification, or classes without a logit.
    """

    def __init__(
        self,
        config: Training,
        spec: InputSpec,
        device: torch.device,
        generator: torch.Generator,
        shards: Shards,
        units: Sequence[int],
        seed: int,
        ranks: Ranks | None = None,
    ) -> None:
        super().__init__(config, spec, device, generator, ranks)
        if shards.spec != spec:
            raise ValueError(f"images: {shards.folder} holds {shards.spec}, the teacher takes {spec}")
        if missing := sorted(set(shards.classes) - set(units)):
            raise ValueError(f"images: classes {missing[:8]} of {shards.folder} are not among the teacher's")
        self.shards, self.place = shards, places(units)
        if len(shards.indices) < self.ranks.count:
            raise ValueError(f"images: {shards.folder} has {len(shards.indices)} shards for {self.ranks.count} ranks")
        self._size = max(1, min(config.batch_size, len(shards)) // self.ranks.count)
        per_shard = max(1, len(shards) // len(shards.indices))
        block = max(BLOCK_SHARDS, -(-BLOCK_BATCHES * self._size // per_shard))
        self._stream = shards.stream(block=block, seed=seed, rank=self.ranks.rank, ranks=self.ranks.count)
        # A batch may reach from one block into the next.
        shards.keep = max(shards.keep, 2 * block)
        self._epoch, self._at, self._length = 0, 0, 0
        self._order: Tensor | None = None
        self.seconds = 0.0
        self.record: list[dict[str, float]] = []

    def block(self, step: int, limit: int) -> Iterator[Batch]:
        """See :class:`exml_fast.training.Batches`."""
        for _ in range(limit):
            images, labels = self.shards.rows(self._next())
            yield self.prepared(Batch(images.to(self.device), self.place[labels].to(self.device)))

    def kept(self) -> tuple[Tensor, Tensor]:
        """The first images (N, C, H, W) and their class ids (N,)."""
        return self.shards.rows(torch.arange(min(SHOWN_IMAGES, len(self.shards))))

    def identity(self) -> tuple[list[Tensor], Any]:
        """Tensors and JSON values that decide the images."""
        return [self.place], ["shards", self.shards.digest, self.shards.indices.tolist()]

    def state_dict(self) -> dict[str, Any]:
        """See :class:`exml_fast.training.Batches`."""
        return {"epoch": self._epoch, "at": self._at, "generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See :class:`exml_fast.training.Batches`."""
        self._epoch, self._at, self._order = state["epoch"], state["at"], None
        self.generator.set_state(state["generator"].cpu())

    def _next(self) -> Tensor:
        """Positions of the images of the next batch."""
        order = self._begin() if self._order is None else self._order
        if self._at + self._size > self._length:
            self._epoch, self._at = self._epoch + 1, 0
            order = self._begin()
        self._at += self._size
        return order[self._at - self._size : self._at]

    def _begin(self) -> Tensor:
        """The order of the epoch."""
        self._stream.set_epoch(self._epoch)
        self._order = self._stream.order(self.ranks.rank, self.ranks.count)
        # All ranks end an epoch together, with the rank that has the fewest images.
        self._length = max(self._size, min(self._stream.images_of(self.ranks.count)))
        return self._order
