"""The states of a worker group, and how a trial of several ranks has ended."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.ray.fake_actors import FakeActor

from sweep.driver.executor import Finished, Interrupted, Job, Lost, TrialRef
from sweep.ray_backend.worker_group import (
    GRACE_SECONDS,
    TRANSITIONS,
    GroupState,
    WorkerGroup,
    rank_outcome,
)
from trial.store.records import Cause, Result

DONE = Finished(7, Result(state="complete", eval_loss=1.0))
FULL = Finished(7, Result(state="failed", cause=Cause(kind="out_of_memory", message="full")))
WRONG = Finished(7, Result(state="failed", cause=Cause(kind="error", message="wrong")))
LEFT = Interrupted(7)
DEAD = Lost(7, "lost", "killed")
HUNG = Lost(7, "hung", "no step")
PEER_LOST = None


@pytest.mark.parametrize(
    ("ended", "grace_over", "expected"),
    [
        ({}, False, None),
        ({0: DONE}, False, DONE),
        ({0: LEFT}, False, LEFT),
        ({1: DONE}, False, None),
        ({1: LEFT, 2: LEFT}, False, None),
        # Rank 0 writes the folder: its own failure stands.
        ({0: WRONG, 1: FULL}, False, WRONG),
        ({0: DONE, 1: DEAD}, False, DONE),
        # A death ends the trial at once; what the others saw of it does not count.
        ({1: DEAD}, False, Lost(7, "lost", "rank 1: killed")),
        ({0: PEER_LOST, 1: DEAD}, False, Lost(7, "lost", "rank 1: killed")),
        ({0: HUNG}, False, Lost(7, "hung", "rank 0: no step")),
        # One that failed by itself: rank 0 may be about to report the same.
        ({1: FULL}, False, None),
        ({1: FULL}, True, Lost(7, "out_of_memory", "rank 1: full")),
        ({0: PEER_LOST, 1: FULL}, False, Lost(7, "out_of_memory", "rank 1: full")),
        ({0: PEER_LOST}, False, None),
        (
            {0: PEER_LOST, 1: PEER_LOST, 2: FULL},
            True,
            Lost(7, "out_of_memory", "rank 2: full"),
        ),
        (
            {0: PEER_LOST, 1: PEER_LOST},
            True,
            Lost(7, "lost", "the ranks of the trial lost each other"),
        ),
    ],
)
def test_outcome_of_several_ranks(ended, grace_over, expected):
    assert rank_outcome(7, ended, grace_over) == expected


def running_group(ranks: int) -> WorkerGroup:
    group = WorkerGroup([FakeActor() for _ in range(ranks)])
    group.assign(Job((TrialRef(7, Path()),)))
    group.heard()
    return group


def test_a_failed_rank_gives_the_others_time_to_report():
    group = running_group(3)
    assert group.grace_left(100.0) is None
    group.rank_ended(1, FULL, 100.0)
    assert group.grace_left(104.0) == GRACE_SECONDS - 4
    assert group.outcome(104.0) is None
    assert group.outcome(100.0 + GRACE_SECONDS) == Lost(7, "out_of_memory", "rank 1: full")


def test_nobody_is_waited_for_when_all_have_ended():
    group = running_group(2)
    group.rank_ended(1, PEER_LOST, 100.0)
    group.rank_ended(0, PEER_LOST, 100.1)
    assert group.outcome(100.1) == Lost(7, "lost", "the ranks of the trial lost each other")


def test_ranks_that_end_well_start_no_grace_period():
    group = running_group(2)
    group.rank_ended(1, DONE, 100.0)
    assert group.grace_left(1000.0) is None
    assert group.outcome(1000.0) is None
    assert group.state is GroupState.RUNNING


@pytest.mark.parametrize(
    ("last", "outcome"),
    [(HUNG, HUNG), (PEER_LOST, Lost(7, "lost", "the worker fell silent"))],
)
def test_a_single_worker_is_not_waited_for(last, outcome):
    group = running_group(1)
    group.rank_ended(0, last, 100.0)
    assert group.state is GroupState.FAILING
    assert group.outcome(100.0) == outcome


S = GroupState
LEGAL = {
    S.NEW: {S.STARTING, S.RETIRED},
    S.IDLE: {S.ASSIGNED, S.RETIRED},
    S.STARTING: {S.RUNNING, S.FAILING, S.RETIRED},
    S.ASSIGNED: {S.RUNNING, S.FAILING, S.RETIRED},
    S.RUNNING: {S.IDLE, S.DRAINING, S.FAILING, S.RETIRED},
    S.DRAINING: {S.ASSIGNED, S.RETIRED},
    S.FAILING: {S.RETIRED},
    S.RETIRED: set(),
}


@pytest.mark.parametrize("before", S)
@pytest.mark.parametrize("after", S)
def test_transitions(before, after):
    group = WorkerGroup([FakeActor()], state=before)
    if after in LEGAL[before]:
        group.to(after)
        assert group.state is after
    else:
        with pytest.raises(RuntimeError, match=f"is {before.name}, it cannot be {after.name}"):
            group.to(after)


def test_every_state_can_be_retired_and_nothing_follows():
    assert all(
        S.RETIRED in after for before, after in TRANSITIONS.items() if before is not S.RETIRED
    )
    assert not TRANSITIONS[S.RETIRED]


ALONE, PACKED = Job((TrialRef(7, Path()),)), Job((TrialRef(7, Path()),), "key")
NEXT = Job((TrialRef(8, Path()),))


def end_trials(group: WorkerGroup) -> None:
    group.open.clear()


STEPS: dict[str, Callable[[WorkerGroup], object]] = {
    "assign": lambda group: group.assign(ALONE),
    "assign packed": lambda group: group.assign(PACKED, 2, 2),
    "hear": WorkerGroup.heard,
    "finish": WorkerGroup.finish,
    "trials end": end_trials,
    "drain": lambda group: group.drain(NEXT),
    "fail": lambda group: group.rank_ended(0, DEAD, 0.0),
    "retire": WorkerGroup.retire,
}


@pytest.mark.parametrize(
    ("steps", "state", "free", "has_slot", "empty"),
    [
        ("", S.NEW, True, False, False),
        ("assign", S.STARTING, False, False, False),
        ("assign, hear", S.RUNNING, False, False, False),
        ("assign, hear, hear", S.RUNNING, False, False, False),
        ("assign, hear, finish", S.IDLE, True, False, False),
        ("assign, hear, finish, assign", S.ASSIGNED, False, False, False),
        ("assign, hear, finish, assign, hear", S.RUNNING, False, False, False),
        ("assign, fail", S.FAILING, False, False, False),
        ("assign, fail, hear", S.FAILING, False, False, False),
        ("assign, fail, retire", S.RETIRED, False, False, False),
        ("retire, retire", S.RETIRED, False, False, False),
        ("assign packed", S.STARTING, False, True, False),
        ("assign packed, hear", S.RUNNING, False, True, False),
        ("assign packed, hear, trials end", S.RUNNING, False, True, True),
        ("assign packed, hear, fail", S.FAILING, False, False, False),
        ("assign packed, hear, trials end, drain", S.DRAINING, False, False, False),
        ("assign packed, hear, trials end, drain, assign", S.ASSIGNED, False, False, False),
        ("assign packed, hear, trials end, drain, assign packed", S.ASSIGNED, False, True, False),
    ],
)
def test_what_a_group_can_take(steps, state, free, has_slot, empty):
    group = WorkerGroup([FakeActor()])
    for step in filter(None, steps.split(", ")):
        STEPS[step](group)
    assert group.state is state
    assert (group.free, group.has_slot("key"), group.empty) == (free, has_slot, empty)
    assert not group.has_slot("another key")


def test_a_packed_job_is_full_with_as_many_trials_as_slots():
    group = WorkerGroup([FakeActor()])
    group.assign(PACKED, 2, 2)
    group.join(Job((TrialRef(8, Path()),), "key"))
    assert not group.has_slot("key")
    assert group.actors[0].calls == ["run", "add"]
    assert set(group.trials) == group.open == {7, 8}


@pytest.mark.parametrize(("number", "passed"), [(7, True), (8, False)])
def test_a_stop_goes_to_the_group_that_has_the_trial(number, passed):
    group = running_group(1)
    group.stop(number, "prune")
    assert ("stop" in group.actors[0].calls) == passed


def test_a_stop_goes_to_the_group_that_will_have_the_trial():
    group = WorkerGroup([FakeActor()])
    for step in ("assign packed", "hear", "trials end", "drain"):
        STEPS[step](group)
    group.stop(8, "interrupt")
    assert group.actors[0].calls == ["run", "leave", "stop"]
