"""The journal file of a study, as Optuna writes it, under the lease of the one driver.

Every line reaches the disk before the driver goes on, but for evaluations: each of those is on disk
already, in its trial's folder, from which a resume reports what the journal lacks.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Container
from typing import Any

from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.storages.journal._file import BaseJournalFileLock
from optuna.storages.journal._storage import JournalOperation
from optuna.trial import FrozenTrial, TrialState

RESTORED = JournalOperation.SET_TRIAL_INTERMEDIATE_VALUE

UNFINISHED = {TrialState.RUNNING, TrialState.WAITING}


class _HeldByLease(BaseJournalFileLock):
    """No lock of its own: the study's lease lets one driver in, and a lock file outlives a kill."""

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        return None


class Journal(JournalFileBackend):
    """Appends lines to `path`."""

    def __init__(self, path: str) -> None:
        super().__init__(path, lock_obj=_HeldByLease())

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append; waits for the disk unless a resume could restore all of it."""
        if any(log["op_code"] != RESTORED for log in logs):
            super().append_logs(logs)
            return
        lines = [json.dumps(log, separators=(",", ":")) + "\n" for log in logs]
        with open(self._file_path, "ab") as file:
            file.write("".join(lines).encode())


class OneDriversStorage(JournalStorage):
    """Optuna's journal storage; the trials that are not over are found without a look at all.

    Optuna looks for waiting trials at every ask, and for that through the whole study.
    """

    def __init__(self, backend: Journal) -> None:
        self._looked: dict[int, tuple[int, list[int]]] = {}
        """By study: how many of its trials were looked at, and which of them were not over."""
        super().__init__(backend)

    def get_all_trials(
        self,
        study_id: int,
        deepcopy: bool = True,
        states: Container[TrialState] | None = None,
    ) -> list[FrozenTrial]:
        """As Optuna's."""
        if not isinstance(states, tuple) or not UNFINISHED.issuperset(states):
            return super().get_all_trials(study_id, deepcopy, states)
        with self._thread_lock:
            self._sync_with_backend()
            found = [trial for trial in self._unfinished(study_id) if trial.state in states]
            return copy.deepcopy(found) if deepcopy else found

    def _unfinished(self, study_id: int) -> list[FrozenTrial]:
        """Trials that are not over, by number: what is over once stays so."""
        known = self._replay_result
        known.get_study(study_id)  # Raises KeyError when there is none.
        ids = known._study_id_to_trial_ids[study_id]
        count, there = self._looked.get(study_id, (0, []))
        trials = [known._trials[i] for i in (*there, *ids[count:])]
        left = [trial for trial in trials if not trial.state.is_finished()]
        self._looked[study_id] = (len(ids), [trial._trial_id for trial in left])
        return left
