"""Runs jobs with Ray: whole devices as resources, warm actors as workers.

This folder is the only part of the project that imports Ray. Ray Core rather than Ray Tune: Tune's
searcher would replace Optuna's pruners and report a stopped trial as complete.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sweep.driver.executor import (
    Event,
    Evicted,
    ExecutorLostError,
    Finished,
    Interrupted,
    Job,
    Lost,
    SlotsChanged,
)
from sweep.ray_backend.cluster import Cluster
from sweep.ray_backend.health import Heartbeats, Leases, LossAction, action_on_loss, reason_of
from sweep.ray_backend.liveness.watch import RayLostError
from sweep.ray_backend.node.settings import RESOURCE, RaySettings
from sweep.ray_backend.scheduler import Scheduler
from sweep.ray_backend.worker_group import GroupState, WorkerGroup
from trial.store.control import StopReason
from trial.store.records import CauseKind

log = logging.getLogger(__name__)


RESTARTS, RESTART_SECONDS = 3, 3600.0
"""How often a local Ray is started again within so many seconds."""

ENDING_SECONDS = 0.5
"""How long a Ray that ends may take to do so, once its workers have ended."""


class Restarts:
    """Counts how often a local Ray has ended."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._times: deque[float] = deque()

    def note(self, reason: str) -> None:
        """Count one end.

        Raises:
            ExecutorLostError: it was one too many.
        """
        now = self._clock()
        while self._times and self._times[0] <= now - RESTART_SECONDS:
            self._times.popleft()
        self._times.append(now)
        if len(self._times) > RESTARTS:
            times = f"{len(self._times)} times within {RESTART_SECONDS / 60:.0f} minutes"
            raise ExecutorLostError(f"Ray has ended {times}, the last time because {reason}")


