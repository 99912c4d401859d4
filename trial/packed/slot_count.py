"""How many slots a packed job gets: the number beyond which timed batches gain too little."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable

import torch

from trial.data.collate import Batch
from trial.devices.device import Device
from trial.distributed.rank_group import RankGroup
from trial.multi_lora.adapter_init import InitialAdapter
from trial.multi_lora.engine import Engine
from trial.store import failure_kinds

CANDIDATES = (1, 2, 4, 8, 16)
"""Numbers of slots that `auto` times, in this order; and the most there is work for."""
GAIN = 1.10
"""More slots must train so many times the tokens per second of fewer."""
PATIENCE = 2
"""So many numbers of slots in a row that gain too little end the measurement."""
TIMED = 3
"""Batches of which the fastest counts."""
LONG = 1.0
"""Seconds of batches that are enough: what takes long varies little."""


def measure(
    engine: Engine,
    device: Device,
    drawn: InitialAdapter,
    drop: float,
    rows: list[Batch],
    rank_group: RankGroup | None = None,
) -> int:
    """How many slots pay, by the time of a few batches; the engine is left empty."""
    slots = range(engine.bank.slots)
    for slot in slots:
        engine.load(slot, drawn, drop)

    def slowest(count: int) -> float | None:
        took = (rank_group or RankGroup()).all_gather(_seconds(engine, device, rows, count))
        return None if None in took else float(max(took))

    found = pays(slowest, len(slots))
    for slot in slots:
        engine.clear(slot)
    return found


def pays(seconds: Callable[[int], float | None], most: int) -> int:
    """The number of slots beyond which more of them gain too little.

    `seconds(k)` times a batch of k slots; None when it did not fit into memory. One number that
    gains too little may be another process's doing: two in a row are the end.
    """
    best, best_rate, failures = 1, 0.0, 0
    for slots in [*(number for number in CANDIDATES if number < most), most]:
        took = seconds(slots)
        if took is None:
            break
        if slots / took >= best_rate * GAIN:
            best, best_rate, failures = slots, slots / took, 0
        elif (failures := failures + 1) == PATIENCE:
            break
    return best


def _seconds(engine: Engine, device: Device, rows: list[Batch], slots: int) -> float | None:
    """The fastest of a few batches of `slots` slots; the first one warms up."""
    shares = [(slot, rows, list(range(len(rows))), 1) for slot in range(slots)]
    taken: list[float] = []
    try:
        while len(taken) <= TIMED and sum(taken[1:]) < LONG:
            began = time.perf_counter()
            engine.accumulate(shares)
            device.synchronise()
            taken.append(time.perf_counter() - began)
    except Exception as error:
        if failure_kinds.classify(error) != "out_of_memory":
            raise
        release()
        return None
    return min(taken[1:])


def release() -> None:
    """Give back what a failed batch still holds."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
