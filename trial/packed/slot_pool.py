"""The slots of a packed job that has opened: which are free, and which trial the others train."""

from __future__ import annotations

from trial.packed.setup import PackedSetup
from trial.packed.slot import Slot


class SlotPool:
    """Free and busy slots over one setup."""

    def __init__(self, setup: PackedSetup) -> None:
        self.setup = setup
        self._free = list(range(setup.slots))
        self._busy: dict[int, Slot] = {}

    def __contains__(self, slot: Slot) -> bool:
        """Whether the trial is still in its slot."""
        return self._busy.get(slot.index) is slot

    def busy(self) -> list[Slot]:
        """The trials in training, by the number of their slots."""
        return [self._busy[index] for index in sorted(self._busy)]

    def next_free(self) -> int | None:
        """The free slot with the lowest number."""
        return min(self._free, default=None)

    def add(self, slot: Slot) -> None:
        """A trial was loaded into its slot."""
        self._free.remove(slot.index)
        self._busy[slot.index] = slot

    def remove(self, slot: Slot) -> None:
        """Empty a slot for the next trial."""
        del self._busy[slot.index]
        self.setup.engine.clear(slot.index)
        self._free.append(slot.index)

    def keep_alive(self) -> None:
        """Report a sign of life of every trial: waiting for another's evaluation is no hang."""
        for slot in self._busy.values():
            slot.trial.control.alive(slot.trial.folder)
