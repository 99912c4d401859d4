"""Carries out what `failure_policy.decide` decides about a failure of a packed job."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from functools import partial
from pathlib import Path
from typing import NamedTuple

from trial.distributed.rank_group import RankGroup
from trial.packed.failure_policy import (
    Action,
    ErrorKind,
    Failure,
    Phase,
    class_name,
    decide,
    halved,
    kind_of,
    too_many,
)
from trial.packed.lifecycle import TrialLifecycle
from trial.packed.setup import PackedSetup
from trial.packed.slot import Slot
from trial.packed.slot_count import free_memory
from trial.packed.slot_pool import SlotPool
from trial.packed.slot_trainer import HalfSteppedError, SlotTrainer
from trial.packed.trial_source import PackedTrial, TrialSource
from trial.store import failure_kinds
from trial.store.disk_full import DiskFullError, is_full, refuse_if_full
from trial.store.folders import TrialFolder
from trial.training.context import AttemptContext, commit_result
from trial.training.process_cache import ProcessCache

logger = logging.getLogger(__name__)


class OpenedJob(NamedTuple):
    """The parts of a job that are made from its first trial's configuration."""

    setup: PackedSetup
    pool: SlotPool
    trainer: SlotTrainer
    lifecycle: TrialLifecycle


class JobStage(Enum):
    """What a packed job does next."""

    UNOPENED = "unopened"
    """Load what the trials share, once there is a trial to say what that is."""
    TRAINING = "training"
    """Load trials into free slots, and train."""
    SHRINKING = "shrinking"
    """Evict all trials: memory has run out, and the job goes on in fewer slots."""


@dataclass(slots=True)
class JobState:
    """The state of a packed job, which its loop and its failure handler share."""

    source: TrialSource
    process_cache: ProcessCache
    rank_group: RankGroup
    slots: int
    """Slots to open with; 0: as many as are best."""
    stage: JobStage = JobStage.UNOPENED
    opened: OpenedJob | None = None
    """None exactly while `UNOPENED`."""

    def open(self, opened: OpenedJob) -> None:
        """What the trials share has been loaded."""
        self.stage, self.opened = JobStage.TRAINING, opened

    def shrink(self, slots: int) -> None:
        """Go on in so many slots, once all trials are evicted."""
        self.stage, self.slots = JobStage.SHRINKING, slots

    def close(self, slots: int) -> None:
        """What the trials share has been released; the job opens again with so many slots."""
        self.stage, self.opened, self.slots = JobStage.UNOPENED, None, slots

    def busy(self) -> list[Slot]:
        """The trials in training."""
        return [] if self.opened is None else self.opened.pool.busy()


