"""Disk space of a study: trials start only while there is enough, old checkpoints are removed.

A finished trial that may be trained for longer needs its last checkpoint: the best few keep theirs,
of each group that was measured on the same things.
Checkpoints of pruned and failed trials are removed.
"""

from __future__ import annotations

import os
import shutil
from bisect import insort
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from sweep.spec.spec import ObjectiveSpec, ResourceSpec
from trial.store import metrics
from trial.store.folders import StudyFolder, TrialFolder
from trial.store.records import Result
from trial.training.checkpoints import Checkpoints

GB = 10**9

MAX_GROUPS = 8
"""Of at most so many groups, the largest, do the best keep their checkpoints: a search over
`data.split_seed` may have as many groups as trials."""


@dataclass(slots=True)
class DiskGuard:
    """Says whether there is space for another trial; removes checkpoints of ended trials."""

    study: StudyFolder
    resources: ResourceSpec = field(default_factory=ResourceSpec)
    objectives: Sequence[ObjectiveSpec] = (ObjectiveSpec(),)
    largest: int = 0
    """Bytes of the largest folder of a trial that has ended in this run."""
    _best: dict[str, list[tuple[float, int]]] = field(default_factory=dict)
    """By what trials were measured on: loss (the first objective, negated when maximised) and
    number of those that keep their checkpoint, ascending."""
    _complete: Counter[str] = field(default_factory=Counter)
    """Number of complete trials by what they were measured on."""

    def refusal(self) -> str:
        """Why no further trial may start; empty when there is space for one."""
        reserve = int(self.resources.min_free_gb * GB)
        if not reserve:
            return ""
        free = shutil.disk_usage(self.study.path).free
        if free >= reserve + self.largest:
            return ""
        return (
            f"too little free disk space in {self.study.path}: {free / GB:.3g} GB; "
            f"a trial's folder takes {self.largest / GB:.2g} GB and resources.min_free_gb keeps "
            f"{self.resources.min_free_gb:g} GB free"
        )

    def trial_ended(self, number: int, result: Result) -> None:
        """Remove the checkpoints that no longer have to stay, after a trial was committed."""
        folder = self.study.trial(number)
        self.largest = max(self.largest, folder_bytes(folder))
        goal = self.objectives[0]
        objective = metrics.of_result(result, goal.metric)
        if result.state != "complete" or objective is None:
            remove_checkpoints(folder)
            return
        loss = -objective if goal.direction == "maximize" else objective
        names = [one.metric for one in self.objectives]
        group = metrics.measured_on({number: result}, names)[number]
        self._complete[group] += 1
        best = self._best.setdefault(group, [])
        insort(best, (loss, number))
        worse = best[self.resources.keep_checkpoints :]
        del best[self.resources.keep_checkpoints :]
        largest = [name for name, _ in self._complete.most_common(MAX_GROUPS)]
        for name in self._best.keys() - set(largest):
            worse += self._best.pop(name)
        for _, left in worse:
            remove_checkpoints(self.study.trial(left))


def remove_checkpoints(folder: TrialFolder) -> None:
    """Remove a trial's checkpoints, if it has any."""
    Checkpoints(folder).clear()


def folder_bytes(folder: TrialFolder) -> int:
    """Bytes of a trial's files."""
    total = 0
    # Unlike `Path.rglob`, `os.walk` passes over a folder that is removed meanwhile, or that another
    # host has made on a network file system which shows its name before its content.
    for path, _, files in os.walk(folder.path):
        for name in files:
            with suppress(OSError):
                total += os.lstat(os.path.join(path, name)).st_size
    return total
