"""The journal file of a study, as Optuna writes it, under the lease of the one driver.

Every line reaches the disk before the driver goes on, but for evaluations: each of those is on disk
already, in its trial's folder, from which a resume reports what the journal lacks.
"""

from __future__ import annotations

import json
from typing import Any

from optuna.storages.journal import JournalFileBackend
from optuna.storages.journal._file import BaseJournalFileLock
from optuna.storages.journal._storage import JournalOperation

RESTORED = JournalOperation.SET_TRIAL_INTERMEDIATE_VALUE


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
