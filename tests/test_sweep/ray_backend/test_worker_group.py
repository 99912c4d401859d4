"""How a trial of several ranks has ended, from the last words of its ranks."""

import pytest

from sweep.driver.executor import Finished, Interrupted, Lost
from sweep.ray_backend.worker_group import GRACE, WorkerGroup, verdict
from trial.store.records import Cause, Result

DONE = Finished(7, Result(state="complete", value=1.0))
FULL = Finished(7, Result(state="failed", cause=Cause(kind="out_of_memory", message="full")))
WRONG = Finished(7, Result(state="failed", cause=Cause(kind="error", message="wrong")))
LEFT = Interrupted(7)
DEAD = Lost(7, "lost", "killed")
HUNG = Lost(7, "hung", "no step")
PEER_LOST = None


@pytest.mark.parametrize(
    ("ended", "last_call", "expected"),
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
        # One that failed by itself: rank 0 may be about to say the same.
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
def test_verdict(ended, last_call, expected):
    assert verdict(7, ended, last_call) == expected


def crew_of(size: int) -> WorkerGroup:
    worker_group = WorkerGroup(actors=[object()] * size)
    worker_group.open = {7}
    worker_group.streams = dict.fromkeys(range(size), object())
    return worker_group


def test_a_failed_rank_is_given_time_until_the_others_have_spoken():
    worker_group = crew_of(3)
    assert worker_group.left(100.0) is None
    worker_group.end(1, FULL, 100.0)
    assert worker_group.left(104.0) == GRACE - 4
    assert worker_group.verdict(104.0) is None
    assert worker_group.verdict(100.0 + GRACE) == Lost(7, "out_of_memory", "rank 1: full")


def test_nobody_is_waited_for_when_all_have_ended():
    worker_group = crew_of(2)
    worker_group.end(1, PEER_LOST, 100.0)
    worker_group.end(0, PEER_LOST, 100.1)
    assert worker_group.verdict(100.1) == Lost(7, "lost", "the ranks of the trial lost each other")


def test_ranks_that_end_well_are_in_no_hurry():
    worker_group = crew_of(2)
    worker_group.end(1, DONE, 100.0)
    assert worker_group.left(1000.0) is None
    assert worker_group.verdict(1000.0) is None
