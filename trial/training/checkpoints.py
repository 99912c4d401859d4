"""Checkpoints of a running trial: which of them are whole, which one counts, what may go.

    <trial>/checkpoints/checkpoint-120/   the trainer's own files, progress.json, COMPLETE
                        best-80/          weights of the best evaluation (`keep: best`)

COMPLETE is written last: a folder without it is what a kill left behind, and is removed.

DeepSpeed's states are pickles: to load one is to run what it says. So a trial goes on only from
checkpoints that belong to whom the trial belongs to.
"""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

from pydantic import Field

from trial.distributed import rank_env
from trial.store.disk_full import sync_tree
from trial.store.files import write_atomically
from trial.store.folders import TrialFolder
from trial.store.records import Record, Seconds

COMPLETE = "COMPLETE"
PROGRESS = "progress.json"
PREFIX = "checkpoint-"
BEST_PREFIX = "best-"


class Measurement(Record):
    """An eval loss, when it was measured, and what else was measured then."""

    step: int
    value: float
    metrics: dict[str, float] = Field(default_factory=dict)


class TrialProgress(Record):
    """What a trial has come to, beyond what its trainer saves."""

    step: int = 0
    seconds: Seconds = Seconds()
    tokens: int = 0
    peak_memory_bytes: int = 0
    initial_eval_loss: float | None = None
    best: Measurement | None = None
    last: Measurement | None = None
    metrics: dict[str, float] = Field(default_factory=dict)


class Checkpoints:
    """The checkpoints of one trial. Of several ranks the first declares, tidies and clears."""

    def __init__(self, folder: TrialFolder) -> None:
        self.path = folder.checkpoints
        self._config = folder.config

    def at(self, step: int) -> Path:
        """Where the trainer puts the checkpoint of a step."""
        return self.path / f"{PREFIX}{step}"

    def best(self, step: int) -> Path:
        """Where the weights of the best evaluation lie."""
        return self.path / f"{BEST_PREFIX}{step}"

    def newest(self) -> Path | None:
        """The newest whole checkpoint."""
        whole = [path for path in self._numbered(PREFIX) if (path / COMPLETE).is_file()]
        return whole[-1] if whole else None

    def read_progress(self, checkpoint: Path) -> TrialProgress:
        """What the trial had come to there.

        Raises:
            ValueError: the checkpoint is somebody else's.
        """
        self.refuse_foreign()
        return TrialProgress.model_validate_json(
            (checkpoint / PROGRESS).read_text(encoding="utf-8")
        )

    def complete(self, progress: TrialProgress) -> None:
        """Declare the checkpoint of `progress.step` whole and drop what it replaces."""
        if rank_env.rank():
            return
        checkpoint = self.at(progress.step)
        write_atomically(checkpoint / PROGRESS, progress.model_dump_json())
        sync_tree(checkpoint)
        write_atomically(checkpoint / COMPLETE, "")
        self.tidy(progress)

    def tidy(self, progress: TrialProgress) -> None:
        """Keep the newest whole checkpoint and the best weights it speaks of, nothing else."""
        if rank_env.rank():
            return
        newest = self.newest()
        best = self.best(progress.best.step) if progress.best else None
        if self.path.is_dir():
            for path in self.path.iterdir():
                if path not in (newest, best):
                    _remove(path)

    def refuse_foreign(self) -> None:
        """See that no link and no other user's file stands among the checkpoints.

        Raises:
            ValueError: one does.
        """
        ours = {os.geteuid()}
        if self._config.exists():
            ours.add(self._config.stat().st_uid)
        for path in (self.path, *self.path.rglob("*")):
            if _is_foreign(path, ours):
                raise ValueError(
                    f"{path}: is a link or another user's, and loading a checkpoint can run code: "
                    f"remove {self.path} to start the trial anew; if you trust it, make it yours"
                )

    def clear(self) -> None:
        """Remove everything."""
        if rank_env.rank():
            return
        shutil.rmtree(self.path, ignore_errors=True)

    def _numbered(self, prefix: str) -> list[Path]:
        found = [
            (int(number), path)
            for path in self.path.glob(f"{prefix}*")
            if (number := path.name.removeprefix(prefix)).isdecimal()
        ]
        return [path for _, path in sorted(found)]


def _is_foreign(path: Path, ours: set[int]) -> bool:
    try:
        found = path.lstat()
    except FileNotFoundError:
        return False
    return stat.S_ISLNK(found.st_mode) or found.st_uid not in ours


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        # Not whole any more from the first moment of its removal on.
        (path / COMPLETE).unlink(missing_ok=True)
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
