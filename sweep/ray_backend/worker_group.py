"""The actors that train one job, one for each rank; their state, and how their job has ended."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any

from sweep.driver.executor import Event, Finished, Interrupted, Job, Lost, TrialRef
from sweep.ray_backend import compat
from sweep.ray_backend.cluster import Cluster
from sweep.ray_backend.rank_placement import PlacementRequest
from trial.store.control import StopReason

GRACE_SECONDS = 10.0
"""Seconds that the other ranks get to report what they know, once one has ended badly."""


class GroupState(Enum):
    """What a worker group is doing."""

    NEW = auto()
    """Its actors are starting or have started; it has had no job."""
    IDLE = auto()
    """Warm, without a job."""
    STARTING = auto()
    """A new group has its first job, of which nothing has been heard: Ray may have no place yet."""
    ASSIGNED = auto()
    """A warm group has its next job, of which nothing has been heard."""
    RUNNING = auto()
    """An event of its job has come. A packed job without trials runs on until asked to end."""
    DRAINING = auto()
    """Its packed job, which has no trials, was asked to end; another job follows."""
    FAILING = auto()
    """A rank ended badly; the others may still report why."""
    RETIRED = auto()
    """Its actors were killed."""


_S = GroupState
TRANSITIONS: dict[GroupState, frozenset[GroupState]] = {
    _S.NEW: frozenset({_S.STARTING, _S.RETIRED}),
    _S.IDLE: frozenset({_S.ASSIGNED, _S.RETIRED}),
    _S.STARTING: frozenset({_S.RUNNING, _S.FAILING, _S.RETIRED}),
    _S.ASSIGNED: frozenset({_S.RUNNING, _S.FAILING, _S.RETIRED}),
    _S.RUNNING: frozenset({_S.IDLE, _S.DRAINING, _S.FAILING, _S.RETIRED}),
    _S.DRAINING: frozenset({_S.ASSIGNED, _S.RETIRED}),
    _S.FAILING: frozenset({_S.RETIRED}),
    _S.RETIRED: frozenset(),
}
"""The states that may follow each state."""


@dataclass(slots=True, eq=False)
class WorkerGroup:
    """Actors, the resources they hold, and the job they train."""

    actors: list[Any]
    """In the order of ranks."""
    placements: list[Any] = field(default_factory=list)
    """References to the `RankPlacement` of each rank; empty when a worker needs none."""
    placement_group: Any = None
    """Ray's placement group of several ranks."""
    up: Any = None
    """A reference that is ready once the first actor runs."""
    state: GroupState = GroupState.NEW
    job: Job | None = None
    """The job it was given; None in the states NEW and IDLE."""
    next_job: Job | None = None
    """While it drains: the job that follows."""
    slots: int = 1
    """Trials that its packed job holds at once."""
    streams: dict[int, Any] = field(default_factory=dict)
    """Event streams of the ranks that have not ended."""
    trials: dict[int, TrialRef] = field(default_factory=dict)
    """All trials that its job was given, by their numbers."""
    open: set[int] = field(default_factory=set)
    """Numbers of those that have neither ended nor been interrupted."""
    ended: dict[int, Event | None] = field(default_factory=dict)
    """The last event of each rank that has ended; None when it only saw another rank fail."""
    assigned_at: float = 0.0
    """When it was given its job, on the monotonic clock."""
    failed_at: float | None = None
    """When the first rank ended badly."""
    heartbeats: dict[int, tuple[float, Any]] = field(default_factory=dict)
    """When each rank was last asked for a sign of life, and the reference of its answer."""

    @property
    def single(self) -> bool:
        """Whether one process does the job."""
        return len(self.actors) == 1

    @property
    def key(self) -> str | None:
        """Key of its packed job (`trial.config.packing_rules`); None without a packed job."""
        return self.job.key if self.job is not None else None

    @property
    def free(self) -> bool:
        """Whether it has no job."""
        return self.state in (GroupState.NEW, GroupState.IDLE)

    @property
    def empty(self) -> bool:
        """Whether it runs a packed job that has no trials."""
        return self.state is GroupState.RUNNING and self.key is not None and not self.open

    def has_slot(self, key: str) -> bool:
        """Whether a trial can join its packed job."""
        running = self.state in (GroupState.STARTING, GroupState.ASSIGNED, GroupState.RUNNING)
        return running and self.key == key and len(self.open) < self.slots

    def to(self, state: GroupState) -> None:
        """Change the state.

        Raises:
            RuntimeError: the state may not follow the present one.
        """
        if state not in TRANSITIONS[self.state]:
            raise RuntimeError(f"a worker group is {self.state.name}, it cannot be {state.name}")
        self.state = state

    def assign(self, job: Job, slots: int = 1, limit: int = 1) -> None:
        """Start a job; arguments that are references are waited for by Ray."""
        self.to(GroupState.STARTING if self.state is GroupState.NEW else GroupState.ASSIGNED)
        self.job, self.next_job = job, None
        self.slots = max(1, slots)
        self.trials = {trial.number: trial for trial in job.trials}
        self.open = set(self.trials)
        self.ended, self.failed_at = {}, None
        self.assigned_at = time.monotonic()
        self.heartbeats = {}
        self.streams = {
            rank: actor.run.remote(job, rank, *self.placements, slots=slots, limit=limit)
            for rank, actor in enumerate(self.actors)
        }

    def join(self, job: Job) -> None:
        """Add the trials of a job to the packed job that it has."""
        for trial in job.trials:
            self.open.add(trial.number)
            self.trials[trial.number] = trial
            self.actors[0].add.remote(trial)

    def drain(self, next_job: Job) -> None:
        """End its packed job, which has no trials, to do another."""
        self.to(GroupState.DRAINING)
        self.next_job = next_job
        self.actors[0].leave.remote()

    def stop(self, number: int, reason: StopReason) -> None:
        """Pass a request to stop to the first rank, if the trial is or will be here."""
        follows = self.next_job is not None and self.next_job.trials[0].number == number
        if number in self.open or follows:
            self.actors[0].stop.remote(number, reason)

    def heard(self) -> None:
        """Note that an event of its job has come."""
        if self.state in (GroupState.STARTING, GroupState.ASSIGNED):
            self.to(GroupState.RUNNING)

    def finish(self) -> None:
        """Note that its job has ended, all trials with their results."""
        self.to(GroupState.IDLE)
        self.job = None
        self.streams.clear()

    def rank_ended(self, rank: int, last: Event | None, now: float) -> None:
        """Note the end of a rank and its last event."""
        self.streams.pop(rank, None)
        self.ended[rank] = last
        if self.failed_at is None and _is_bad(last):
            self.failed_at = now
            self.to(GroupState.FAILING)

    def retire(self) -> None:
        """Note that its actors are being killed."""
        if self.state is not GroupState.RETIRED:
            self.to(GroupState.RETIRED)
        self.streams.clear()

    def grace_left(self, now: float) -> float | None:
        """Seconds until it is decided how the job ended; None unless a rank ended badly."""
        if self.failed_at is None:
            return None
        return max(0.0, self.failed_at + GRACE_SECONDS - now)

    def outcome(self, now: float) -> Event | None:
        """How the job has ended; None as long as that is open."""
        number = min(self.open, default=0)
        if self.single:
            return self.ended.get(0) or Lost(number, "lost", "the worker fell silent")
        return rank_outcome(number, self.ended, self.grace_left(now) == 0.0 or not self.streams)


