"""Runs jobs with Ray: whole devices as resources, warm actors as workers.

This folder is the only part of the project that imports Ray. Ray Core rather than Ray Tune: Tune's
searcher would replace Optuna's pruners and report a stopped trial as complete.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

from sweep.driver.executor import Event, Evicted, Finished, Interrupted, Job, Lost, SlotsChanged
from sweep.ray_backend.cluster import RESOURCE, Cluster, RaySettings
from sweep.ray_backend.health import Heartbeats, LossAction, action_on_loss, reason_of
from sweep.ray_backend.scheduler import Scheduler
from sweep.ray_backend.worker_group import GroupState, WorkerGroup
from trial.store.control import StopReason
from trial.store.records import CauseKind

log = logging.getLogger(__name__)


class RayExecutor:
    """An `Executor` on the devices of this machine or of a Ray cluster."""

    def __init__(self, settings: RaySettings) -> None:
        self.settings = settings
        self.cluster = Cluster(settings)
        self.scheduler = Scheduler(self.cluster, settings)
        self._heartbeats = Heartbeats(self.cluster)
        self._events: list[Event] = []
        """Events that did not come from a worker."""

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
        """Connect to Ray or start one; begin to start and warm the first workers."""
        self.cluster.connect()
        self.scheduler.start_groups()

    def capacity(self) -> int:
        """How many trials fit the cluster as it is now; at least one, to let a cluster grow."""
        return self.scheduler.capacity()

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
            ValueError: several trials for several ranks.
        """
        if self.settings.devices_per_trial > 1 and len(job.trials) > 1:
            raise ValueError("a job that is not packed trains one trial on several devices")
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
            self._heartbeats.check(self.scheduler.groups, time.monotonic())
            found, self._events = self._events, []
            for group, rank in self._ready(time.monotonic() if found else until):
                if rank in group.streams:
                    found += self._receive(group, rank)
            for group in [g for g in self.scheduler.groups if g.state is GroupState.FAILING]:
                found += self._conclude(group)
            self.scheduler.hand_over()
            self.scheduler.dispatch()
            if found or time.monotonic() >= until:
                return found

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
        """Handle the death of a worker process or its node."""
        log.warning("a worker was lost: %s", error)
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
