"""Workers that hang or die: heartbeats, leases, and what follows when a worker is lost."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from enum import Enum, auto
from typing import Any

from sweep.driver.executor import Lost
from sweep.ray_backend import compat
from sweep.ray_backend.cluster import Cluster
from sweep.ray_backend.liveness.lease import RENEWAL_SECONDS
from sweep.ray_backend.worker_group import GroupState, WorkerGroup


class Heartbeats:
    """Asks the workers of running jobs for a sign of life.

    A worker ends a trial that hangs by itself, but cannot notice when its whole process stands
    still, as in a library that holds the GIL.
    """

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._interval = cluster.settings.refresh_seconds
        self._hang_seconds = cluster.settings.hang_seconds

    def check(self, groups: Iterable[WorkerGroup], now: float) -> None:
        """Note the end of each rank that has not answered for too long; ask the others again."""
        if self._hang_seconds is None:
            return
        for group in groups:
            if not (group.job and group.open and self._cluster.is_ready(group.up)):
                group.heartbeats.clear()
                continue
            for rank in list(group.streams):
                self._check_rank(group, rank, now, self._hang_seconds)

    def _check_rank(self, group: WorkerGroup, rank: int, now: float, hang_seconds: float) -> None:
        asked_at, answer = group.heartbeats.get(rank, (now, None))
        answered = answer is not None and self._cluster.is_ready(answer)
        silent = now - asked_at
        if answer is None or (answered and silent > self._interval):
            group.heartbeats[rank] = (now, group.actors[rank].pid.remote())
        elif silent > hang_seconds and not answered:
            message = f"its process has not answered in {silent / 60:.3g} minutes"
            group.rank_ended(rank, Lost(min(group.open), "hung", message), now)

    def next_check(self) -> float | None:
        """Seconds until the workers must be asked again; None when they are not asked."""
        return None if self._hang_seconds is None else self._interval


class Leases:
    """Renews the leases of the workers, in the thread that watches Ray."""

    def __init__(
        self,
        cluster: Cluster,
        groups: Callable[[], Iterable[WorkerGroup]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._cluster = cluster
        self._groups = groups
        self._clock = clock
        self._answers: dict[Any, Any] = {}
        """The last answer of each actor; one that has not answered is not asked again."""
        self._due = -float("inf")

    def renew(self) -> None:
        """Renew them all when `RENEWAL_SECONDS` have passed since the last time."""
        now = self._clock()
        if now < self._due:
            return
        self._due = now + RENEWAL_SECONDS
        before, self._answers = self._answers, {}
        for group in list(self._groups()):
            for actor in group.actors:
                answer = before.get(actor)
                if answer is None or self._cluster.is_ready(answer):
                    answer = actor.renew_lease.remote()
                self._answers[actor] = answer


class LossAction(Enum):
    """What follows when a worker process or its node is lost."""

    DISCARD = auto()
    """Nothing ran on it: replace it when there is work, and give the job that was to follow to
    another."""
    RESTART = auto()
    """It died before its next job began: nothing has happened to the trials, start them again."""
    REPORT = auto()
    """Its trials are lost; the driver decides about another attempt."""


def action_on_loss(state: GroupState, *, packed: bool, has_trials: bool) -> LossAction:
    """What follows when a worker of a group is lost.

    Args:
        state: What the group was doing.
        packed: Whether its job is a packed one.
        has_trials: Whether trials of its job have not ended.
    """
    if packed and not has_trials:
        return LossAction.DISCARD
    if state is GroupState.ASSIGNED:
        return LossAction.RESTART
    return LossAction.REPORT


def reason_of(error: Exception) -> str:
    """Ray's description of a lost worker in one line: what kept it from starting comes last."""
    from rich.text import Text

    plain = Text.from_ansi(str(error)).plain
    lines = [line.strip() for line in plain.splitlines() if line.strip()] or [repr(error)]
    if compat.CREATION_FAILED in lines[0]:
        return f"the worker could not start: {lines[-1]}"
    return lines[0]
