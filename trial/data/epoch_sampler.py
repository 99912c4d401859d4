"""In which order rows are trained on: a function of seed and epoch alone, so it can be resumed.

The trainers' own samplers differ between devices and with DeepSpeed, which leaves the last batch
short; the one for `group_by_length` cannot be resumed; and after a resume trainers forget the last
optimizer step of an epoch when it has fewer batches than the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler

GROUPED_STEPS = 50


class EpochSampler(Sampler[int]):
    """Row numbers of one epoch after the other, in full optimizer steps of `step_rows` rows.

    The last step is filled up with rows drawn anew, or left out (`drop_last`). With `lengths`, rows
    of like length come together: those of fifty steps are sorted among themselves.
    """

    def __init__(
        self,
        rows: int,
        step_rows: int,
        seed: int,
        *,
        lengths: Sequence[int] | None = None,
        drop_last: bool = False,
    ) -> None:
        steps = rows // step_rows if drop_last else -(-rows // step_rows)
        self.rows = rows
        self.step_rows = step_rows
        self.drawn = max(1, steps) * step_rows
        self.seed = seed
        self.lengths = lengths
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch the next iteration is of."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.drawn

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        order: list[int] = []
        while len(order) < self.drawn:
            order += torch.randperm(self.rows, generator=generator).tolist()
        return iter(self._grouped(order[: self.drawn]))

    def _grouped(self, order: list[int]) -> list[int]:
        if self.lengths is None:
            return order
        lengths, size = self.lengths, GROUPED_STEPS * self.step_rows
        groups = (order[start : start + size] for start in range(0, len(order), size))
        return [row for group in groups for row in sorted(group, key=lambda row: -lengths[row])]
