"""What a packed job does about a failure: a pure function of the error and of where it happened.

Every rank of a job calls it with the same facts, so that all do the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from trial.distributed.rank_group import PeerLost, TrialTakenOver, is_peer_loss
from trial.multi_lora.packable import NotPackableError
from trial.store import failure_kinds
from trial.store.disk_full import DiskFullError


class ErrorKind(Enum):
    """What an error means for a packed job."""

    OUT_OF_MEMORY = "out of memory"
    NOT_PACKABLE = "not packable"
    """The trial can only be trained by a trainer of its own."""
    TAKEN_OVER = "taken over"
    """Another process trains the trial now."""
    DISK_FULL = "disk full"
    PEER_LOST = "peer lost"
    """Another rank of the job is gone."""
    CONNECTION = "connection"
    """An error with the text of a lost connection; with several ranks, one of them is gone."""
    ENDED_ELSEWHERE = "ended elsewhere"
    """Another rank reports an error of a trial that has left its slot on this rank already."""
    OTHER = "other"


class Phase(Enum):
    """What the job was doing."""

    LOAD = "load"
    """Loading a trial into a slot."""
    TRIAL = "trial"
    """Anything else for one trial: logging, evaluation, checkpoint, its end."""
    PASS = "pass"
    """Forward and backward of all trials, which can be repeated."""
    STEP = "step"
    """Optimizer step of all trials: their slots hold half-updated values now."""
    JOB = "job"
    """Anything else."""


class Action(Enum):
    """What the job does."""

    IGNORE = "ignore"
    RAISE = "raise"
    """Raise the error, which ends the job."""
    RAISE_PEER_LOST = "raise PeerLost"
    """End the job with `PeerLost`: the trials go on from their checkpoints in another job."""
    FAIL_TRIAL = "fail trial"
    """The trial ends with the result "failed"."""
    ABANDON_TRIAL = "abandon trial"
    """The trial leaves without a result."""
    TRAIN_ALONE = "train alone"
    """The trial leaves for a job of its own."""
    DROP_GRAPHS = "drop graphs"
    """Free captured CUDA graphs and repeat the optimizer step."""
    HALVE_SLOTS = "halve slots"
    """Checkpoint all trials and go on in half as many slots."""
    HALVE_SLOTS_WITHOUT_TRIAL = "halve slots without trial"
    """The same, while the trial that failed goes on from its last checkpoint."""
    HALVE_SLOTS_WITHOUT_SAVING = "halve slots without saving"
    """The same, while all trials go on from their last checkpoints."""
    SPLIT_UP = "split up"
    """Checkpoint all trials, let each go on in a job of its own, so that the one to blame fails
    there alone, and raise the error."""
    SPLIT_UP_WITHOUT_SAVING = "split up without saving"
    """The same, while all go on from their last checkpoints."""


@dataclass(frozen=True, slots=True)
class Failure:
    """The facts that `decide` goes by."""

    kind: ErrorKind
    phase: Phase
    slots: int = 0
    """Slots of the job; 0 before it has opened."""
    in_use: int = 0
    """Trials in the pass or step that failed."""
    ranks: int = 1
    fixed_shapes: bool = False
    """Whether empty slots take part in a pass as well."""
    graphs: bool = False
    """Whether there may be captured CUDA graphs to free."""


def decide(failure: Failure) -> Action:
    """The action that a failure calls for."""
    kind, ranks = failure.kind, failure.ranks
    if kind is ErrorKind.PEER_LOST or (kind is ErrorKind.CONNECTION and ranks > 1):
        return Action.RAISE_PEER_LOST
    if failure.phase is Phase.JOB:
        return Action.RAISE
    if failure.phase in (Phase.LOAD, Phase.TRIAL):
        return _decide_for_trial(failure)
    return _decide_for_all(failure)


def _decide_for_trial(failure: Failure) -> Action:
    if failure.kind is ErrorKind.ENDED_ELSEWHERE:
        return Action.IGNORE
    if failure.kind is ErrorKind.NOT_PACKABLE and failure.phase is Phase.LOAD:
        return Action.TRAIN_ALONE
    if failure.kind is ErrorKind.OUT_OF_MEMORY and failure.slots > 1:
        return Action.HALVE_SLOTS_WITHOUT_TRIAL
    return _end_of_trial(failure.kind)


def _decide_for_all(failure: Failure) -> Action:
    repeatable = failure.phase is Phase.PASS
    if failure.kind is ErrorKind.OUT_OF_MEMORY:
        if repeatable and failure.graphs:
            return Action.DROP_GRAPHS
        if failure.slots > 1:
            return Action.HALVE_SLOTS if repeatable else Action.HALVE_SLOTS_WITHOUT_SAVING
    if failure.in_use == 1:
        return _end_of_trial(failure.kind)
    return Action.SPLIT_UP if repeatable else Action.SPLIT_UP_WITHOUT_SAVING


def _end_of_trial(kind: ErrorKind) -> Action:
    if kind in (ErrorKind.TAKEN_OVER, ErrorKind.DISK_FULL):
        return Action.ABANDON_TRIAL
    return Action.FAIL_TRIAL


def too_many(failure: Failure) -> int:
    """How many trials at once were too many for the memory."""
    if failure.fixed_shapes or failure.phase in (Phase.LOAD, Phase.TRIAL):
        return failure.slots
    return failure.in_use


def halved(trials: int) -> int:
    """The number of slots to go on with after so many were too many."""
    return max(1, trials // 2)


def kind_of(error: BaseException) -> ErrorKind:
    """What an error means by itself, whether it occurred on this rank or on another.

    `error` may be the `PeerFailed` that another rank's has become here.
    """
    name = class_name(error)
    if isinstance(error, PeerLost) and not isinstance(error, TrialTakenOver):
        return ErrorKind.PEER_LOST
    if isinstance(error, NotPackableError) or name == NotPackableError.__name__:
        return ErrorKind.NOT_PACKABLE
    if failure_kinds.classify(error) == "out_of_memory":
        return ErrorKind.OUT_OF_MEMORY
    if isinstance(error, TrialTakenOver) or name == TrialTakenOver.__name__:
        return ErrorKind.TAKEN_OVER
    if isinstance(error, DiskFullError) or name == DiskFullError.__name__:
        return ErrorKind.DISK_FULL
    return ErrorKind.CONNECTION if is_peer_loss(error) else ErrorKind.OTHER


def class_name(error: BaseException) -> str:
    """Name of an error's class; of a `PeerFailed`, that of the other rank's error."""
    return error.name if isinstance(error, failure_kinds.PeerFailed) else type(error).__name__
