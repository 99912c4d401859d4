"""The actors that train one job together: one, or one for each rank. And what their ends mean."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sweep.driver.executor import Event, Finished, Interrupted, Job, Lost, TrialRef

GRACE = 10.0
"""Seconds that the other ranks get to say what they know, once one has ended badly."""


@dataclass(slots=True)
class WorkerGroup:
    """Actors, what they hold, and what they are doing."""

    actors: list[Any]
    """In the order of ranks."""
    placements: list[Any] = field(default_factory=list)
    """References to the ranks' seats; empty when a worker needs none."""
    group: Any = None
    """The placement group of several ranks."""
    up: Any = None
    """A reference that is ready once the first actor runs."""
    pulses: dict[int, tuple[float, Any]] = field(default_factory=dict)
    """When each rank was last asked for a sign of life, and the reference of its answer."""
    job: Job | None = None
    streams: dict[int, Any] = field(default_factory=dict)
    """Event streams of the ranks that still speak."""
    open: set[int] = field(default_factory=set)
    """Trials of the job that have neither ended nor been interrupted."""
    ended: dict[int, Event | None] = field(default_factory=dict)
    """The last word of each rank that has ended; None when it only saw another go."""
    heard: bool = False
    """Whether the job has been heard of."""
    used: bool = False
    """Whether it has done a job before."""
    since: float = 0.0
    """When it was given its job, on the monotonic clock."""
    key: str | None = None
    """What trials of its packed job have in common; such a job goes on until it is let go."""
    width: int = 1
    """How many trials its packed job holds at once."""
    placed: dict[int, TrialRef] = field(default_factory=dict)
    """Trials of a packed job by their numbers."""
    after: Job | None = None
    """What it does once its packed job, which was let go, has ended."""
    troubled: float | None = None
    """When the first rank ended badly."""

    @property
    def single(self) -> bool:
        """Whether one process does the job."""
        return len(self.actors) == 1

    def has_room(self, key: str) -> bool:
        """Whether a trial can join its packed job."""
        return self.key == key and self.after is None and len(self.open) < self.width

    @property
    def idle(self) -> bool:
        """Whether it trains nothing."""
        return self.job is None or (self.key is not None and not self.open and not self.after)

    def join(self, job: Job) -> None:
        """Give its packed job one more."""
        for placed in job.trials:
            self.open.add(placed.number)
            self.placed[placed.number] = placed
            self.actors[0].add.remote(placed)

    def turn_to(self, job: Job, width: int, limit: int) -> None:
        """Do a job: at once, or as soon as a packed job without trials has been let go."""
        if self.job is None:
            self.take(job, width, limit)
        else:
            self.after = job
            self.actors[0].leave.remote()

    def take(self, job: Job, width: int = 1, limit: int = 1) -> None:
        """Start a job; arguments that are references are waited for by Ray."""
        self.job = job
        self.key, self.width, self.after = job.key, max(1, width), None
        self.placed = {placed.number: placed for placed in job.trials}
        self.open = {placed.number for placed in job.trials}
        self.ended, self.troubled, self.heard = {}, None, False
        self.since = time.monotonic()
        self.pulses = {}
        self.streams = {
            rank: actor.run.remote(job, rank, *self.placements, slots=width, limit=limit)
            for rank, actor in enumerate(self.actors)
        }

    def end(self, rank: int, last: Event | None, now: float) -> None:
        """Note the end of a rank."""
        self.streams.pop(rank, None)
        self.ended[rank] = last
        if self.troubled is None and _is_bad(last):
            self.troubled = now

    def left(self, now: float) -> float | None:
        """Seconds until it must be said how the job ended; None when there is no hurry."""
        return None if self.troubled is None else max(0.0, self.troubled + GRACE - now)

    def verdict(self, now: float) -> Event | None:
        """How the job has ended; None as long as nobody can tell."""
        if self.single:
            return self.ended.get(0) or Lost(min(self.open), "lost", "the worker fell silent")
        overdue = self.troubled is not None and now >= self.troubled + GRACE
        number = min(self.open, default=0)
        return verdict(number, self.ended, overdue or not self.streams)


def _is_bad(last: Event | None) -> bool:
    if isinstance(last, Finished):
        return last.result.state == "failed"
    return not isinstance(last, Interrupted)


def verdict(number: int, ended: Mapping[int, Event | None], last_call: bool) -> Event | None:
    """How a trial of several ranks has ended, from the last words so far; None to wait for more.

    Rank 0's own word counts, for it writes the folder. A rank that died ends the trial at once.
    Else the first rank that failed by itself says why, which those that only saw it go cannot.
    """
    first = ended.get(0)
    if isinstance(first, Finished | Interrupted):
        return first
    for rank in sorted(ended):
        if isinstance(last := ended[rank], Lost):
            return Lost(number, last.kind, f"rank {rank}: {last.message}")
    if not (last_call or 0 in ended):
        return None
    for rank in sorted(ended):
        last = ended[rank]
        if isinstance(last, Finished) and last.result.cause is not None:
            cause = last.result.cause
            return Lost(number, cause.kind, f"rank {rank}: {cause.message}")
    return Lost(number, "lost", "the ranks of the trial lost each other") if last_call else None
