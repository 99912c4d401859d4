"""Collates rows of tokens into batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from trial.data.tokens import IGNORE_INDEX, TokenDataset

Batch = dict[str, torch.Tensor]
"""`input_ids`, `attention_mask` and `labels`, int64 [rows, columns]; [columns] for a single row."""


@dataclass(frozen=True, slots=True)
class Collator:
    """Stacks rows of equal length; `trim` removes the columns that are padding in all rows.

    Padding has neither attention nor label, so a trimmed batch has the same loss. On a device that
    compiles each shape anew, `trim` is false.
    """

    trim: bool

    def __call__(self, rows: Sequence[Batch]) -> Batch:
        """One batch of tensors [rows, columns]."""
        batch = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
        return _trimmed(batch) if self.trim else batch


def with_full_attention(batch: Batch) -> Batch:
    """The batch with an attention mask of ones.

    Rows are padded on the right, so under causal attention no token attends to padding, and padding
    has no label: the loss is the same, and transformers builds no mask (3 ms a step on a CPU).
    """
    return {**batch, "attention_mask": torch.ones_like(batch["attention_mask"])}


def evaluation_batches(
    dataset: TokenDataset, batch_size: int, collate: Collator, *, rank: int = 0, ranks: int = 1
) -> Iterator[Batch]:
    """Yield this rank's batches; every row is in one batch of one rank.

    Where batches are trimmed, rows of similar length share one. Where shapes are fixed or there are
    several ranks, batches are filled up with rows without labels, so that all have `batch_size`
    rows and every rank gets equally many batches.
    """
    stride = batch_size * ranks
    is_filled = ranks > 1 or not collate.trim
    order = longest_first(dataset) if collate.trim else range(len(dataset))
    for start in range(0, len(dataset), stride):
        first = start + rank * batch_size
        rows = [dataset[i] for i in order[first : first + batch_size]]
        if is_filled:
            rows += [_without_labels(dataset[0])] * (batch_size - len(rows))
        yield collate(rows)


def longest_first(dataset: TokenDataset) -> Sequence[int]:
    """Row numbers by decreasing length, so that running out of memory happens at once."""
    lengths = dataset.row_lengths()
    return sorted(range(len(lengths)), key=lambda row: -lengths[row])


def _without_labels(row: Batch) -> Batch:
    return {**row, "labels": torch.full_like(row["labels"], IGNORE_INDEX)}


def _trimmed(batch: Batch) -> Batch:
    used = batch["attention_mask"].any(dim=0).nonzero()
    if not len(used):
        return batch
    first, last = int(used[0]), int(used[-1]) + 1
    return {name: tensor[:, first:last].contiguous() for name, tensor in batch.items()}
