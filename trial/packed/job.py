"""A packed job: trials in slots over one base model, the next trial taking a slot that gets free.

    results = train_packed(folders, slots=8)

Every trial has its own data order, dropout, clipping, schedule, evaluations, checkpoints and end,
and is independent of the others. Several ranks train the same slots, each a part of every trial's
rows: all do the same at the same time, and what fails on one fails on all
(`RankGroup.run_on_all`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial

import torch

from trial.config.trial_config import TrialConfig
from trial.distributed import rank_env
from trial.distributed.rank_group import PeerLost, RankGroup, connect, folder_of_rank
from trial.multi_lora.packable import NotPackableError
from trial.packed.failure_handler import FailureHandler, JobStage, JobState, OpenedJob
from trial.packed.failure_policy import Action, Failure, Phase, decide, kind_of
from trial.packed.lifecycle import TrialLifecycle
from trial.packed.load_trial import load_trial
from trial.packed.setup import PackedSetup, open_setup
from trial.packed.slot import Slot
from trial.packed.slot_count import free_memory
from trial.packed.slot_pool import SlotPool
from trial.packed.slot_trainer import SlotTrainer
from trial.packed.trial_source import ListTrialSource, PackedTrial, TrialSource
from trial.preload import finish_imports
from trial.store import failure_kinds
from trial.store.control import Control, NullControl
from trial.store.folders import TrialFolder
from trial.store.phase_timer import SharedPhaseTimer
from trial.store.records import Result
from trial.training.context import AttemptContext
from trial.training.process_cache import ProcessCache

SetupOpener = Callable[..., PackedSetup]
"""`trial.packed.setup.open_setup`, or something with its parameters."""


class PackedJob:
    """Trains the trials of a source in slots until there are no more."""

    def __init__(
        self,
        source: TrialSource,
        process_cache: ProcessCache,
        slots: int,
        *,
        limit: int = 16,
        rank_group: RankGroup | None = None,
        opener: SetupOpener = open_setup,
    ) -> None:
        """Prepare a job; `run` does everything.

        Args:
            source: Where trials come from.
            process_cache: What stays warm in this process.
            slots: Number of slots; 0 measures how many are best.
            limit: Maximum number of slots in that measurement.
            rank_group: The ranks that train together; those of the environment if None.
            opener: Loads what the trials share.
        """
        self.state = JobState(source, process_cache, rank_group or RankGroup(), slots)
        self.failures = FailureHandler(self.state)
        self.limit = limit
        self.opener = opener
        self._joins = rank_group is None

    def run(self) -> None:
        """Train until the source has no more trials.

        Raises:
            PeerLost: another rank is gone.
            Exception: a failure that no single trial has caused; all trials are evicted by then.
        """
        try:
            with rank_env.rank_variables(deepspeed=False):
                if self._joins:
                    self.state.rank_group = connect()
                while self._fill():
                    if self.state.stage is not JobStage.SHRINKING:
                        self._train_once()
                    if self.state.stage is JobStage.SHRINKING:
                        self._shrink()
                self.state.rank_group.close()
        except Exception as error:
            self.state.process_cache.mark_spent()
            failure = Failure(kind_of(error), Phase.JOB, ranks=self.state.rank_group.size)
            if decide(failure) is Action.RAISE_PEER_LOST:
                raise PeerLost(failure_kinds.cause_of(error, None).message) from error
            raise
        finally:
            if self.state.opened is not None:
                self.state.opened.setup.close()

    # Loading trials

    def _fill(self) -> bool:
        """Load trials into free slots; False when there is nothing left to do."""
        while self.state.stage is not JobStage.SHRINKING and self._has_room():
            trial = self._next_trial()
            if trial is None:
                return bool(self.state.busy())
            self._load(trial)
        return True

    def _has_room(self) -> bool:
        return self.state.opened is None or self.state.opened.pool.next_free() is not None

    def _next_trial(self) -> PackedTrial | None:
        """The next trial: the first rank asks the source, the others get its folder from it."""
        ranks, source = self.state.rank_group, self.state.source
        trial = None if ranks.rank else source.next(wait=not self.state.busy())
        path = ranks.broadcast(str(trial.folder.path) if trial else None, no_timeout=True)
        if path is None or trial is not None:
            return trial
        return PackedTrial(folder_of_rank(TrialFolder(path)), NullControl())

    def _load(self, trial: PackedTrial) -> None:
        """Load a trial into a free slot, and report its start."""
        state = self.state
        if (result := trial.folder.read_result()) is not None:
            state.source.ended(trial, result)
            return
        clock, config = SharedPhaseTimer(), self._read_config(trial)
        if config is None:
            return
        context = AttemptContext(
            trial.folder, config, trial.control, state.process_cache, clock, state.rank_group
        )

        def load() -> tuple[OpenedJob, Slot]:
            opened = self._open(context)
            index = opened.pool.next_free()
            if index is None:
                raise RuntimeError("there is no free slot")
            return opened, load_trial(trial, context, clock, opened.setup, index)

        try:
            with clock.during("load"):
                opened, slot = state.rank_group.run_on_all(load)
        except Exception as error:
            self.failures.trial_failed(trial, context, error, Phase.LOAD)
            return
        opened.pool.add(slot)
        opened.lifecycle.report_start(slot)
        if slot.fresh and slot.schedule.args.eval_on_start:
            self.failures.guarded(slot, partial(opened.lifecycle.evaluate, slot))
        if slot in opened.pool:
            self.failures.guarded(slot, partial(opened.lifecycle.stop_before_first_step, slot))

    def _read_config(self, trial: PackedTrial) -> TrialConfig | None:
        """The trial's configuration; None when it cannot be read, and the trial has failed."""
        read = trial.folder.read_config
        try:
            return self.state.rank_group.run_on_all(lambda: trial.config or read())
        except (OSError, ValueError, failure_kinds.PeerFailed) as error:
            if isinstance(error, PeerLost) or failure_kinds.classify(error) != "error":
                raise
            result = Result(state="failed", cause=failure_kinds.cause_of(error, None))
            trial.folder.write_result(result)
            self.state.source.ended(trial, result)
            return None

    def _open(self, context: AttemptContext) -> OpenedJob:
        """The parts that all trials share, made from the first trial's configuration."""
        state = self.state
        if state.opened is None:
            cache, ranks = state.process_cache, state.rank_group
            opener = partial(
                self.opener, cache, context.config, context.folder, state.slots, self.limit, ranks
            )
            setup = ranks.run_on_all(opener)
            pool, trainer = SlotPool(setup), SlotTrainer(setup, ranks)
            lifecycle = TrialLifecycle(pool, trainer, state.source, ranks)
            opened = OpenedJob(setup, pool, trainer, lifecycle)
            state.open(opened)
            state.source.sized(setup.slots)
            return opened
        return state.opened

    # Training

    def _train_once(self) -> None:
        """One micro-batch of every trial, and what follows where it ends an optimizer step."""
        if self.state.opened is None:
            return
        opened, slots = self.state.opened, self.state.opened.pool.busy()
        start = time.perf_counter()
        try:
            norms = self.state.rank_group.run_on_all(lambda: self._pass_and_step(opened, slots))
        except Exception as error:
            self.failures.pass_failed(opened, slots, error)
            return
        if any(slot.reports_next() for slot in slots):
            # Work that the device has not finished yet counts as training, not as evaluation.
            opened.setup.device.synchronise()
        seconds = (time.perf_counter() - start) / max(1, len(slots))
        for slot in slots:
            first = slot.run.steps == slot.resumed_at
            slot.clock.charge("first_step" if first else "train", seconds)
        for slot in slots:
            if slot in opened.pool and not slot.step_rows:
                self.failures.guarded(slot, partial(opened.lifecycle.end_step, slot, norms))

    def _pass_and_step(self, opened: OpenedJob, slots: list[Slot]) -> torch.Tensor | None:
        """A pass of all slots and the optimizer steps that are due; gradient norms if any was."""
        opened.trainer.accumulate(slots)
        if opened.setup.device.reads_without_sync:
            self._check_losses(slots)
        return opened.trainer.step([slot for slot in slots if slot in opened.pool])

    def _check_losses(self, slots: list[Slot]) -> None:
        """Add the newest losses to those of their steps; one that is not finite ends its trial.

        With several ranks a step's loss is checked at its end, when all ranks' parts are known.
        """
        for slot in slots:
            if self.state.rank_group.size > 1:
                slot.run.add_loss(slot.newest_loss)
            else:
                self.failures.guarded(slot, partial(slot.run.add_loss, slot.newest_loss))

    def _shrink(self) -> None:
        """Evict all trials at checkpoints; they come back to a job of `state.slots` slots."""
        # That number stays, even if memory runs out once more on the way.
        slots, opened = self.state.slots, self.state.opened
        if opened is not None:
            opened.trainer.read_losses()
            for slot in opened.pool.busy():
                slot.restart_step()
            self.failures.evict_all(opened, alone=False, save=True)
            opened.setup.close()
        self.state.close(slots)
        free_memory()


