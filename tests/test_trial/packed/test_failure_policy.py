"""The failure policy of a packed job as a truth table."""

from __future__ import annotations

import errno
from itertools import product

import pytest

from trial.distributed.rank_group import PeerLost, TrialTakenOver
from trial.multi_lora.packable import NotPackableError
from trial.packed.failure_handler import kind_by_disk
from trial.packed.failure_policy import (
    Action,
    ErrorKind,
    Failure,
    Phase,
    decide,
    halved,
    kind_of,
    too_many,
)
from trial.store.disk_full import DiskFullError
from trial.store.failure_kinds import Diverged, PeerFailed

MEMORY, OTHER = ErrorKind.OUT_OF_MEMORY, ErrorKind.OTHER
LOAD, TRIAL, PASS, STEP, JOB = Phase.LOAD, Phase.TRIAL, Phase.PASS, Phase.STEP, Phase.JOB
BY_RANKS = {ErrorKind.PEER_LOST, ErrorKind.CONNECTION}
"""Kinds with tests of their own: what they call for depends on the number of ranks."""

# fmt: off
# Kind, phase, slots, in use, expected.
DECISIONS = [
    # One trial's own failure.
    (OTHER, LOAD, 0, 0, Action.FAIL_TRIAL),
    (OTHER, LOAD, 4, 0, Action.FAIL_TRIAL),
    (OTHER, TRIAL, 4, 0, Action.FAIL_TRIAL),
    (ErrorKind.NOT_PACKABLE, LOAD, 0, 0, Action.TRAIN_ALONE),
    (ErrorKind.NOT_PACKABLE, LOAD, 4, 0, Action.TRAIN_ALONE),
    (ErrorKind.NOT_PACKABLE, TRIAL, 4, 0, Action.FAIL_TRIAL),
    (ErrorKind.TAKEN_OVER, LOAD, 4, 0, Action.ABANDON_TRIAL),
    (ErrorKind.TAKEN_OVER, TRIAL, 4, 0, Action.ABANDON_TRIAL),
    (ErrorKind.DISK_FULL, LOAD, 4, 0, Action.ABANDON_TRIAL),
    (ErrorKind.DISK_FULL, TRIAL, 1, 0, Action.ABANDON_TRIAL),
    (ErrorKind.ENDED_ELSEWHERE, LOAD, 4, 0, Action.IGNORE),
    (ErrorKind.ENDED_ELSEWHERE, TRIAL, 4, 0, Action.IGNORE),
    # Out of memory while something is done for one trial.
    (MEMORY, LOAD, 0, 0, Action.FAIL_TRIAL),
    (MEMORY, LOAD, 1, 0, Action.FAIL_TRIAL),
    (MEMORY, LOAD, 2, 0, Action.HALVE_SLOTS_WITHOUT_TRIAL),
    (MEMORY, TRIAL, 1, 0, Action.FAIL_TRIAL),
    (MEMORY, TRIAL, 8, 0, Action.HALVE_SLOTS_WITHOUT_TRIAL),
    # A pass of several trials, which can be repeated, and an optimizer step, which cannot.
    (MEMORY, PASS, 4, 4, Action.HALVE_SLOTS),
    (MEMORY, PASS, 4, 1, Action.HALVE_SLOTS),
    (MEMORY, PASS, 1, 1, Action.FAIL_TRIAL),
    (MEMORY, STEP, 4, 4, Action.HALVE_SLOTS_WITHOUT_SAVING),
    (MEMORY, STEP, 4, 1, Action.HALVE_SLOTS_WITHOUT_SAVING),
    (MEMORY, STEP, 1, 1, Action.FAIL_TRIAL),
    (OTHER, PASS, 4, 4, Action.SPLIT_UP),
    (OTHER, PASS, 4, 1, Action.FAIL_TRIAL),
    (OTHER, STEP, 4, 2, Action.SPLIT_UP_WITHOUT_SAVING),
    (OTHER, STEP, 4, 1, Action.FAIL_TRIAL),
    (ErrorKind.DISK_FULL, PASS, 4, 4, Action.SPLIT_UP),
    (ErrorKind.DISK_FULL, PASS, 4, 1, Action.ABANDON_TRIAL),
    (ErrorKind.DISK_FULL, STEP, 4, 4, Action.SPLIT_UP_WITHOUT_SAVING),
    (ErrorKind.DISK_FULL, STEP, 4, 1, Action.ABANDON_TRIAL),
    (ErrorKind.TAKEN_OVER, PASS, 4, 4, Action.SPLIT_UP),
    (ErrorKind.TAKEN_OVER, PASS, 4, 1, Action.ABANDON_TRIAL),
    (ErrorKind.TAKEN_OVER, STEP, 4, 4, Action.SPLIT_UP_WITHOUT_SAVING),
    (ErrorKind.TAKEN_OVER, STEP, 4, 1, Action.ABANDON_TRIAL),
    (ErrorKind.NOT_PACKABLE, PASS, 4, 4, Action.SPLIT_UP),
    (ErrorKind.NOT_PACKABLE, PASS, 4, 1, Action.FAIL_TRIAL),
    (ErrorKind.NOT_PACKABLE, STEP, 4, 4, Action.SPLIT_UP_WITHOUT_SAVING),
    (ErrorKind.NOT_PACKABLE, STEP, 4, 1, Action.FAIL_TRIAL),
    (ErrorKind.ENDED_ELSEWHERE, PASS, 4, 4, Action.SPLIT_UP),
    (ErrorKind.ENDED_ELSEWHERE, PASS, 4, 1, Action.FAIL_TRIAL),
    (ErrorKind.ENDED_ELSEWHERE, STEP, 4, 4, Action.SPLIT_UP_WITHOUT_SAVING),
    (ErrorKind.ENDED_ELSEWHERE, STEP, 4, 1, Action.FAIL_TRIAL),
    # Outside of all these.
    (OTHER, JOB, 4, 0, Action.RAISE),
    (MEMORY, JOB, 4, 0, Action.RAISE),
    (ErrorKind.DISK_FULL, JOB, 4, 0, Action.RAISE),
    (ErrorKind.TAKEN_OVER, JOB, 4, 0, Action.RAISE),
    (ErrorKind.NOT_PACKABLE, JOB, 4, 0, Action.RAISE),
    (ErrorKind.ENDED_ELSEWHERE, JOB, 4, 0, Action.RAISE),
]
# fmt: on