class FailureHandler:
    """Takes the action that a failure calls for."""

    def __init__(self, state: JobState) -> None:
        self.state = state

    def guarded(self, slot: Slot, act: Callable[[], None]) -> bool:
        """Call `act` on all ranks, for one trial; an error is that trial's failure alone.

        Returns whether it succeeded. Raises as `trial_failed` does.
        """
        try:
            self.state.rank_group.run_on_all(act)
        except Exception as error:
            self.trial_failed(slot.trial, slot.context, error, Phase.TRIAL, slot)
            return False
        return True

    def trial_failed(
        self,
        trial: PackedTrial,
        context: AttemptContext,
        error: Exception,
        phase: Phase,
        slot: Slot | None = None,
    ) -> None:
        """Handle an error of one trial; `slot` is where it was, if it was loaded.

        Raises:
            Exception: the error itself, where another rank is lost.
        """
        opened = self.state.opened
        loaded = opened is not None and slot is not None and slot in opened.pool
        kind = kind_by_disk(error, trial.folder.path)
        if slot is not None and not loaded and isinstance(error, failure_kinds.PeerFailed):
            kind = ErrorKind.ENDED_ELSEWHERE
        slots = 0 if opened is None else opened.setup.slots
        failure = Failure(kind, phase, slots, ranks=self.state.rank_group.size)
        action = decide(failure)
        if action in (Action.RAISE, Action.RAISE_PEER_LOST):
            raise error
        if action is Action.IGNORE:
            return
        if opened is not None and slot is not None and loaded:
            opened.pool.remove(slot)
        if action is Action.TRAIN_ALONE:
            self.state.source.evicted(trial, alone=True)
        elif action is Action.HALVE_SLOTS_WITHOUT_TRIAL:
            self._plan_to_shrink(failure, error)
            self.state.source.evicted(trial, alone=False)
        else:
            _end_trial(trial, context, error, action, self.state.source)

    def pass_failed(self, opened: OpenedJob, slots: list[Slot], error: Exception) -> None:
        """Handle an error in a pass or optimizer step, which all trials take together.

        Raises:
            Exception: the error itself, where the job cannot go on.
        """
        engine, first = opened.setup.engine, slots[0]
        half_stepped = class_name(error) == HalfSteppedError.__name__
        failure = Failure(
            kind_by_disk(error, first.trial.folder.path) if len(slots) == 1 else kind_of(error),
            Phase.STEP if half_stepped else Phase.PASS,
            opened.setup.slots,
            in_use=len(slots),
            ranks=self.state.rank_group.size,
            fixed_shapes=opened.setup.device.fixed_shapes,
            graphs=engine.may_hold_graphs,
        )
        action = decide(failure)
        if action in (Action.RAISE, Action.RAISE_PEER_LOST):
            raise error
        if action in (Action.FAIL_TRIAL, Action.ABANDON_TRIAL):
            opened.pool.remove(first)
            _end_trial(first.trial, first.context, error, action, self.state.source)
            self.state.process_cache.mark_spent()
            return
        if action is Action.DROP_GRAPHS:
            engine.drop_graphs()
        opened.trainer.restart_step(slots)
        if action is Action.DROP_GRAPHS:
            free_memory()
        elif action in (Action.SPLIT_UP, Action.SPLIT_UP_WITHOUT_SAVING):
            self.evict_all(opened, alone=True, save=action is Action.SPLIT_UP)
            raise error
        else:
            self._plan_to_shrink(failure, error)
            if action is Action.HALVE_SLOTS_WITHOUT_SAVING:
                self.evict_all(opened, alone=False, save=False)

    def _plan_to_shrink(self, failure: Failure, error: Exception) -> None:
        """Let the job go on in half as many slots as there were trials at once."""
        message = failure_kinds.cause_of(error, None).message
        logger.warning("%d trials at once do not fit: %s", too_many(failure), message)
        self.state.shrink(halved(too_many(failure)))
        self.state.source.sized(self.state.slots)

    def evict_all(self, opened: OpenedJob, *, alone: bool, save: bool) -> None:
        """Empty all slots; the trials go on later, in jobs of their own if `alone`.

        With `save` their checkpoints are written now, else they resume from the last ones.
        """
        for slot in opened.pool.busy():
            if not save or self.guarded(slot, partial(opened.lifecycle.save_newest, slot)):
                opened.pool.remove(slot)
                self.state.source.evicted(slot.trial, alone=alone)


def _end_trial(
    trial: PackedTrial,
    context: AttemptContext,
    error: Exception,
    action: Action,
    source: TrialSource,
) -> None:
    """End a trial with the result "failed", or without one as `ABANDON_TRIAL` says."""
    if action is Action.ABANDON_TRIAL:
        source.abandoned(trial, _as_disk_full(error, trial.folder))
        return
    with open(trial.folder.log, "a", encoding="utf-8") as log:
        log.write(failure_kinds.traceback_text(error))
    step = context.run.steps if context.run else None
    result = context.result("failed", failure_kinds.cause_of(error, step))
    commit_result(context, result)
    context.report_end(failed=True)
    source.ended(trial, result)


def kind_by_disk(error: Exception, folder: Path) -> ErrorKind:
    """What an error means where a trial writes: one of no known kind may come of a full disk."""
    kind = kind_of(error)
    unknown = kind in (ErrorKind.CONNECTION, ErrorKind.OTHER)
    return ErrorKind.DISK_FULL if unknown and is_full(error, folder) else kind


def _as_disk_full(error: Exception, folder: TrialFolder) -> Exception:
    """The error, or a `DiskFullError` if a full disk has caused it."""
    if kind_of(error) not in (ErrorKind.TAKEN_OVER, ErrorKind.DISK_FULL):
        try:
            refuse_if_full(error, folder.path)
        except DiskFullError as full:
            return full
    return error
