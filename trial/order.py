"""In which order rows are trained on: a function of seed and epoch alone, so it can be resumed.

The trainers' own samplers differ between devices and with DeepSpeed (which leaves the last batch
short), and the one for `group_by_length` cannot be resumed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler

GROUPED_BATCHES = 50


class TrainingOrder(Sampler[int]):
    """Row numbers of one epoch after the other, in full batches.

    The last batch is filled up with rows drawn anew. With `lengths`, rows of like length come
    together: those of fifty batches are sorted among themselves.
    """

    def __init__(
        self, rows: int, batch_size: int, seed: int, lengths: Sequence[int] | None = None
    ) -> None:
        self.rows = rows
        self.batch_size = batch_size
        self.seed = seed
        self.lengths = lengths
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch the next iteration is of."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-self.rows // self.batch_size) * self.batch_size

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        order: list[int] = []
        while len(order) < len(self):
            order += torch.randperm(self.rows, generator=generator).tolist()
        return iter(self._grouped(order[: len(self)]))

    def _grouped(self, order: list[int]) -> list[int]:
        if self.lengths is None:
            return order
        lengths, size = self.lengths, GROUPED_BATCHES * self.batch_size
        groups = (order[start : start + size] for start in range(0, len(order), size))
        return [row for group in groups for row in sorted(group, key=lambda row: -lengths[row])]
