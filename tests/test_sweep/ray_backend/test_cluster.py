"""A Ray of our own on this machine, given HPUs that it does not have."""

from __future__ import annotations

import socket

import psutil
import pytest
from helpers.ray import node_worker
from helpers.ray.executor_bench import ExecutorBench
from helpers.ray.node_worker import COMPLETE, LOCKS, WAIT, NodeWorker

from sweep.driver.executor import Finished
from sweep.ray_backend.executor import RayExecutor
from sweep.ray_backend.node.settings import RaySettings


@pytest.mark.parametrize("devices", [3, 8])
def test_a_machine_that_cannot_hold_a_trial_is_refused(devices):
    settings = RaySettings(device="hpu", devices_per_trial=devices, resources={"HPU": 4})
    executor = RayExecutor(settings)
    try:
        with pytest.raises(ValueError, match=rf"devices_per_trial: .* got {devices}"):
            executor.start()
    finally:
        executor.close()


def test_where_no_ray_can_be_joined_it_is_said_what_to_look_at(monkeypatch):
    import ray

    def refuse(address: str, **_: object) -> None:
        raise ConnectionError(f"Failed to connect to Ray cluster at {address}")

    # Ray itself takes twenty seconds to give up.
    monkeypatch.setattr(ray, "init", refuse)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        executor = RayExecutor(RaySettings(device="cpu", address=address))
        with pytest.raises(ConnectionError, match=rf"at {address}\. .*RAY_AUTH_TOKEN"):
            executor.start()


def test_a_cluster_that_is_gone_is_told_at_once(monkeypatch):
    import ray

    asked = []
    monkeypatch.setattr(ray, "init", lambda **options: asked.append(options))
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    executor = RayExecutor(RaySettings(device="cpu", address=f"ray://{address}"))
    with pytest.raises(ConnectionError, match=f"no cluster answers at ray://{address}"):
        executor.start()
    assert asked == []


def test_single_cards_on_a_ray_of_our_own(tmp_path, monkeypatch):
    import ray

    ray.cloudpickle.register_pickle_by_value(node_worker)
    # Module ids may be any; the sweep's own environment names them.
    monkeypatch.setenv("HABANA_VISIBLE_MODULES", "6,2")
    settings = RaySettings(
        device="auto",
        resources={"HPU": 2},
        worker=NodeWorker,
        environment={LOCKS: str(tmp_path / "locks")},
    )
    executor = RayExecutor(settings)
    try:
        executor.start()
        assert (executor.device, executor.capacity()) == ("hpu", 2)
        made = ExecutorBench(executor, tmp_path)
        trials = [made.submit(WAIT) for _ in range(2)]
        placements = [made.placements(number)[0] for number in trials]
        assert sorted(placement["HABANA_VISIBLE_MODULES"] for placement in placements) == ["2", "6"]
        assert {placement["RANK"] for placement in placements} == {None}
        made.prune(trials[0])
        again = made.submit(COMPLETE)
        made.until(lambda: bool(made.of(Finished, again)))
        assert made.placements(again)[0]["pid"] == placements[0]["pid"]
    finally:
        executor.close()


def test_nothing_runs_that_no_sweep_uses(tmp_path):
    import ray

    ray.cloudpickle.register_pickle_by_value(node_worker)
    executor = RayExecutor(RaySettings(device="cpu", concurrency=1, worker=NodeWorker))
    before = set(psutil.Process().children(recursive=True))
    try:
        executor.start()
        made = ExecutorBench(executor, tmp_path)
        trial = made.submit(COMPLETE)
        made.until(lambda: bool(made.of(Finished, trial)))
        begun = set(psutil.Process().children(recursive=True)) - before
        words = [word for process in begun for word in process.cmdline()]
        assert any("raylet" in word for word in words)
        # Names of this Ray's release: one that has renamed them starts by itself, and shows here.
        for script in ("monitor.py", "dashboard.py", "log_monitor.py"):
            assert not any(word.endswith(script) for word in words)
    finally:
        executor.close()
