"""Which worker group gets a job, on a cluster that is not there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers.ray.fake_actors import FakeCluster, start_fake

from sweep.driver.executor import Evicted, Job, TrialRef
from sweep.ray_backend.node.settings import RaySettings
from sweep.ray_backend.scheduler import MAX_OVERTAKES, MAX_SLOTS, JobQueue, Scheduler
from sweep.ray_backend.worker_group import GroupState, WorkerGroup


def job(number: int, key: str | None = None) -> Job:
    return Job((TrialRef(number, Path()),), key)


def cluster_of(size: int = 1, **settings: Any) -> FakeCluster:
    return FakeCluster(RaySettings(device="cpu", **settings), size)


def scheduler_on(cluster: FakeCluster) -> Scheduler:
    return Scheduler(cluster, cluster.settings, start_fake)


def scheduler_of(size: int = 1, **settings: Any) -> Scheduler:
    return scheduler_on(cluster_of(size, **settings))


def running(scheduler: Scheduler, number: int) -> WorkerGroup:
    """The group that has a trial, once it has been heard of."""
    (group,) = [group for group in scheduler.groups if number in group.open]
    group.heard()
    return group


def trials(scheduler: Scheduler) -> list[set[int]]:
    return [group.open for group in scheduler.groups]


def test_a_job_of_another_kind_waits_a_while_and_not_for_ever():
    queue, placed = JobQueue(), []

    def only_ones(job: Job) -> bool:
        if job.key == "one":
            placed.append(job)
        return job.key == "one"

    queue.add(job(0, "two"))
    for number in range(1, MAX_OVERTAKES + 3):
        queue.add(job(number, "one"))
        queue.dispatch(only_ones)
    assert len(placed) == MAX_OVERTAKES
    assert queue.drop(0)
    assert not queue.drop(0)
    queue.dispatch(only_ones)
    assert len(placed) == MAX_OVERTAKES + 2
    assert not len(queue)


@pytest.mark.parametrize(
    ("size", "settings", "groups"),
    [
        (0, {}, 1),
        (3, {}, 3),
        (3, {"concurrency": 2}, 2),
        (3, {"expected_jobs": 2}, 2),
        (3, {"expected_jobs": 8}, 3),
    ],
)
def test_groups_that_are_started_at_first(size, settings, groups):
    scheduler = scheduler_of(size, **settings)
    scheduler.start_groups()
    assert [group.state for group in scheduler.groups] == [GroupState.NEW] * groups


@pytest.mark.parametrize(
    ("size", "pack", "keys", "groups", "waiting"),
    [
        # Without packing a job always gets a group: the driver submits as many as there are slots.
        (2, 1, [None, None], [{0}, {1}], 0),
        (2, 1, ["a", "a"], [{0}, {1}], 0),
        (1, 1, [None, None], [{0}, {1}], 0),
        # Packed: first the free groups, then the slots of running jobs, then the queue.
        (1, 2, ["a", "a"], [{0, 1}], 0),
        (1, 2, ["a", "a", "a"], [{0, 1}], 1),
        (2, 2, ["a", "a", "a", "a"], [{0, 2}, {1, 3}], 0),
        (1, 2, ["a", "b"], [{0}], 1),
        (1, 2, ["a", "b", "a"], [{0, 2}], 1),
        (2, 2, ["a", "b", "a", "b"], [{0, 2}, {1, 3}], 0),
        (1, 2, [None, "a"], [{0}], 1),
        # A job that chooses its slots has one until it reports more.
        (1, 0, ["a", "a"], [{0}], 1),
    ],
)
def test_where_jobs_go(size, pack, keys, groups, waiting):
    scheduler = scheduler_of(size, pack=pack)
    for number, key in enumerate(keys):
        scheduler.submit(job(number, key))
    assert trials(scheduler) == groups
    assert len(scheduler.queue) == waiting


@pytest.mark.parametrize(
    ("size", "settings", "packable", "limit", "expected"),
    [
        (1, {"pack": 4}, False, None, (1, 1)),
        (1, {"pack": 4}, True, None, (4, MAX_SLOTS)),
        (1, {"pack": 0}, True, None, (0, MAX_SLOTS)),
        (1, {"pack": 0, "expected_jobs": 5}, True, None, (0, 5)),
        (2, {"pack": 0, "expected_jobs": 5}, True, None, (0, 3)),
        (1, {"pack": 8}, True, 4, (4, 2)),
    ],
)
def test_slots_of_a_job(size, settings, packable, limit, expected):
    scheduler = scheduler_of(size, **settings)
    if limit is not None:
        group = WorkerGroup([], job=job(0, "a"), slots=2 * limit)
        scheduler.halve_slots(group)
        expected = (limit, limit)
    assert scheduler.slots_of(job(1, "a" if packable else None)) == expected


def test_slots_of_the_cluster_count_those_of_packed_jobs():
    scheduler = scheduler_of(2, pack=0)
    assert scheduler.capacity() == 2
    scheduler.submit(job(0, "a"))
    assert scheduler.capacity() == 2
    scheduler.resized(running(scheduler, 0), 3)
    assert scheduler.capacity() == 6
    scheduler.submit(job(1))
    assert scheduler.capacity() == 2


def test_a_packed_job_without_trials_drains_for_one_of_another_kind():
    scheduler = scheduler_of(1, pack=2)
    scheduler.submit(job(0, "a"))
    scheduler.submit(job(1, "b"))
    group = running(scheduler, 0)
    group.open.discard(0)
    scheduler.dispatch()
    assert group.state is GroupState.DRAINING
    scheduler.packed_job_ended(group)
    assert (group.state, group.open, group.key) == (GroupState.ASSIGNED, {1}, "b")
    assert scheduler.groups == [group]


def test_ranks_that_have_met_are_not_used_for_another_job():
    scheduler = scheduler_of(1, pack=2, devices_per_trial=2)
    scheduler.submit(job(0, "a"))
    scheduler.submit(job(1, "b"))
    group = running(scheduler, 0)
    group.open.discard(0)
    scheduler.dispatch()
    scheduler.packed_job_ended(group)
    assert (group.state, scheduler.groups) == (GroupState.RETIRED, [])
    scheduler.dispatch()
    assert trials(scheduler) == [{1}]


@pytest.mark.parametrize(("alone", "key"), [(False, "a"), (True, None)])
def test_an_evicted_trial_waits_for_another_job(alone, key):
    scheduler = scheduler_of(1, pack=2)
    scheduler.submit(job(0, "a"))
    scheduler.submit(job(1, "a"))
    group = running(scheduler, 0)
    scheduler.evicted(group, Evicted(1, alone))
    assert group.open == {0}
    waiting = []
    scheduler.queue.dispatch(lambda job: not waiting.append(job))
    assert waiting == [job(1, key)]


def test_a_failing_group_takes_no_trials():
    scheduler = scheduler_of(1, pack=2, devices_per_trial=2)
    scheduler.submit(job(0, "a"))
    group = running(scheduler, 0)
    group.rank_ended(1, None, 0.0)
    scheduler.submit(job(1, "a"))
    assert trials(scheduler) == [{0}]
    assert len(scheduler.queue) == 1


def test_a_job_whose_worker_died_before_it_began_is_started_anew_with_all_its_trials():
    """Those that joined before the first event too."""
    scheduler = scheduler_of(1, pack=2)
    scheduler.submit(job(0, "a"))
    scheduler.submit(job(1, "b"))
    group = running(scheduler, 0)
    group.open.discard(0)
    scheduler.dispatch()
    scheduler.packed_job_ended(group)
    scheduler.submit(job(2, "b"))
    assert group.open == {1, 2}
    scheduler.restart(group)
    assert group.state is GroupState.RETIRED
    (fresh,) = scheduler.groups
    assert fresh.actors[0].calls == ["run", "add"]
    assert fresh.actors[0].arguments[0][1] == {"slots": 2, "limit": MAX_SLOTS}
    assert fresh.actors[0].arguments[1][0] == (TrialRef(2, Path()),)
    assert (fresh.state, fresh.open, fresh.key) == (GroupState.STARTING, {1, 2}, "b")


@pytest.mark.parametrize(
    ("idle", "up", "size", "startup_seconds", "handed_over"),
    [
        # There is an idle worker, and the other has no place on a cluster that shrank.
        (True, False, 1, 60.0, True),
        # The cluster has a place for it: it is only slow.
        (True, False, 2, 60.0, False),
        (True, False, 2, 0.0, True),
        (True, True, 1, 0.0, False),
        (False, False, 1, 0.0, False),
    ],
)
def test_an_idle_worker_takes_over_a_job_that_cannot_start(
    idle, up, size, startup_seconds, handed_over
):
    cluster = cluster_of(2, startup_seconds=startup_seconds)
    scheduler = scheduler_on(cluster)
    scheduler.submit(job(0))
    scheduler.submit(job(1))
    group, late = running(scheduler, 0), scheduler.groups[1]
    if idle:
        group.open.discard(0)
        group.finish()
    if up:
        cluster.ready.add(late.up)
    cluster.size = size
    scheduler.hand_over()
    scheduler.dispatch()
    assert (late.state is GroupState.RETIRED) == handed_over
    assert (group.open == {1}) == handed_over
    assert bool(cluster.ended) == handed_over


def test_a_retired_group_is_ended_and_another_one_is_started():
    cluster = cluster_of(1)
    scheduler = scheduler_on(cluster)
    scheduler.start_groups()
    (first,) = scheduler.groups
    scheduler.retire(first)
    scheduler.submit(job(0))
    (second,) = scheduler.groups
    assert second is not first
    assert cluster.ended == first.actors


def test_what_a_ray_that_is_gone_had_is_named_once_and_forgotten():
    scheduler = scheduler_of(2)
    for number in range(4):
        scheduler.submit(job(number))
    groups = [running(scheduler, number) for number in (0, 1)]
    groups[0].open.discard(0)  # It has ended.
    assert scheduler.abandon() == {1, 2, 3}
    assert (scheduler.groups, len(scheduler.queue)) == ([], 0)
    assert scheduler.abandon() == set()
