"""Which worker group trains a job: one with a free slot, an idle one, or a new one; else it waits.

A worker whose packed job has a free slot takes only trials that may share it. Were the oldest job
always first, devices would idle; were it never, a job of another kind would wait for the study's
end. So later jobs may overtake a limited number of times.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from sweep.driver.executor import Evicted, Job
from sweep.ray_backend.cluster import Cluster
from sweep.ray_backend.node.settings import RaySettings
from sweep.ray_backend.worker_group import GroupState, WorkerGroup, start_group

MAX_OVERTAKES = 32
"""Later jobs that may be placed before the oldest one; then all wait for it."""

MAX_SLOTS = 16
"""Most slots that a packed job chooses by itself."""


@dataclass(slots=True)
class _Waiting:
    job: Job
    overtaken: int = 0


@dataclass(slots=True)
class JobQueue:
    """Jobs that wait for a worker group, oldest first."""

    _jobs: list[_Waiting] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self._jobs)

    def add(self, job: Job) -> None:
        """Append a job."""
        self._jobs.append(_Waiting(job))

    def drop(self, number: int) -> bool:
        """Remove the job of a trial; False when it does not wait here."""
        kept = [w for w in self._jobs if all(trial.number != number for trial in w.job.trials)]
        found = len(kept) < len(self._jobs)
        self._jobs = kept
        return found

    def clear(self) -> set[int]:
        """Remove all jobs; returns the numbers of their trials."""
        found = {trial.number for waiting in self._jobs for trial in waiting.job.trials}
        self._jobs = []
        return found

    def dispatch(self, place: Callable[[Job], bool]) -> None:
        """Offer each job to `place`, oldest first, and remove those that it takes."""
        still: list[_Waiting] = []
        for waiting in self._jobs:
            blocked = any(other.overtaken >= MAX_OVERTAKES for other in still)
            if blocked or not place(waiting.job):
                still.append(waiting)
                continue
            for other in still:
                other.overtaken += 1
        self._jobs = still


class Scheduler:
    """The worker groups, and the jobs that wait for one."""

    def __init__(
        self,
        cluster: Cluster,
        settings: RaySettings,
        start: Callable[[Cluster], WorkerGroup] = start_group,
    ) -> None:
        self.groups: list[WorkerGroup] = []
        self.queue = JobQueue()
        self._cluster = cluster
        self._settings = settings
        self._start = start
        self._packing = False
        """Whether the latest trial may share a job."""
        self._slots = 1
        """Trials that a packed job holds, as far as that is known."""
        self._slot_limits: dict[str, int] = {}
        """Most slots of a packed job by its key, where a worker has died with more trials."""

    def start_groups(self) -> None:
        """Start the first worker groups, which begin to import."""
        capacity = self.capacity()
        count = min(capacity, self._settings.expected_jobs or capacity)
        self.groups = [self._start(self._cluster) for _ in range(count)]

    def capacity(self) -> int:
        """How many trials fit the cluster as it is now; at least one, to let a cluster grow."""
        groups = self._cluster.max_groups(refresh=False)
        return groups * (self._slots if self._packing else 1)

    def submit(self, job: Job) -> None:
        """Give a job to a worker group, or let it wait for one."""
        if self._settings.pack == 1:
            job = replace(job, key=None)
        self._packing = job.key is not None
        self._slots = max(self._slots, self._settings.pack)
        self.queue.add(job)
        self.dispatch()

    def dispatch(self) -> None:
        """Place the waiting jobs for which there is a worker group."""
        self.queue.dispatch(self._place)

    def _place(self, job: Job) -> bool:
        free = next((group for group in self.groups if group.free), None)
        if free is None and (
            self._settings.pack == 1 or len(self.groups) < self._cluster.max_groups()
        ):
            free = self._start(self._cluster)
            self.groups.append(free)
        if job.key is not None:
            joinable = [group for group in self.groups if group.has_slot(job.key)]
            least = min(joinable, key=lambda group: len(group.open), default=None)
            if least is not None and (free is None or not least.open):
                least.join(job)
                return True
        if free is not None:
            free.assign(job, *self.slots_of(job))
            return True
        if (empty := next((group for group in self.groups if group.empty), None)) is not None:
            empty.drain(job)
            return True
        return False

    def slots_of(self, job: Job) -> tuple[int, int]:
        """Slots of a job (0: to be chosen by it), and the most that it may choose."""
        if job.key is None:
            return 1, 1
        limit = self._slot_limits.get(job.key, MAX_SLOTS)
        if self._settings.expected_jobs is not None:
            limit = min(limit, -(-self._settings.expected_jobs // self._cluster.max_groups()))
        pack = self._settings.pack
        return min(pack, self._slot_limits.get(job.key, pack)), limit

    def resized(self, group: WorkerGroup, slots: int) -> None:
        """Note how many trials a packed job holds at once."""
        group.slots = self._slots = slots

    def evicted(self, group: WorkerGroup, event: Evicted) -> None:
        """Let a trial that had to leave its packed job wait for another, or for one of its own."""
        group.open.discard(event.number)
        self.queue.add(Job((group.trials[event.number],), None if event.alone else group.key))

    def halve_slots(self, group: WorkerGroup) -> None:
        """Give later packed jobs of this kind half as many slots.

        Where memory runs out, processes die without an error, and fewer trials take less.
        """
        if group.key is not None and group.slots > 1:
            self._slot_limits[group.key] = group.slots // 2

    def packed_job_ended(self, group: WorkerGroup) -> None:
        """A packed job has ended as asked, or by an error after its trials had left it."""
        if group.next_job is not None and group.single:
            group.assign(group.next_job, *self.slots_of(group.next_job))
        else:
            # The port at which several ranks met is closed: they can meet once only.
            self.discard(group)

    def discard(self, group: WorkerGroup) -> None:
        """End a worker group without trials; the job that was to follow is for another."""
        self.retire(group)
        if group.next_job is not None:
            self.queue.add(group.next_job)

    def restart(self, group: WorkerGroup) -> None:
        """Start the job of a worker that died before it began, and what joined it, on a new one."""
        job = group.job
        self.retire(group)
        if job is None:
            return
        fresh = self._start(self._cluster)
        self.groups.append(fresh)
        fresh.assign(job, *self.slots_of(job))
        for number in group.open - fresh.open:
            fresh.join(Job((group.trials[number],), job.key))

    def hand_over(self) -> None:
        """Give the job of a worker that cannot start to an idle one, on a cluster that shrank.

        Otherwise the idle worker would hold the resources that the other waits for. A worker for
        which there is room is only slow to start: it is left alone for `startup_seconds`.
        """
        if not any(group.single and group.state is GroupState.IDLE for group in self.groups):
            return
        for group in self.groups:
            starting = group.single and group.state is GroupState.STARTING
            if not starting or self._cluster.is_ready(group.up):
                continue
            surplus = len(self.groups) > self._cluster.max_groups()
            waited = time.monotonic() - group.assigned_at
            if surplus or waited > self._settings.startup_seconds:
                self.retire(group)
                for number in sorted(group.open):
                    self.queue.add(Job((group.trials[number],), group.key))
                return

    def abandon(self) -> set[int]:
        """Forget all worker groups and jobs, of a Ray that is gone; the numbers of their trials."""
        numbers = self.queue.clear()
        for group in self.groups:
            numbers |= group.open
            numbers |= (
                {trial.number for trial in group.next_job.trials} if group.next_job else set()
            )
            group.retire()
        self.groups = []
        return numbers

    def retire(self, group: WorkerGroup) -> None:
        """End a worker group that failed or cannot be cleaned; it is replaced and never reused."""
        self.groups = [other for other in self.groups if other is not group]
        group.retire()
        self._cluster.end(group.actors, group.placement_group)
