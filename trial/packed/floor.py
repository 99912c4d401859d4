"""What all trials of a packed job stand on: device, base model, data, and as many slots as pay."""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from trial import failure
from trial.arguments import build_arguments, labels, training_keywords
from trial.batches import Batch, Collator, evaluation_batches
from trial.config import TrialConfig
from trial.data import Prepared
from trial.devices import Device
from trial.folder import TrialFolder
from trial.gang import Gang
from trial.packed.engine import Engine
from trial.packed.plan import Plan, make_plan
from trial.packed.skeleton import Drawn, NotPackableError, Skeleton
from trial.sharing import padded_rank
from trial.workbench import Workbench

logger = logging.getLogger(__name__)

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
KEPT_EVAL_TOKENS = 1 << 22
"""Eval batches are kept in memory up to this size."""


@dataclass(slots=True)
class Floor:
    """One base model with slots over it, and the data that every trial of the job trains on."""

    bench: Workbench
    device: Device
    data: Prepared
    skeleton: Skeleton
    engine: Engine
    gang: Gang = field(default_factory=Gang)
    _evals: dict[int, list[Batch]] = field(default_factory=dict)

    @property
    def slots(self) -> int:
        """How many trials train at once."""
        return self.engine.bank.slots

    def plan(self, config: TrialConfig, folder: TrialFolder) -> Plan:
        """What a trial does when."""
        args = _arguments(config, self.device, folder)
        return make_plan(args, config, len(self.data.train), self.gang.size)

    def eval_batches(self, size: int) -> Iterable[Batch]:
        """The held-out rows, or this rank's part, in batches of `size`; the same for all trials."""
        dataset, collate = self.data.eval, Collator(trim=not self.device.fixed_shapes)
        fresh = evaluation_batches(
            dataset, size, collate, rank=self.gang.rank, ranks=self.gang.size
        )
        if len(dataset) * dataset.max_length > KEPT_EVAL_TOKENS:
            return fresh
        if size not in self._evals:
            self._evals[size] = list(fresh)
        return self._evals[size]

    def close(self) -> None:
        """Give the base model back as it was."""
        self.bench.keep_base(self.engine.close())


def open_floor(
    bench: Workbench,
    config: TrialConfig,
    folder: TrialFolder,
    slots: int,
    limit: int,
    gang: Gang | None = None,
) -> Floor:
    """Prepare for trials that share a job with `config`; 0 slots: as many as pay, up to `limit`.

    Raises:
        NotPackableError: base model or adapter are none that slots can train.
    """
    device, gang = bench.start(config), gang or Gang()
    # Of several ranks, this opens the process group of torch.distributed too.
    args = _arguments(config, device, folder)
    device.reset_peak()
    base = bench.take_base(config, device)
    data = bench.prepared(config, base.config.model_type)
    skeleton = Skeleton(base)
    drawn = skeleton.draw(config)
    build = partial(
        Engine, device=device, args=args, drawn=drawn, rank=padded_rank(config),
        columns=data.train.longest(), ranks=gang.size,
    )  # fmt: skip
    try:
        engine = build_fitting(build, base, slots or max(1, min(limit, CANDIDATES[-1])), gang)
    except NotPackableError:
        bench.keep_base(base)
        raise
    if not slots:
        rows = [data.train[i % len(data.train)] for i in range(args.per_device_train_batch_size)]
        fitting = measure(engine, device, drawn, config.lora.lora_dropout, rows, gang)
        if fitting < engine.bank.slots:
            base = engine.close()
            # The new slots take the place of the old ones.
            del engine
            release()
            engine = build(base, slots=fitting)
    return Floor(bench, device, data, skeleton, engine, gang)


def build_fitting(
    build: Callable[..., Engine], base: Any, slots: int, gang: Gang | None = None
) -> Engine:
    """An engine of `slots` slots, or of a half, a quarter, ... of them, as every rank's memory has.

    A rank without room for one slot fails.
    """
    while True:
        try:
            return (gang or Gang()).together(lambda slots=slots: build(base, slots=slots))  # type: ignore[misc]
        except Exception as error:
            if slots == 1 or failure.classify(error) != "out_of_memory":
                raise
            logger.warning("no room for %d slots: %s", slots, failure.cause_of(error, None).message)
        slots //= 2
        release()


def _arguments(config: TrialConfig, device: Device, folder: TrialFolder) -> Any:
    return build_arguments(training_keywords(config, device, folder), device, labels(config))


def measure(
    engine: Engine,
    device: Device,
    drawn: Drawn,
    drop: float,
    rows: list[Batch],
    gang: Gang | None = None,
) -> int:
    """How many slots pay, by the time of a few batches; the engine is left empty."""
    slots = range(engine.bank.slots)
    for slot in slots:
        engine.load(slot, drawn, drop)

    def slowest(count: int) -> float | None:
        took = (gang or Gang()).exchange(_seconds(engine, device, rows, count))
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
        if failure.classify(error) != "out_of_memory":
            raise
        release()
        return None
    return min(taken[1:])


def release() -> None:
    """Give back what a failed batch still holds."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
