"""The journal file of a study, in Optuna's format, written by the one driver that holds the study.

Every line is synced to disk before the driver goes on, but for evaluations: each of those is on
disk already, in its trial's folder, from which a resume reports what the journal lacks.
"""

from __future__ import annotations

import copy
import errno
import json
import os
from collections.abc import Container
from typing import Any

from optuna.storages import JournalStorage
from optuna.trial import FrozenTrial, TrialState

from sweep.storage import compat

UNFINISHED = {TrialState.RUNNING, TrialState.WAITING}


class Journal(compat.UnlockedJournalFile):
    """Appends operations to a file; `sweep.study.study_lock` keeps other drivers out."""

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append; syncs to disk unless a resume could restore all of it.

        Raises:
            FileNotFoundError: somebody has removed the file. Appending would make another, without
                what was there.
        """
        if not os.path.exists(self.path):
            raise FileNotFoundError(errno.ENOENT, "the journal is gone", self.path)
        if any(log["op_code"] != compat.INTERMEDIATE_VALUE for log in logs):
            super().append_logs(logs)
            return
        lines = [json.dumps(log, separators=(",", ":")) + "\n" for log in logs]
        with open(self.path, "ab") as file:
            file.write("".join(lines).encode())


class SingleDriverStorage(JournalStorage):
    """Optuna's journal storage, which finds unfinished trials without reading the whole study.

    Optuna looks for waiting trials at every ask, and reads all trials for that.
    """

    def __init__(self, backend: Journal) -> None:
        self._seen: dict[int, tuple[int, list[int]]] = {}
        """By study: how many of its trials were looked at, and the ids of the unfinished ones."""
        super().__init__(backend)

    def get_all_trials(
        self,
        study_id: int,
        deepcopy: bool = True,
        states: Container[TrialState] | None = None,
    ) -> list[FrozenTrial]:
        """As `JournalStorage.get_all_trials`."""
        if not isinstance(states, tuple) or not UNFINISHED.issuperset(states):
            return super().get_all_trials(study_id, deepcopy, states)
        with compat.replayed(self) as trials:
            found = [t for t in self._unfinished(trials, study_id) if t.state in states]
            return copy.deepcopy(found) if deepcopy else found

    def _unfinished(self, trials: compat.ReplayedTrials, study_id: int) -> list[FrozenTrial]:
        """Unfinished trials by number. A finished trial never changes: it is looked at once."""
        ids = trials.ids(study_id)
        count, unfinished = self._seen.get(study_id, (0, []))
        candidates = trials.with_ids([*unfinished, *ids[count:]])
        left = [trial for trial in candidates if not trial.state.is_finished()]
        self._seen[study_id] = (len(ids), [compat.trial_id(trial) for trial in left])
        return left
