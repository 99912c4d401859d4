"""Ray places the jobs: whole devices as resources, warm actors as workers. Ray's only home.

Ray Core rather than Ray Tune: Tune's searcher would replace Optuna's pruners and tell a stopped
trial as complete.
"""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from filelock import FileLock

from sweep import scratch
from sweep.executor import Event, Finished, Interrupted, Job, Lost
from sweep.worker import TrialWorker
from trial.control import StopReason

log = logging.getLogger(__name__)

QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_enable_metrics_collection": "0",
    "RAY_DISABLE_IMPORT_WARNING": "1",
}
"""Set before Ray is imported: no telemetry, no metrics agent, no notices."""

OBJECT_STORE_BYTES = 100 * 1024 * 1024
"""Only small events pass through the object store."""

RESOURCE = {"hpu": "HPU", "cuda": "GPU", "cpu": "CPU"}


@dataclass(slots=True)
class Worker:
    """One actor and what it is doing."""

    actor: Any
    job: Job | None = None
    stream: Any = None
    open: set[int] = field(default_factory=set)
    """Trials of the job that have neither ended nor been interrupted."""


@dataclass(slots=True)
class RayExecutor:
    """Runs jobs on the devices of a local Ray or of a cluster."""

    device: str = "auto"
    devices_per_trial: int = 1
    cpus_per_trial: int = 1
    concurrency: int | None = None
    expected_jobs: int | None = None
    """How many jobs will come at most, when known: no more workers than that are started."""
    address: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    hang_seconds: float | None = None
    """A trial without a sign of life for so long is ended."""
    worker: type = TrialWorker
    _workers: list[Worker] = field(default_factory=list)
    _folder: str = ""
    _held: FileLock | None = None
    _reaper: subprocess.Popen[bytes] | None = None
    _ray: Any = None
    _capacity: tuple[float, int] = (0.0, 1)

    def start(self) -> None:
        """Connect to `address`, or start a Ray of our own; begin to warm the first workers."""
        for name, value in QUIET.items():
            os.environ.setdefault(name, value)
        import ray

        self._ray = ray
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        if self.address:
            ray.init(address=self.address, **options)
        else:
            self._folder, self._held = scratch.make()
            self._reaper = _start_reaper(self._folder)
            ray.init(
                address="local",
                include_dashboard=False,
                num_cpus=len(os.sched_getaffinity(0)),
                object_store_memory=OBJECT_STORE_BYTES,
                _temp_dir=self._folder,
                **options,
            )
        if self.device == "auto":
            total = ray.cluster_resources()
            self.device = next((d for d, name in RESOURCE.items() if total.get(name)), "cpu")
        first = min(self.slots(), self.expected_jobs or self.slots())
        self._workers = [self._new_worker() for _ in range(first)]

    def slots(self) -> int:
        """How many jobs fit the cluster as it is now."""
        asked_at, capacity = self._capacity
        if time.monotonic() - asked_at > 5:
            total = self._ray.cluster_resources()
            need = self._resources()
            capacity = int(min(total.get(name, 0) // count for name, count in need.items()))
            self._capacity = (time.monotonic(), capacity)
        return max(1, min(capacity, self.concurrency or capacity))

    def describe(self) -> str:
        """Devices and workers in words."""
        slots = self.slots()
        each = f"{self.cpus_per_trial} CPU thread{'s' * (self.cpus_per_trial > 1)}"
        if self.device != "cpu":
            each = f"{self.devices_per_trial} {RESOURCE[self.device]}"
        return f"{slots} worker{'s' * (slots > 1)} of {each} each"

    def submit(self, job: Job) -> None:
        """Give the job to an idle worker, or to a new one."""
        worker = next((worker for worker in self._workers if worker.job is None), None)
        if worker is None:
            worker = self._new_worker()
            self._workers.append(worker)
        worker.job = job
        worker.open = {placed.number for placed in job.trials}
        worker.stream = worker.actor.run.remote(job)

    def events(self, timeout: float) -> list[Event]:
        """Everything that has happened, waiting at most `timeout` seconds for the first."""
        found: list[Event] = []
        while not found:
            streams = {id(w.stream): w for w in self._workers if w.stream is not None}
            if not streams:
                time.sleep(timeout)
                return found
            waiting = [worker.stream for worker in streams.values()]
            ready, _ = self._ray.wait(waiting, num_returns=1, timeout=timeout)
            if not ready:
                return found
            for stream in ready:
                found += self._take(streams[id(stream)])
        return found

    def stop(self, number: int, reason: StopReason) -> None:
        """Pass the request to the worker that has the trial."""
        for worker in self._workers:
            if number in worker.open:
                worker.actor.stop.remote(number, reason)

    def close(self) -> None:
        """End the workers and the Ray we started."""
        if self._ray is None:
            return
        for worker in self._workers:
            with contextlib.suppress(Exception):
                self._ray.kill(worker.actor)
        self._workers.clear()
        self._ray.shutdown()
        if self._reaper and self._reaper.stdin:
            self._reaper.stdin.close()
            self._reaper.wait()
        self._ray = None

    def _resources(self) -> dict[str, float]:
        if self.device == "cpu":
            return {"CPU": float(self.cpus_per_trial * self.devices_per_trial)}
        return {RESOURCE[self.device]: float(self.devices_per_trial)}

    def _new_worker(self) -> Worker:
        need = self._resources()
        options: dict[str, Any] = {"num_cpus": need.pop("CPU", 0), "num_gpus": need.pop("GPU", 0)}
        # Two threads: one trains, one hears that it should stop.
        actor = self._ray.remote(self.worker).options(
            max_concurrency=2, max_restarts=0, resources=need, **options
        )
        threads = str(self.cpus_per_trial)
        environment = {
            "OMP_NUM_THREADS": threads,
            "MKL_NUM_THREADS": threads,
            "TOKENIZERS_PARALLELISM": "false",
            **self.environment,
        }
        return Worker(actor.remote(environment, self.device, self.hang_seconds))

    def _take(self, worker: Worker) -> list[Event]:
        """The next event of a worker's stream, which is ready."""
        try:
            event, reusable = self._ray.get(next(worker.stream))
        except (StopIteration, self._ray.exceptions.RayError) as error:
            return self._lost(worker, error)
        if isinstance(event, Finished | Interrupted | Lost):
            worker.open.discard(event.number)
        if not worker.open:
            worker.job = worker.stream = None
            if not reusable:
                self._retire(worker)
        return [event]

    def _retire(self, worker: Worker) -> None:
        """A worker that failed, or that cannot be cleaned, is replaced and never reused."""
        self._ray.kill(worker.actor)
        self._workers.remove(worker)

    def _lost(self, worker: Worker, error: Exception) -> list[Event]:
        message = str(error).strip().split("\n")[0]
        log.warning("a worker was lost: %s", error)
        lost: list[Event] = [Lost(number, "lost", message) for number in sorted(worker.open)]
        with contextlib.suppress(ValueError):
            self._workers.remove(worker)
        with contextlib.suppress(Exception):
            self._ray.kill(worker.actor)
        return lost


def _start_reaper(folder: str) -> subprocess.Popen[bytes]:
    """Watch over this process from outside; see `sweep.reaper`."""
    command = [sys.executable, "-m", "sweep.reaper", str(os.getpid()), folder]
    # In a session of its own: it is needed most when the whole process group is killed.
    return subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
