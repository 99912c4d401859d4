"""Disk space of a study: trials start only while there is enough, old checkpoints are removed.

A finished trial that may be trained for longer needs its last checkpoint: the best few keep theirs.
Checkpoints of pruned and failed trials are removed.
"""

from __future__ import annotations

import shutil
from bisect import insort
from dataclasses import dataclass, field

from sweep.spec.spec import ObjectiveSpec, ResourceSpec
from trial.store import metrics
from trial.store.folders import StudyFolder, TrialFolder
from trial.store.records import Result

GB = 10**9


@dataclass(slots=True)
class DiskGuard:
    """Says whether there is space for another trial; removes checkpoints of ended trials."""

    study: StudyFolder
    resources: ResourceSpec = field(default_factory=ResourceSpec)
    goal: ObjectiveSpec = field(default_factory=ObjectiveSpec)
    largest: int = 0
    """Bytes of the largest folder of a trial that has ended in this run."""
    _best: list[tuple[float, int]] = field(default_factory=list)
    """Loss (the objective, negated when maximised) and number of the trials that keep their
    checkpoint, ascending."""

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
        objective = metrics.of_result(result, self.goal.metric)
        if result.state != "complete" or objective is None:
            remove_checkpoints(folder)
            return
        loss = -objective if self.goal.direction == "maximize" else objective
        insort(self._best, (loss, number))
        for _, worse in self._best[self.resources.keep_checkpoints :]:
            remove_checkpoints(self.study.trial(worse))
        del self._best[self.resources.keep_checkpoints :]


def remove_checkpoints(folder: TrialFolder) -> None:
    """Remove a trial's checkpoints, if it has any."""
    shutil.rmtree(folder.checkpoints, ignore_errors=True)


def folder_bytes(folder: TrialFolder) -> int:
    """Bytes of a trial's files."""
    total = 0
    for path in folder.path.rglob("*"):
        try:
            total += path.lstat().st_size
        except OSError:
            continue  # Removed meanwhile.
    return total