def train_packed(
    folders: Sequence[TrialFolder],
    *,
    slots: int,
    process_cache: ProcessCache | None = None,
    controls: Sequence[Control] | None = None,
    configs: Sequence[TrialConfig] | None = None,
    rank_group: RankGroup | None = None,
    opener: SetupOpener = open_setup,
) -> list[Result | None]:
    """Train trials that may share a job in `slots` slots of this process; 0: as many as are best.

    Of several ranks every one calls this; only the first one's `controls` count.

    Args:
        folders: The trials.
        slots: Number of slots.
        process_cache: What stays warm in this process.
        controls: One for each trial, in the order of `folders`.
        configs: The folders' configurations, where the caller has read them already.
        rank_group: The ranks that train together; those of the environment if None.
        opener: Loads what the trials share.

    Returns:
        Results in the order of `folders`, None for an interrupted trial.

    Raises:
        NotPackableError: one of them can only be trained by a trainer of its own.
        PeerLost: another rank is gone.
    """
    count = len(folders)
    read: Sequence[TrialConfig | None] = configs or [None] * count
    source = ListTrialSource(map(PackedTrial, folders, controls or [NullControl()] * count, read))
    cache = process_cache or ProcessCache(finish_imports)
    PackedJob(source, cache, slots, limit=len(folders), rank_group=rank_group, opener=opener).run()
    if source.evicted_alone:
        raise NotPackableError(f"{source.evicted_alone[0].folder.path} trains alone")
    return [source.results[folder.path] for folder in folders]
