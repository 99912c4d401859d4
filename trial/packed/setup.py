"""What all trials of a packed job stand on: device, base model, data, and as many slots as pay."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from trial.config.packing_rules import padded_rank
from trial.config.trial_config import TrialConfig
from trial.data.collate import Batch, Collator, evaluation_batches
from trial.data.prepare import PreparedData
from trial.devices.device import Device
from trial.distributed.rank_group import RankGroup
from trial.multi_lora.adapter_init import AdapterInitializer, NotPackableError
from trial.multi_lora.engine import Engine
from trial.packed.schedule import TrialSchedule, make_schedule
from trial.packed.slot_count import CANDIDATES, measure, release
from trial.store import failure_kinds
from trial.store.folders import TrialFolder
from trial.training.arguments import build_arguments, tracker_labels, training_keywords
from trial.training.process_cache import ProcessCache

logger = logging.getLogger(__name__)
KEPT_EVAL_TOKENS = 1 << 22
"""Eval batches are kept in memory up to this size."""


@dataclass(slots=True)
class PackedSetup:
    """One base model with slots over it, and the data that every trial of the job trains on."""

    process_cache: ProcessCache
    device: Device
    data: PreparedData
    initializer: AdapterInitializer
    engine: Engine
    rank_group: RankGroup = field(default_factory=RankGroup)
    _evals: dict[int, list[Batch]] = field(default_factory=dict)

    @property
    def slots(self) -> int:
        """How many trials train at once."""
        return self.engine.bank.slots

    def plan(self, config: TrialConfig, folder: TrialFolder) -> TrialSchedule:
        """What a trial does when."""
        args = _arguments(config, self.device, folder)
        return make_schedule(args, config, len(self.data.train), self.rank_group.size)

    def eval_batches(self, size: int) -> Iterable[Batch]:
        """The held-out rows, or this rank's part, in batches of `size`; the same for all trials."""
        dataset, collate = self.data.eval, Collator(trim=not self.device.fixed_shapes)
        fresh = evaluation_batches(
            dataset, size, collate, rank=self.rank_group.rank, ranks=self.rank_group.size
        )
        if len(dataset) * dataset.max_length > KEPT_EVAL_TOKENS:
            return fresh
        if size not in self._evals:
            self._evals[size] = list(fresh)
        return self._evals[size]

    def close(self) -> None:
        """Give the base model back as it was."""
        self.process_cache.keep_base(self.engine.close())


def open_setup(
    process_cache: ProcessCache,
    config: TrialConfig,
    folder: TrialFolder,
    slots: int,
    limit: int,
    rank_group: RankGroup | None = None,
) -> PackedSetup:
    """Prepare for trials that share a job with `config`; 0 slots: as many as pay, up to `limit`.

    Raises:
        NotPackableError: base model or adapter are none that slots can train.
    """
    device, rank_group = process_cache.start(config), rank_group or RankGroup()
    # Of several ranks, this opens the process group of torch.distributed too.
    args = _arguments(config, device, folder)
    device.reset_peak()
    base = process_cache.take_base(config, device)
    data = process_cache.prepared(config, base.config.model_type)
    initializer = AdapterInitializer(base)
    drawn = initializer.draw(config)
    build = partial(
        Engine, device=device, args=args, drawn=drawn, rank=padded_rank(config),
        columns=data.train.longest(), ranks=rank_group.size,
    )  # fmt: skip
    try:
        engine = build_fitting(build, base, slots or max(1, min(limit, CANDIDATES[-1])), rank_group)
    except NotPackableError:
        process_cache.keep_base(base)
        raise
    if not slots:
        rows = [data.train[i % len(data.train)] for i in range(args.per_device_train_batch_size)]
        fitting = measure(engine, device, drawn, config.lora.lora_dropout, rows, rank_group)
        if fitting < engine.bank.slots:
            base = engine.close()
            # The new slots take the place of the old ones.
            del engine
            release()
            engine = build(base, slots=fitting)
    return PackedSetup(process_cache, device, data, initializer, engine, rank_group)


def build_fitting(
    build: Callable[..., Engine], base: Any, slots: int, rank_group: RankGroup | None = None
) -> Engine:
    """An engine of `slots` slots, or of a half, a quarter, ... of them, as every rank's memory has.

    A rank without room for one slot fails.
    """
    while True:
        try:
            return (rank_group or RankGroup()).run_on_all(partial(build, base, slots=slots))
        except Exception as error:
            if slots == 1 or failure_kinds.classify(error) != "out_of_memory":
                raise
            logger.warning(
                "no room for %d slots: %s", slots, failure_kinds.cause_of(error, None).message
            )
        slots //= 2
        release()


def _arguments(config: TrialConfig, device: Device, folder: TrialFolder) -> Any:
    return build_arguments(
        training_keywords(config, device, folder), device, tracker_labels(config)
    )
