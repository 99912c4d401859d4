"""A cluster that was joined and ends: the executor says so within seconds, and nothing aborts."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import psutil
import pytest
from helpers.ray import scripted_worker
from helpers.ray.executor_bench import ExecutorBench
from helpers.ray.scripted_worker import ScriptedWorker

from sweep.driver.executor import ExecutorLostError, Started
from sweep.ray_backend import compat
from sweep.ray_backend.executor import RayExecutor
from sweep.ray_backend.liveness import watch
from sweep.ray_backend.node.settings import RaySettings

UNTIL_STOPPED = 2


@pytest.fixture
def cluster() -> Iterator[Any]:
    compat.set_environment()
    import ray
    from ray.cluster_utils import Cluster

    ray.cloudpickle.register_pickle_by_value(scripted_worker)
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    yield made
    ray.shutdown()
    made.shutdown()


@pytest.mark.parametrize(
    ("program", "said"),
    [("raylet", "the raylet on this host ended"), ("gcs_server", "its head has not answered")],
)
def test_the_end_of_a_cluster_is_said(cluster, program, said, tmp_path, monkeypatch):
    monkeypatch.setattr(watch, "GCS_GRACE_SECONDS", 2.0)
    settings = RaySettings(device="cpu", address=cluster.address, worker=ScriptedWorker)
    executor = RayExecutor(settings)
    executor.start()
    bench = ExecutorBench(executor, tmp_path)
    bench.submit(UNTIL_STOPPED)
    bench.until(lambda: bool(bench.of(Started)))
    worker = executor.cluster.ray.get(executor.scheduler.groups[0].up)
    (info,) = cluster.head_node.all_processes[program]
    info.process.kill()
    begun = time.monotonic()
    with pytest.raises(ExecutorLostError, match=f"{cluster.address}: {said}"):
        bench.until(lambda: False)
    assert time.monotonic() - begun < 40
    executor.close()
    if program == "raylet":
        assert not psutil.pid_exists(worker) or psutil.Process(worker).status() == "zombie"
