"""What adapted layers need of a batch: which slots its rows belong to, and their dropout."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from trial.model.dropout.dropout_hash import KEEP_ALL, threshold
from trial.model.dropout.lora_dropout import BatchPositions, DropoutMask, dropout_mask
from trial.multi_lora.cuda_graphs import Inputs

ALL_SLOTS = slice(None)
"""Selects every slot of a tensor [K, ...]."""


@dataclass(frozen=True, slots=True)
class BatchView:
    """One batch of `slots` slots, each with equally many rows side by side."""

    slots: int
    """Number of slots in the batch."""
    positions: int
    """Rows times columns of the whole batch."""
    index: torch.Tensor | None
    """The slots in the order of the batch, int64 [slots]; None for all slots of the bank."""
    slot_slice: slice | None
    """The same as a slice; None if they are not adjacent, or if `index` is on an accelerator, where
    reading it would wait for the device."""
    position_keys: torch.Tensor | None = None
    """Dropout keys of rows and columns, int32 [rows, columns, 1]; None if no slot has dropout."""
    thresholds: torch.Tensor | None = None
    """int32 [rows, 1, 1]: elements whose hash is below the threshold of their row are dropped."""
    factors: torch.Tensor | None = None
    """float32 [rows, 1, 1]: kept elements are multiplied with it, 1/(1-p)."""

    def select(self, tensor: torch.Tensor) -> torch.Tensor:
        """The slots of this batch in a tensor [K, ...], as [slots, ...]."""
        if self.index is None:
            return tensor
        if self.slot_slice is not None:
            return tensor[self.slot_slice]
        return tensor.index_select(0, self.index)

    def dropout(self, feature_keys: torch.Tensor) -> DropoutMask | None:
        """The dropout of a layer's input [rows, columns, features]; None if no slot has dropout.

        `feature_keys` is int32 [features].
        """
        if self.position_keys is None or self.thresholds is None or self.factors is None:
            return None
        return dropout_mask(self.position_keys, feature_keys, self.thresholds, self.factors)


def slot_inputs(slots: Sequence[int], bank_slots: int) -> Inputs:
    """`slot_index`, the slots of a batch as int64 [slots] on the CPU; empty for all in order."""
    if list(slots) == list(range(bank_slots)):
        return {}
    return {"slot_index": torch.tensor(list(slots))}


def dropout_inputs(
    slots: Sequence[int],
    row_keys: Sequence[int],
    dropouts: Sequence[float],
    *,
    always: bool = False,
) -> Inputs:
    """The dropout of a batch as CPU tensors; empty if none of its slots has dropout.

    `row_keys` int32 [rows], `thresholds` int32 [rows, 1, 1], `keep_chances` (1 - p) float32
    [rows, 1, 1].

    Args:
        slots: The slots of the batch, in its order.
        row_keys: `dropout_hash.row_key` of each of its rows.
        dropouts: Dropout probability of every slot of the bank.
        always: Return them even if no slot has dropout, where leaving them out would be another
            graph to compile.
    """
    if not always and not any(dropouts[slot] for slot in slots):
        return {}
    chances = [dropouts[slot] for slot in slots for _ in range(len(row_keys) // len(slots))]
    # A row whose slot has no dropout keeps every element, times one.
    limits = [threshold(chance) if chance else KEEP_ALL for chance in chances]
    return {
        "row_keys": torch.tensor(row_keys, dtype=torch.int32),
        "thresholds": torch.tensor(limits, dtype=torch.int32).view(-1, 1, 1),
        "keep_chances": torch.tensor([1.0 - chance for chance in chances]).view(-1, 1, 1),
    }


def make_view(inputs: Inputs, bank_slots: int) -> BatchView:
    """The view of a batch whose `slot_inputs` and `dropout_inputs` are on the device.

    Args:
        inputs: Those, and `input_ids` [rows, columns].
        bank_slots: Number of slots of the bank.
    """
    ids, index = inputs["input_ids"], inputs.get("slot_index")
    slots = bank_slots if index is None else len(index)
    slot_slice = _as_slice(index)
    if "row_keys" not in inputs:
        return BatchView(slots, ids.numel(), index, slot_slice)
    positions = BatchPositions()
    positions.set(inputs["row_keys"], ids.shape[1], ids.device)
    return BatchView(
        slots,
        ids.numel(),
        index,
        slot_slice,
        positions.keys,
        inputs["thresholds"],
        1.0 / inputs["keep_chances"],
    )


def _as_slice(index: torch.Tensor | None) -> slice | None:
    if index is None:
        return ALL_SLOTS
    if index.device.type != "cpu":
        return None
    slots = index.tolist()
    found = slice(slots[0], slots[0] + len(slots))
    return found if slots == list(range(found.start, found.stop)) else None
