"""Passes and optimizer steps of the trials in the slots of a packed job."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from trial.data.tokens import IGNORE_INDEX
from trial.distributed.rank_group import RankGroup
from trial.multi_lora.adamw import StepSettings
from trial.multi_lora.engine import MicroBatch
from trial.packed.setup import PackedSetup
from trial.packed.slot import Slot


class HalfSteppedError(RuntimeError):
    """An optimizer step failed half way: adapters and moments in the slots are no longer valid."""


class UnreadLosses(NamedTuple):
    """The losses of one pass, which may still be on the device."""

    slots: list[tuple[Slot, int, int]]
    """Each slot, the number of its steps done, and its place in `losses`."""
    losses: torch.Tensor
    """[slots in the pass]: part of each step's mean loss, in nats."""


class SlotTrainer:
    """Trains slots of one engine, one micro-batch of each at a time.

    Reading a loss makes an accelerator's host wait, so losses are read there only when a trial logs
    or saves.
    """

    def __init__(self, setup: PackedSetup, rank_group: RankGroup) -> None:
        self.setup = setup
        self.rank_group = rank_group
        self._unread: list[UnreadLosses] = []

    def accumulate(self, slots: Sequence[Slot]) -> None:
        """Forward and backward of the next micro-batch of each slot.

        Several ranks wait for each other here, before they add up gradients.
        """
        device = self.setup.device
        for slot in slots:
            slot.begin_step(self.setup.data.train)
        losses = self.setup.engine.accumulate(self._micro_batches(slots))
        if not device.reads_without_sync:
            self.rank_group.all_gather(None)
        places = [slot.index if device.fixed_shapes else n for n, slot in enumerate(slots)]
        of_slots = [
            (slot, slot.run.steps, place) for slot, place in zip(slots, places, strict=True)
        ]
        self._unread.append(UnreadLosses(of_slots, losses))
        if device.reads_without_sync:
            self.read_losses()
        for slot in slots:
            slot.micro_batches += 1

    def _micro_batches(self, slots: Sequence[Slot]) -> list[MicroBatch]:
        batches = {slot.index: slot.next_micro_batch() for slot in slots}
        if not self.setup.device.fixed_shapes:
            return list(batches.values())
        # Where a new shape costs a compilation, empty slots train on rows without a label.
        size, row = len(batches[slots[0].index].rows), self.setup.data.train[0]
        empty = [{**row, "labels": torch.full_like(row["labels"], IGNORE_INDEX)}] * size
        return [
            batches.get(index, MicroBatch(index, empty, [0] * size, 1))
            for index in range(self.setup.slots)
        ]

    def read_losses(self) -> None:
        """Add the losses of all passes since the last time to their slots; waits for the device."""
        unread, self._unread = self._unread, []
        if not unread:
            return
        by_rank = self.rank_group.all_gather([part.losses.tolist() for part in unread])
        for part, *values in zip(unread, *by_rank, strict=True):
            for slot, step, place in part.slots:
                slot.add_loss(step, sum(of_rank[place] for of_rank in values))

    def step(self, slots: Sequence[Slot]) -> torch.Tensor | None:
        """Optimizer step of those slots whose micro-batches are done.

        Returns every slot's gradient norm, [K]; None if no slot's step is due.

        Raises:
            HalfSteppedError: the step failed.
        """
        due = [slot for slot in slots if slot.step_due]
        if not due:
            return None
        settings: list[StepSettings | None] = [None] * self.setup.slots
        for slot in due:
            settings[slot.index] = slot.schedule.step_settings(slot.run.steps)
        try:
            norms = self.setup.engine.step(settings)
        except Exception as error:
            raise HalfSteppedError(str(error)) from error
        for slot in due:
            slot.release_rows()
        return norms

    def restart_step(self, slots: Sequence[Slot]) -> None:
        """Discard what is done of the current optimizer steps, so that they can be repeated."""
        self.setup.engine.zero_grad()
        self.read_losses()
        for slot in slots:
            slot.restart_step()
