"""Checkpoints of a running trial: which are complete, which is resumed from, which are removed.

    <trial>/checkpoints/checkpoint-120/   the trainer's own files, progress.json, COMPLETE
                        best-80/          weights of the best evaluation (`keep: best`)

COMPLETE is written last: a folder without it was left by a kill, and is removed.

DeepSpeed's states are pickles, and loading a pickle can run code. So a trial resumes only from
checkpoints whose owner is the owner of the trial or this process's user.
"""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

from pydantic import Field

from trial.distributed import rank_env
from trial.store.files import sync_tree, write_atomically
from trial.store.folders import TrialFolder
from trial.store.records import Record, Seconds

COMPLETE = "COMPLETE"
PROGRESS = "progress.json"
PREFIX = "checkpoint-"
BEST_PREFIX = "best-"


class Measurement(Record):
    """An evaluation: its step, eval loss and further metrics."""

    step: int
    eval_loss: float = Field(alias="value")
    """In nats per token."""
    metrics: dict[str, float] = Field(default_factory=dict)


class TrialProgress(Record):
    """Progress of a trial at a checkpoint, beyond what its trainer saves: `progress.json`."""

    step: int = 0
    seconds: Seconds = Seconds()
    tokens: int = 0
    """Training tokens seen on all ranks, padding left out."""
    peak_memory_bytes: int = 0
    initial_eval_loss: float | None = None
    best: Measurement | None = None
    last: Measurement | None = None
    metrics: dict[str, float] = Field(default_factory=dict)


class Checkpoints:
    """The checkpoints of one trial. Of several ranks, only rank 0 changes anything."""

    def __init__(self, folder: TrialFolder) -> None:
        self.path = folder.checkpoints
        self._config = folder.config

    def at(self, step: int) -> Path:
        """Folder of the checkpoint of a step."""
        return self.path / f"{PREFIX}{step}"

    def best(self, step: int) -> Path:
        """Folder of the weights of the best evaluation, made at `step`."""
        return self.path / f"{BEST_PREFIX}{step}"

    def newest(self) -> Path | None:
        """Folder of the newest complete checkpoint."""
        complete = [path for path in self._numbered(PREFIX) if (path / COMPLETE).is_file()]
        return complete[-1] if complete else None

    def read_progress(self, checkpoint: Path) -> TrialProgress:
        """The trial's progress at a checkpoint.

        Raises:
            ValueError: a checkpoint file is a link or belongs to another user.
        """
        self.refuse_foreign()
        return TrialProgress.model_validate_json(
            (checkpoint / PROGRESS).read_text(encoding="utf-8")
        )

    def complete(self, progress: TrialProgress) -> None:
        """Mark the checkpoint of `progress.step` complete and remove those that it replaces."""
        if rank_env.rank():
            return
        checkpoint = self.at(progress.step)
        write_atomically(checkpoint / PROGRESS, progress.model_dump_json())
        sync_tree(checkpoint)
        write_atomically(checkpoint / COMPLETE, "")
        self.tidy(progress)

    def tidy(self, progress: TrialProgress) -> None:
        """Remove everything but the newest complete checkpoint and the best weights it names."""
        if rank_env.rank():
            return
        newest = self.newest()
        best = self.best(progress.best.step) if progress.best else None
        if self.path.is_dir():
            for path in self.path.iterdir():
                if path not in (newest, best):
                    _remove(path)

    def refuse_foreign(self) -> None:
        """Check who owns the checkpoint files.

        Raises:
            ValueError: one is a link or belongs to another user.
        """
        owners = {os.geteuid()}
        if self._config.exists():
            owners.add(self._config.stat().st_uid)
        for path in (self.path, *self.path.rglob("*")):
            if _is_foreign(path, owners):
                raise ValueError(
                    f"{path}: is a link or another user's, and loading a checkpoint can run code: "
                    f"remove {self.path} to start the trial anew; if you trust it, make it yours"
                )

    def clear(self) -> None:
        """Remove all checkpoints."""
        if rank_env.rank():
            return
        shutil.rmtree(self.path, ignore_errors=True)

    def _numbered(self, prefix: str) -> list[Path]:
        numbered = [
            (int(number), path)
            for path in self.path.glob(f"{prefix}*")
            if (number := path.name.removeprefix(prefix)).isdecimal()
        ]
        return [path for _, path in sorted(numbered)]


def _is_foreign(path: Path, owners: set[int]) -> bool:
    try:
        status = path.lstat()
    except FileNotFoundError:
        return False
    return stat.S_ISLNK(status.st_mode) or status.st_uid not in owners


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        # From here on it does not count, should its removal be cut short.
        (path / COMPLETE).unlink(missing_ok=True)
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
