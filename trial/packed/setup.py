"""Resources shared by a packed job: device, base model with slots over it, tokens, eval batches."""

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
from trial.multi_lora.adapter_init import AdapterInitializer
from trial.multi_lora.engine import Engine
from trial.multi_lora.packable import NotPackableError
from trial.packed.schedule import TrialSchedule, make_schedule
from trial.packed.slot_count import CANDIDATES, free_memory, measure_slot_count
from trial.store import failure_kinds
from trial.store.folders import TrialFolder
from trial.training.arguments import build_arguments, tracker_labels, training_keywords
from trial.training.process_cache import ProcessCache

logger = logging.getLogger(__name__)
CACHED_EVAL_TOKENS = 1 << 22
"""Eval sets of at most so many tokens are kept as batches in memory."""


@dataclass(slots=True)
class PackedSetup:
    """Resources shared by a packed job: device, base model, tokens, slots."""

    process_cache: ProcessCache
    device: Device
    data: PreparedData
    initializer: AdapterInitializer
    engine: Engine
    rank_group: RankGroup = field(default_factory=RankGroup)
    _eval_batches: dict[int, list[Batch]] = field(default_factory=dict)

    @property
    def slots(self) -> int:
        """How many trials can train at once."""
        return self.engine.bank.slots

    def schedule(self, config: TrialConfig, folder: TrialFolder) -> TrialSchedule:
        """When a trial logs, evaluates, saves and ends.

        Raises:
            NotPackableError: its learning rate is no function of the step.
        """
        args = _arguments(config, self.device, folder)
        return make_schedule(args, config, len(self.data.train), self.rank_group.size)

    def eval_batches(self, size: int) -> Iterable[Batch]:
        """This rank's part of the eval set in batches of `size` rows; the same for all trials."""
        dataset, collate = self.data.eval, Collator(trim=not self.device.fixed_shapes)
        batches = evaluation_batches(
            dataset, size, collate, rank=self.rank_group.rank, ranks=self.rank_group.size
        )
        if len(dataset) * dataset.max_length > CACHED_EVAL_TOKENS:
            return batches
        if size not in self._eval_batches:
            self._eval_batches[size] = list(batches)
        return self._eval_batches[size]

    def close(self) -> None:
        """Give the base model back to the process's cache as it was."""
        self.process_cache.keep_base(self.engine.close())


def open_setup(
    process_cache: ProcessCache,
    config: TrialConfig,
    folder: TrialFolder,
    slots: int,
    limit: int,
    rank_group: RankGroup | None = None,
    *,
    make_engine: Callable[..., Engine] = Engine,
) -> PackedSetup:
    """Load what a trial, and all that may share a job with it, need.

    Args:
        process_cache: Where the base model and the tokens come from.
        config: The first trial.
        folder: Its folder.
        slots: Number of slots; 0 measures how many are best, up to `limit`.
        limit: Maximum number of slots in that measurement.
        rank_group: The ranks that open the job together.
        make_engine: The engine's class, or a function of its parameters.

    Raises:
        NotPackableError: the base model or the adapter cannot be trained in slots.
    """
    device, rank_group = process_cache.start(config), rank_group or RankGroup()
    # With several ranks, this also opens the process group of torch.distributed.
    args = _arguments(config, device, folder)
    device.reset_peak()
    base = process_cache.take_base(config, device)
    data = process_cache.prepared(config, base)
    initializer = AdapterInitializer(base)
    initial = initializer.create(config)
    build = partial(
        make_engine, device=device, args=args, initial=initial, rank=padded_rank(config),
        columns=data.train.longest(), ranks=rank_group.size,
    )  # fmt: skip
    try:
        engine = build_fitting(build, base, slots or max(1, min(limit, CANDIDATES[-1])), rank_group)
    except NotPackableError:
        process_cache.keep_base(base)
        raise
    if not slots:
        rows = [data.train[i % len(data.train)] for i in range(args.per_device_train_batch_size)]
        dropout = config.lora.lora_dropout
        best = measure_slot_count(engine, device, initial, dropout, rows, rank_group)
        if best < engine.bank.slots:
            base = engine.close()
            # Free the memory of the old slots before the new ones are made.
            del engine
            free_memory()
            engine = build(base, slots=best)
    return PackedSetup(process_cache, device, data, initializer, engine, rank_group)


def build_fitting(
    build: Callable[..., Engine], base: Any, slots: int, rank_group: RankGroup | None = None
) -> Engine:
    """An engine of `slots` slots, or of a half, a quarter, ... as fits every rank's memory.

    Raises:
        Exception: the error of a rank, if it is not for memory or there is none for one slot.
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
        free_memory()


def _arguments(config: TrialConfig, device: Device, folder: TrialFolder) -> Any:
    return build_arguments(
        training_keywords(config, device, folder), device, tracker_labels(config)
    )
