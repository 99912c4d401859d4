"""What the adapted layers know of a batch: whose rows it holds, and what is dropped of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from trial.model.dropout_hash import KEEP_ALL, threshold
from trial.model.lora_dropout import BatchPositions, DropoutMask, dropout_mask
from trial.multi_lora.cuda_graphs import Inputs

ALL_SLOTS = slice(None)


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
    reading it would wait."""
    position_keys: torch.Tensor | None = None
    """Dropout keys of rows and columns, int32 [rows, columns, 1]; None if nobody drops."""
    thresholds: torch.Tensor | None = None
    """Dropout threshold of each row, int32 [rows, 1, 1]."""
    factors: torch.Tensor | None = None
    """What the kept elements of each row are multiplied with, float32 [rows, 1, 1]."""

    def select(self, tensor: torch.Tensor) -> torch.Tensor:
        """This batch's slots of a tensor [K, ...]."""
        if self.index is None:
            return tensor
        if self.slot_slice is not None:
            return tensor[self.slot_slice]
        return tensor.index_select(0, self.index)

    def dropout(self, feature_keys: torch.Tensor) -> DropoutMask | None:
        """The dropout of a layer's input, [rows, columns, features]; None if nobody drops."""
        if self.position_keys is None or self.thresholds is None or self.factors is None:
            return None
        return dropout_mask(self.position_keys, feature_keys, self.thresholds, self.factors)


def slot_inputs(slots: Sequence[int], bank_slots: int) -> Inputs:
    """The host tensors that say which slots a batch holds; nothing for all slots in order."""
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
    """The host tensors that say what is dropped in a batch; nothing if no slot drops.

    Args:
        slots: The slots of the batch, in its order.
        row_keys: `dropout_hash.row_key` of each of its rows.
        dropouts: Dropout probability of every slot of the bank.
        always: Return them even if no slot drops, where leaving them out would be another graph
            to compile.
    """
    if not always and not any(dropouts[slot] for slot in slots):
        return {}
    chances = [dropouts[slot] for slot in slots for _ in range(len(row_keys) // len(slots))]
    # A row whose slot does not drop keeps every number, and is multiplied with one.
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