def test_every_kind_of_error_is_decided_in_every_phase():
    decided = {(kind, phase) for kind, phase, *_ in DECISIONS}
    assert decided == set(product(set(ErrorKind) - BY_RANKS, Phase))


@pytest.mark.parametrize(("kind", "phase", "slots", "in_use", "expected"), DECISIONS)
@pytest.mark.parametrize("ranks", [1, 2])
def test_what_a_failure_calls_for(kind, phase, slots, in_use, ranks, expected):
    assert decide(Failure(kind, phase, slots, in_use, ranks)) is expected


@pytest.mark.parametrize("phase", Phase)
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_lost_rank_ends_the_job_whatever_it_was_doing(phase, ranks):
    failure = Failure(ErrorKind.PEER_LOST, phase, 4, 4, ranks)
    assert decide(failure) is Action.RAISE_PEER_LOST


@pytest.mark.parametrize(
    ("phase", "in_use", "alone"),
    [
        (LOAD, 0, Action.FAIL_TRIAL),
        (TRIAL, 0, Action.FAIL_TRIAL),
        (PASS, 4, Action.SPLIT_UP),
        (PASS, 1, Action.FAIL_TRIAL),
        (STEP, 4, Action.SPLIT_UP_WITHOUT_SAVING),
        (JOB, 0, Action.RAISE),
    ],
)
def test_a_lost_connection_means_another_rank_only_if_there_is_one(phase, in_use, alone):
    assert decide(Failure(ErrorKind.CONNECTION, phase, 4, in_use, ranks=1)) is alone
    two = Failure(ErrorKind.CONNECTION, phase, 4, in_use, ranks=2)
    assert decide(two) is Action.RAISE_PEER_LOST


@pytest.mark.parametrize(
    ("kind", "phase", "slots", "expected"),
    [
        (MEMORY, PASS, 4, Action.DROP_GRAPHS),
        (MEMORY, PASS, 1, Action.DROP_GRAPHS),
        (MEMORY, STEP, 4, Action.HALVE_SLOTS_WITHOUT_SAVING),
        (MEMORY, TRIAL, 4, Action.HALVE_SLOTS_WITHOUT_TRIAL),
        (OTHER, PASS, 4, Action.SPLIT_UP),
    ],
)
def test_graphs_go_before_slots_where_a_pass_can_be_repeated(kind, phase, slots, expected):
    assert decide(Failure(kind, phase, slots, in_use=slots, graphs=True)) is expected


@pytest.mark.parametrize(
    ("phase", "fixed_shapes", "expected"),
    [(PASS, False, 3), (STEP, False, 3), (PASS, True, 8), (LOAD, False, 8), (TRIAL, False, 8)],
)
def test_how_many_trials_were_too_many(phase, fixed_shapes, expected):
    """Of a pass those that it held: empty slots take no memory unless shapes are fixed."""
    failure = Failure(MEMORY, phase, slots=8, in_use=3, fixed_shapes=fixed_shapes)
    assert too_many(failure) == expected


@pytest.mark.parametrize(("trials", "expected"), [(8, 4), (5, 2), (2, 1), (1, 1)])
def test_half_as_many_slots_but_one(trials, expected):
    assert halved(trials) == expected


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError("a test"), MEMORY),
        (RuntimeError("CUDA out of memory"), MEMORY),
        (PeerFailed(1, "OutOfMemoryError", "out_of_memory", "full"), MEMORY),
        (NotPackableError("rank pattern"), ErrorKind.NOT_PACKABLE),
        (PeerFailed(1, "NotPackableError", "error", "rank pattern"), ErrorKind.NOT_PACKABLE),
        (TrialTakenOver("elsewhere"), ErrorKind.TAKEN_OVER),
        (PeerFailed(1, "TrialTakenOver", "error", "elsewhere"), ErrorKind.TAKEN_OVER),
        (DiskFullError("the disk of x is full"), ErrorKind.DISK_FULL),
        (PeerFailed(1, "DiskFullError", "error", "the disk of x is full"), ErrorKind.DISK_FULL),
        (PeerLost("rank 1"), ErrorKind.PEER_LOST),
        (RuntimeError("Connection reset by peer"), ErrorKind.CONNECTION),
        (Diverged("the eval loss", float("nan"), 3), OTHER),
        (PeerFailed(1, "ValueError", "error", "shapes do not agree"), OTHER),
    ],
    ids=repr,
)
def test_what_an_error_means_here_or_on_another_rank(tmp_path, error, expected):
    assert kind_of(error) is expected
    assert kind_by_disk(error, tmp_path) is expected


def test_a_full_disk_is_seen_through_the_causes_of_an_error(tmp_path):
    full = OSError(errno.ENOSPC, "No space left on device")
    error = RuntimeError("writing failed")
    error.__cause__ = full
    for found in (full, error):
        assert kind_by_disk(found, tmp_path) is ErrorKind.DISK_FULL
        assert kind_of(found) is OTHER
