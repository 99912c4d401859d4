"""How many slots a packed job gets: as many as timed passes show to gain throughput."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable

import torch

from trial.data.collate import Batch
from trial.devices.device import Device
from trial.distributed.rank_group import RankGroup
from trial.multi_lora.adapter_init import InitialAdapter
from trial.multi_lora.engine import Engine, MicroBatch
from trial.store import failure_kinds

CANDIDATES = (1, 2, 4, 8, 16)
"""Numbers of slots that are timed, in this order, up to the number of trials."""
MIN_GAIN = 1.10
"""Factor in rows per second that more slots must gain over fewer."""
PATIENCE = 2
"""The measurement ends after so many candidates in a row that gain too little."""
TIMED_PASSES = 3
"""Passes of each candidate after one to warm up; the fastest counts."""
ENOUGH_SECONDS = 1.0
"""After so many seconds no further pass is timed: long passes vary little."""


def measure_slot_count(
    engine: Engine,
    device: Device,
    initial: InitialAdapter,
    dropout: float,
    rows: list[Batch],
    rank_group: RankGroup | None = None,
) -> int:
    """The best number of slots, by the time of a few passes; the engine is left empty.

    Of several ranks the slowest counts.

    Args:
        engine: With as many slots as may be taken.
        device: Where it runs.
        initial: The adapter to put into every slot.
        dropout: LoRA dropout of every slot.
        rows: One micro-batch, the same for every slot.
        rank_group: The ranks that measure together.
    """
    slots = range(engine.bank.slots)
    for slot in slots:
        engine.load(slot, initial, dropout)

    def slowest(count: int) -> float | None:
        seconds = (rank_group or RankGroup()).all_gather(_seconds(engine, device, rows, count))
        return None if None in seconds else float(max(seconds))

    best = best_slot_count(slowest, len(slots))
    for slot in slots:
        engine.clear(slot)
    return best


def best_slot_count(seconds: Callable[[int], float | None], most: int) -> int:
    """The number of slots beyond which more of them gain too little.

    One candidate that gains too little may be another process's doing; two in a row end the search.

    Args:
        seconds: Time of a pass of so many slots; None if it did not fit into memory.
        most: The largest number.
    """
    best, best_rate, failures = 1, 0.0, 0
    for slots in [*(number for number in CANDIDATES if number < most), most]:
        took = seconds(slots)
        if took is None:
            break
        if slots / took >= best_rate * MIN_GAIN:
            best, best_rate, failures = slots, slots / took, 0
        elif (failures := failures + 1) == PATIENCE:
            break
    return best


def _seconds(engine: Engine, device: Device, rows: list[Batch], slots: int) -> float | None:
    """Time of the fastest of a few passes of `slots` slots; the first one only warms up."""
    batches = [MicroBatch(slot, rows, list(range(len(rows))), 1) for slot in range(slots)]
    times: list[float] = []
    try:
        while len(times) <= TIMED_PASSES and sum(times[1:]) < ENOUGH_SECONDS:
            start = time.perf_counter()
            engine.accumulate(batches)
            device.synchronise()
            times.append(time.perf_counter() - start)
    except Exception as error:
        if failure_kinds.classify(error) != "out_of_memory":
            raise
        free_memory()
        return None
    return min(times[1:])


def free_memory() -> None:
    """Return memory that is no longer used to the device, after a failure or a smaller engine."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