def _is_bad(last: Event | None) -> bool:
    if isinstance(last, Finished):
        return last.result.state == "failed"
    return not isinstance(last, Interrupted)


def rank_outcome(number: int, ended: Mapping[int, Event | None], grace_over: bool) -> Event | None:
    """How a trial of several ranks has ended, from their last events; None to wait for more.

    Rank 0's own event counts, for it writes the folder. A rank that died ends the trial at once.
    Otherwise the first rank that failed by itself gives the cause, which those that only saw it
    fail cannot.

    Args:
        number: The trial's number.
        ended: The last event of each rank that has ended, None when it only saw another one fail.
        grace_over: Whether no more ranks are waited for.
    """
    first = ended.get(0)
    if isinstance(first, Finished | Interrupted):
        return first
    for rank in sorted(ended):
        if isinstance(last := ended[rank], Lost):
            return Lost(number, last.kind, f"rank {rank}: {last.message}")
    if not (grace_over or 0 in ended):
        return None
    for rank in sorted(ended):
        last = ended[rank]
        if isinstance(last, Finished) and last.result.cause is not None:
            cause = last.result.cause
            return Lost(number, cause.kind, f"rank {rank}: {cause.message}")
    return Lost(number, "lost", "the ranks of the trial lost each other") if grace_over else None


