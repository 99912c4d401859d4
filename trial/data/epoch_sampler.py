"""The order of training rows, a function of seed and epoch alone, so that it can be resumed.

The trainers' own samplers differ between devices and under DeepSpeed, which leaves the last batch
short; the one for `group_by_length` cannot be resumed; and after a resume trainers skip the last
optimizer step of an epoch when it has fewer batches than the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler

GROUPED_STEPS = 50
"""Optimizer steps whose rows are sorted by length together, under `group_by_length`."""


class EpochSampler(Sampler[int]):
    """Yields the row numbers of one epoch, in whole optimizer steps."""

    def __init__(
        self,
        rows: int,
        step_rows: int,
        seed: int,
        *,
        lengths: Sequence[int] | None = None,
        drop_last: bool = False,
    ) -> None:
        """Construct the sampler.

        Args:
            rows: number of training rows.
            step_rows: rows of an optimizer step, of all ranks together.
            seed: seed of the order.
            lengths: tokens of each row; with them, `GROUPED_STEPS` steps are sorted by length.
            drop_last: whether to leave out the last, incomplete step instead of filling it up from
                a new permutation.
        """
        steps = rows // step_rows if drop_last else -(-rows // step_rows)
        self.rows = rows
        self.step_rows = step_rows
        self.epoch_rows = max(1, steps) * step_rows
        self.seed = seed
        self.lengths = lengths
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.epoch_rows

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        order: list[int] = []
        while len(order) < self.epoch_rows:
            order += torch.randperm(self.rows, generator=generator).tolist()
        return iter(self._grouped(order[: self.epoch_rows]))

    def _grouped(self, order: list[int]) -> list[int]:
        if self.lengths is None:
            return order
        lengths, size = self.lengths, GROUPED_STEPS * self.step_rows
        groups = (order[start : start + size] for start in range(0, len(order), size))
        return [row for group in groups for row in sorted(group, key=lambda row: -lengths[row])]
