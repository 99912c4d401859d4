"""Heartbeats of workers, and what follows when one is lost."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.ray.fake_actors import FakeCluster, start_fake

from sweep.driver.executor import Job, Lost, TrialRef
from sweep.ray_backend.health import Heartbeats, Leases, LossAction, action_on_loss, reason_of
from sweep.ray_backend.node.settings import RaySettings
from sweep.ray_backend.worker_group import GroupState, WorkerGroup

S = GroupState


DISCARD, RESTART, REPORT = LossAction.DISCARD, LossAction.RESTART, LossAction.REPORT
ACTIONS = {
    # A new one may be unable to start for a reason that the next one has too.
    S.NEW: REPORT,
    S.IDLE: REPORT,
    S.STARTING: REPORT,
    # A warm worker that died before its next job began has done nothing to the trials.
    S.ASSIGNED: RESTART,
    S.RUNNING: REPORT,
    S.DRAINING: REPORT,
    S.FAILING: REPORT,
    S.RETIRED: REPORT,
}
"""What follows the loss of a group, unless nothing was on it."""


@pytest.mark.parametrize("state", S)
@pytest.mark.parametrize(("packed", "has_trials"), [(False, False), (False, True), (True, True)])
def test_action_on_loss(state, packed, has_trials):
    assert action_on_loss(state, packed=packed, has_trials=has_trials) is ACTIONS[state]


@pytest.mark.parametrize("state", S)
def test_the_loss_of_a_packed_job_without_trials_is_discarded(state):
    assert action_on_loss(state, packed=True, has_trials=False) is DISCARD


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The actor died.\nclass_name: X", "The actor died."),
        ("\n  \x1b[36mThe node died.\x1b[0m\n", "The node died."),
        (
            "The actor died because of an error raised in its creation task, ray::X()\n"
            "Traceback:\nModuleNotFoundError: No module named 'peft'\n",
            "the worker could not start: ModuleNotFoundError: No module named 'peft'",
        ),
        ("", "ValueError('')"),
    ],
)
def test_reason_of_a_loss_in_one_line(text, expected):
    assert reason_of(ValueError(text)) == expected


@pytest.fixture
def cluster() -> FakeCluster:
    return FakeCluster(RaySettings(hang_seconds=60.0, refresh_seconds=5.0))


@pytest.fixture
def group(cluster) -> WorkerGroup:
    made = start_fake(cluster)
    made.assign(Job((TrialRef(7, Path()),)))
    cluster.ready.add(made.up)
    return made


def test_a_worker_is_asked_again_once_it_has_answered(cluster, group):
    heartbeats, calls = Heartbeats(cluster), group.actors[0].calls
    heartbeats.check([group], 100.0)
    assert calls == ["run", "pid"]
    heartbeats.check([group], 120.0)
    assert calls == ["run", "pid"]
    cluster.ready.add(group.heartbeats[0][1])
    heartbeats.check([group], 104.0)
    assert calls == ["run", "pid"]
    heartbeats.check([group], 106.0)
    assert calls == ["run", "pid", "pid"]


def test_a_worker_that_does_not_answer_has_ended(cluster, group):
    heartbeats = Heartbeats(cluster)
    heartbeats.check([group], 100.0)
    heartbeats.check([group], 160.0)
    assert group.state is S.STARTING
    heartbeats.check([group], 190.0)
    assert group.state is S.FAILING
    message = "its process has not answered in 1.5 minutes"
    assert group.outcome(190.0) == Lost(7, "hung", message)


def test_a_worker_that_is_not_up_yet_is_not_asked(cluster, group):
    cluster.ready.clear()
    heartbeats = Heartbeats(cluster)
    heartbeats.check([group], 100.0)
    assert group.actors[0].calls == ["run"]
    assert heartbeats.next_check() == 5.0


def test_nobody_is_asked_where_trials_may_hang(group):
    cluster = FakeCluster(RaySettings(hang_seconds=None))
    heartbeats = Heartbeats(cluster)
    heartbeats.check([group], 100.0)
    assert group.actors[0].calls == ["run"]
    assert heartbeats.next_check() is None


def test_a_lease_is_renewed_every_five_seconds_by_workers_that_answer(cluster, group):
    now = [0.0]
    leases, calls = Leases(cluster, lambda: [group], clock=lambda: now[0]), group.actors[0].calls
    for now[0], renewals in ((0.0, 1), (4.9, 1), (5.1, 1), (11.0, 1)):
        leases.renew()
        assert calls.count("renew_lease") == renewals
    cluster.is_ready = lambda reference: True
    for now[0], renewals in ((15.0, 1), (16.1, 2), (21.2, 3)):
        leases.renew()
        assert calls.count("renew_lease") == renewals