def start_group(cluster: Cluster) -> WorkerGroup:
    """Ask Ray for the actors of a trial; they start when there is a place for them.

    Raises:
        RayLostError: Ray is gone.
    """
    group: WorkerGroup = cluster.call(lambda: _start_group(cluster))
    return group


def _start_group(cluster: Cluster) -> WorkerGroup:
    if cluster.settings.devices_per_trial == 1:
        # Nodes are filled evenly: a lost one takes as few trials with it as can be.
        group = WorkerGroup([_start_actor(cluster, scheduling_strategy="SPREAD")])
        requests = [PlacementRequest(hpus=1)] if cluster.device == "hpu" else []
    else:
        group, requests = _start_ranks(cluster)
    pairs = zip(group.actors, requests, strict=False)
    group.placements = [actor.placement.remote(request) for actor, request in pairs]
    group.up = group.actors[0].pid.remote()
    return group


def _start_ranks(cluster: Cluster) -> tuple[WorkerGroup, list[PlacementRequest]]:
    """One actor for each rank, on one node when some node is large enough."""
    from ray.util.placement_group import placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    size, bundle_ranks = cluster.settings.devices_per_trial, cluster.bundle_ranks()
    single_node = size == bundle_ranks or cluster.fits_one_node()
    bundles = [cluster.rank_resources(bundle_ranks)] * (size // bundle_ranks)
    group = placement_group(bundles, strategy="STRICT_PACK" if single_node else "PACK")
    actors = [
        _start_actor(
            cluster,
            scheduling_strategy=PlacementGroupSchedulingStrategy(
                group, placement_group_bundle_index=rank // bundle_ranks
            ),
        )
        for rank in range(size)
    ]
    locks_hpus = cluster.device == "hpu"
    requests = [
        PlacementRequest(
            rendezvous=rank == 0,
            hpus=bundle_ranks if locks_hpus and rank % bundle_ranks == 0 else 0,
            single_node=single_node,
        )
        for rank in range(size)
    ]
    return WorkerGroup(actors, placement_group=group), requests


def _start_actor(cluster: Cluster, **options: Any) -> Any:
    need, settings = cluster.rank_resources(), cluster.settings
    if cluster.device == "hpu":
        # The workers choose the modules; see `sweep.ray_backend.device_locks`. Habana reads its
        # settings when Python starts.
        habana = {k: v for k, v in settings.environment.items() if k.startswith("PT_HPU_")}
        options["runtime_env"] = {"env_vars": {**compat.KEEP_MODULES, **habana}}
    # Three threads: one trains, one hears that it should stop, one answers where it is placed.
    actor = cluster.actor_class.options(
        max_concurrency=3,
        max_restarts=0,
        num_cpus=need.pop("CPU", 0),
        num_gpus=need.pop("GPU", 0),
        resources=need,
        **options,
    )
    return actor.remote(cluster.worker_environment(), cluster.device, settings.hang_seconds)
