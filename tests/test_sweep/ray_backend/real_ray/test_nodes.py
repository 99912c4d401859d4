"""Placement on several nodes and on aligned HPUs: a real Ray on simulated nodes, no hardware.

What starts a Ray of its own is in `test_cluster.py`: it keeps its process to loopback, and a
driver in the same process then cannot be reached by a cluster that was there before.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from filelock import FileLock
from helpers.ray import node_worker
from helpers.ray.executor_bench import ExecutorBench
from helpers.ray.node_worker import (
    COMPLETE,
    GATE,
    LOCKS,
    RANK_1_DIES,
    RANK_1_FAILS,
    WAIT,
    LateWorker,
    NodeWorker,
)

from sweep.driver.executor import Finished, Lost, Started
from sweep.ray_backend import compat
from sweep.ray_backend.executor import RayExecutor
from sweep.ray_backend.node.settings import RaySettings


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[Any]:
    compat.set_environment()
    os.environ[LOCKS] = str(tmp_path_factory.mktemp("locks"))
    import ray
    from ray.cluster_utils import Cluster

    ray.cloudpickle.register_pickle_by_value(node_worker)
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    made.add_node(num_cpus=1, resources={"HPU": 4})
    made.add_node(num_cpus=1, resources={"HPU": 2})
    yield made
    ray.shutdown()
    made.shutdown()


@pytest.fixture
def bench(cluster, tmp_path) -> Iterator[Callable[..., ExecutorBench]]:
    started = []

    def start(**options: Any) -> ExecutorBench:
        environment = {LOCKS: os.environ[LOCKS], GATE: str(tmp_path / "gate")}
        settings = RaySettings(
            address=cluster.address,
            environment=environment,
            expected_jobs=1,
            refresh_seconds=0.0,
            **({"worker": NodeWorker} | options),
        )
        executor = RayExecutor(settings)
        executor.start()
        started.append(executor)
        return ExecutorBench(executor, tmp_path)

    yield start
    for executor in started:
        executor.close()


def test_pairs_of_cards_are_aligned_disjoint_and_free_after_a_kill(bench):
    made = bench(device="hpu", devices_per_trial=2)
    assert made.executor.capacity() == 3
    trials = [made.submit(WAIT) for _ in range(3)]
    made.until(lambda: len(made.of(Started)) == 3)
    placements = {number: made.placements(number, 2) for number in trials}
    groups = []
    for first, second in placements.values():
        assert first["node"] == second["node"]
        assert first["HABANA_VISIBLE_MODULES"] == second["HABANA_VISIBLE_MODULES"]
        assert first["HABANA_VISIBLE_MODULES"] in ("0,1", "2,3")
        assert (first["RANK"], second["RANK"]) == ("0", "1")
        assert (first["LOCAL_RANK"], second["LOCAL_RANK"]) == ("0", "1")
        assert {s["WORLD_SIZE"] for s in (first, second)} == {"2"}
        assert first["MASTER_PORT"] == second["MASTER_PORT"]
        assert first["MASTER_ADDR"] == second["MASTER_ADDR"] == "127.0.0.1"
        groups.append((first["node"], first["HABANA_VISIBLE_MODULES"]))
    assert len(set(groups)) == 3
    assert len({first["MASTER_PORT"] for first, _ in placements.values()}) == 3

    os.kill(placements[trials[1]][1]["pid"], signal.SIGKILL)
    made.until(lambda: bool(made.of(Lost)))
    again = made.submit(WAIT)
    first, _ = made.placements(again, 2)
    assert (first["node"], first["HABANA_VISIBLE_MODULES"]) == groups[1]
    for number in (trials[0], trials[2], again):
        made.prune(number)
    assert [event.number for event in made.of(Lost)] == [trials[1]]
    assert not made.of(Lost)[0].message.startswith("rank 0")


def test_a_group_larger_than_any_node_waits_for_one(bench):
    made = bench(device="hpu", devices_per_trial=8)
    assert made.executor.cluster.capacity() == 0
    assert made.executor.capacity() == 1


def test_ranks_spread_only_when_no_node_holds_them(bench):
    made = bench(device="cpu", devices_per_trial=2)
    assert made.executor.capacity() == 1
    number = made.submit(COMPLETE)
    first, second = made.placements(number, 2)
    assert first["node"] != second["node"]
    assert (first["LOCAL_RANK"], second["LOCAL_RANK"]) == ("0", "0")
    assert first["LOCAL_WORLD_SIZE"] == "1"
    assert first["MASTER_ADDR"] == second["MASTER_ADDR"] != ""
    assert first["GLOO_SOCKET_IFNAME"] == second["GLOO_SOCKET_IFNAME"]
    made.until(lambda: bool(made.of(Finished, number)))

    for script, kind, message in (
        (RANK_1_DIES, "lost", "rank 1"),
        (RANK_1_FAILS, "error", "rank 1: MemoryError: rank 1 is full"),
    ):
        number = made.submit(script)
        made.until(lambda number=number: bool(made.of(Lost, number)))
        (lost,) = made.of(Lost, number)
        assert lost.kind == kind
        assert lost.message.startswith(message)
        assert not (made.root / f"{number:05d}" / "result.json").exists()


def test_a_node_that_joins_is_used_and_one_that_dies_is_survived(bench, cluster):
    made = bench(device="cpu")
    assert made.executor.capacity() == 2
    joined = cluster.add_node(num_cpus=1)
    made.until(lambda: made.executor.capacity() == 3)
    trials = [made.submit(WAIT) for _ in range(3)]
    homes = {number: made.placements(number)[0]["node"] for number in trials}
    assert len(set(homes.values())) == 3
    assert joined.node_id in homes.values()

    cluster.remove_node(joined, allow_graceful=False)
    made.until(lambda: bool(made.of(Lost)))
    (lost,) = made.of(Lost)
    assert homes[lost.number] == joined.node_id
    made.until(lambda: made.executor.capacity() == 2)
    # There is no room for it now: it takes the place of the next that ends.
    again = made.submit(COMPLETE)
    survivors = [number for number in trials if number != lost.number]
    made.prune(survivors[0])
    made.until(lambda: bool(made.of(Finished, again)))
    made.prune(survivors[1])
    assert made.of(Lost) == [lost]


@pytest.mark.parametrize("patience", [60.0, 0.0])
def test_a_worker_slow_to_start_keeps_its_trial_for_a_while(bench, tmp_path, patience):
    made = bench(device="cpu", worker=LateWorker, startup_seconds=patience)
    begun = made.submit(COMPLETE)
    made.until(lambda: bool(made.of(Finished, begun)))
    (first,) = made.placements(begun)
    with FileLock(tmp_path / "gate"):
        blocker = made.submit(WAIT)
        made.placements(blocker)
        late = made.submit(COMPLETE)
        made.prune(blocker)
        # The idle worker could have the trial at once.
        again = made.submit(COMPLETE)
        made.until(lambda: bool(made.of(Finished, again)))
        if patience == 0.0:
            made.until(lambda: bool(made.of(Finished, late)))
        assert bool(made.of(Started, late)) == (patience == 0.0)
    made.until(lambda: bool(made.of(Finished, late)))
    assert (made.placements(late)[0]["pid"] == first["pid"]) == (patience == 0.0)