class RayExecutor:
    """An `Executor` on the devices of this machine or of a Ray cluster."""

    def __init__(self, settings: RaySettings) -> None:
        self.settings = settings
        self.cluster = Cluster(settings)
        self.scheduler = Scheduler(self.cluster, settings)
        self._heartbeats = Heartbeats(self.cluster)
        self.restarts = Restarts()
        self._capacity = 1
        """As last known."""
        self._events: list[Event] = []
        """What has happened and was not returned yet."""
        self.cluster.beat = Leases(self.cluster, lambda: self.scheduler.groups).renew

    @property
    def device(self) -> str:
        """The device of the workers; "auto" may stay until `start`."""
        return self.cluster.device

    @property
    def fork_server(self) -> Path | None:
        """Socket of the process that forks workers of a local Ray; None where there is none."""
        server = self.cluster.fork_server
        return server.path if server is not None else None

    def start(self) -> None:
        """Connect to Ray or start one; begin to start and warm the first workers.

        Raises:
            ConnectionError: there is no Ray to connect to, or none can be started.
            ValueError: the machine or the device cannot hold a trial.
        """
        try:
            self.cluster.connect()
            self.scheduler.start_groups()
            self._capacity = self.scheduler.capacity()
        except RayLostError as error:
            raise ConnectionError(f"Ray ended as soon as it had started: {error}") from error

    def capacity(self) -> int:
        """How many trials fit the cluster as it is now; at least one, to let a cluster grow."""
        # Of a Ray that is gone as many as it had, until it is known to be gone.
        with contextlib.suppress(RayLostError):
            if self.cluster.ray is not None:
                self._capacity = self.scheduler.capacity()
        return self._capacity

    def describe(self) -> str:
        """Devices and workers in words."""
        settings, workers = self.settings, self.capacity()
        threads = settings.cpus_per_trial
        each = f"{threads} CPU thread{'s' * (threads > 1)}"
        if self.device != "cpu":
            each = f"{settings.devices_per_trial} {RESOURCE[self.device]}"
        elif settings.devices_per_trial > 1:
            each = f"{settings.devices_per_trial} ranks, {each} a rank,"
        return f"{workers} worker{'s' * (workers > 1)} of {each} each"

    def submit(self, job: Job) -> None:
        """Give the job to a worker: one with a free slot, an idle one, or a new one.

        Raises:
            ExecutorLostError: Ray is gone and does not start again.
            ValueError: several trials for several ranks.
        """
        if self.cluster.ray is None:
            self._start_again()
        if self.settings.devices_per_trial > 1 and len(job.trials) > 1:
            raise ValueError("a job that is not packed trains one trial on several devices")
        # Where Ray is gone by now the job waits, and `events` gives it back.
        with contextlib.suppress(RayLostError):
            self.scheduler.submit(job)

    def stop(self, number: int, reason: StopReason) -> None:
        """Pass the request to the worker that has the trial; of several ranks to the first."""
        for group in self.scheduler.groups:
            group.stop(number, reason)
        if self.scheduler.queue.drop(number):
            # It has not begun: its folder is as it was.
            self._events.append(Interrupted(number))

    def events(self, timeout: float) -> list[Event]:
        """Everything that has happened, waiting at most `timeout` seconds for the first."""
        until = time.monotonic() + timeout
        while True:
            try:
                self._turn(until)
            except RayLostError as error:
                self._ray_lost(str(error))
            if self._events or time.monotonic() >= until:
                found, self._events = self._events, []
                return found

    def _turn(self, until: float) -> None:
        """Receive what is there, or wait for it; then place jobs.

        Raises:
            RayLostError: Ray is gone. What has been received is in `_events`.
        """
        if self.cluster.ray is None:
            time.sleep(max(0.0, until - time.monotonic()))
            return
        self.cluster.check()
        self._heartbeats.check(self.scheduler.groups, time.monotonic())
        for group, rank in self._ready(time.monotonic() if self._events else until):
            if rank in group.streams:
                self._events += self._receive(group, rank)
        for group in [g for g in self.scheduler.groups if g.state is GroupState.FAILING]:
            self._events += self._conclude(group)
        self.scheduler.hand_over()
        self.scheduler.dispatch()

    def _ray_lost(self, reason: str) -> None:
        """Give all trials back to the driver; the next one that it submits starts Ray again.

        Raises:
            ExecutorLostError: the cluster is gone, or Ray ends too often.
        """
        numbers = sorted(self.scheduler.abandon())
        self.cluster.disconnect(wait=True)
        if self.settings.address is not None:
            raise ExecutorLostError(f"the Ray cluster at {self.settings.address}: {reason}")
        self.restarts.note(reason)
        message = f"Ray is started again: {reason}"
        self._events += [Lost(number, "lost", message, again=True) for number in numbers]

    def _start_again(self) -> None:
        try:
            self.start()
        except (OSError, ValueError) as error:
            raise ExecutorLostError(f"Ray is gone: {error}") from error

    def _ready(self, until: float) -> list[tuple[WorkerGroup, int]]:
        """Ranks whose stream has an event, as soon as one has."""
        now, groups = time.monotonic(), self.scheduler.groups
        streams = {id(s): (group, rank) for group in groups for rank, s in group.streams.items()}
        limits = [left for group in groups if (left := group.grace_left(now)) is not None]
        if streams and (next_check := self._heartbeats.next_check()) is not None:
            limits.append(next_check)
        wait = max(0.0, min([until - now, *limits]))
        if not streams:
            time.sleep(wait)
            return []
        waiting = [stream for group in groups for stream in group.streams.values()]
        ready, _ = self.cluster.ray.wait(waiting, num_returns=1, timeout=wait)
        return [streams[id(stream)] for stream in ready]

    def _receive(self, group: WorkerGroup, rank: int) -> list[Event]:
        """Take the next event of a rank's stream, which is ready."""
        ray: Any = self.cluster.ray
        try:
            event, reusable = ray.get(next(group.streams[rank]))
        except StopIteration:
            if group.key is not None and not group.open:
                self.scheduler.packed_job_ended(group)
                return []
            group.rank_ended(rank, None, time.monotonic())
            return self._conclude(group)
        except ray.exceptions.RayError as error:
            return self._worker_lost(group, rank, error)
        group.heard()
        if isinstance(event, SlotsChanged):
            self.scheduler.resized(group, event.slots)
            return []
        if isinstance(event, Evicted):
            self.scheduler.evicted(group, event)
            return []
        if not isinstance(event, Finished | Interrupted | Lost):
            return [event] if rank == 0 else []
        if not group.single and group.key is None:
            group.rank_ended(rank, event, time.monotonic())
            return self._conclude(group)
        return self._trial_ended(group, event, reusable) if rank == 0 else []

    def _trial_ended(
        self, group: WorkerGroup, event: Finished | Interrupted | Lost, reusable: bool
    ) -> list[Event]:
        """Note that a trial of one rank, or of a packed job, has ended."""
        group.open.discard(event.number)
        if not group.open and group.key is None:
            group.finish()
            if not reusable:
                self.scheduler.retire(group)
        return [event]

    def _worker_lost(self, group: WorkerGroup, rank: int, error: Exception) -> list[Event]:
        """Handle the death of a worker process or its node.

        Raises:
            RayLostError: Ray itself has ended, and the worker with it.
        """
        log.warning("a worker was lost: %s", error)
        self.cluster.check(wait=ENDING_SECONDS)
        action = action_on_loss(
            group.state, packed=group.key is not None, has_trials=bool(group.open)
        )
        if action is LossAction.DISCARD:
            self.scheduler.discard(group)
            return []
        if action is LossAction.RESTART:
            self.scheduler.restart(group)
            return []
        self.scheduler.halve_slots(group)
        full = isinstance(error, self.cluster.ray.exceptions.OutOfMemoryError)
        kind: CauseKind = "out_of_memory" if full else "lost"
        last = Lost(min(group.open), kind, reason_of(error))
        group.rank_ended(rank, last, time.monotonic())
        return self._conclude(group)

    def _conclude(self, group: WorkerGroup) -> list[Event]:
        """End a group that is not used again, once it is clear how its job ended."""
        last = group.outcome(time.monotonic())
        if last is None:
            return []
        self.scheduler.retire(group)
        if isinstance(last, Lost):
            return [Lost(number, last.kind, last.message) for number in sorted(group.open)]
        return [last]

    def close(self, *, wait: bool = True) -> None:
        """End the workers and the local Ray, if there is one.

        Without `wait` Ray goes down in a thread that the process does not end before.
        """
        if self.cluster.ray is None:
            return
        for group in list(self.scheduler.groups):
            self.scheduler.retire(group)
        self.cluster.disconnect(wait=wait)
