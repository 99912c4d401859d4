"""Checkpoints of a running trial: which are complete, which is resumed from, which are removed.

    <trial>/checkpoints/checkpoint-120/   the trainer's own files, progress.json, COMPLETE
                        best-80/          weights of the best evaluation (`keep: best`)

COMPLETE is written last: a folder without it was left by a kill, and is removed. It names size and
hash of every file of the checkpoint, and of the best weights then. A checkpoint whose files differ
is not gone on from: the trial goes on from the one before, which stays until a newer one is about
to be written, or starts anew. In earlier versions COMPLETE was empty.

DeepSpeed's states are pickles, and loading a pickle can run code. So a trial resumes only from
checkpoints whose owner is the owner of the trial or this process's user.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from pydantic import Field, ValidationError

from trial.distributed import rank_env
from trial.store import manifest
from trial.store.files import sync_tree, write_atomically
from trial.store.folders import TrialFolder
from trial.store.records import Measured, Record, Seconds

COMPLETE = "COMPLETE"
PROGRESS = "progress.json"
PREFIX = "checkpoint-"
BEST_PREFIX = "best-"
LISTED = "listed"
"""Key of `progress.json`: whether COMPLETE names the files."""
KEPT = 2
"""Complete checkpoints that stay: the newest, and the one before in case that one is damaged."""
FILES_OF_A_TRAINER = (("optimizer.pt", "scheduler.pt"), ("latest",))
"""What a checkpoint holds at least beside the trainer's state: without DeepSpeed, or with it."""
FILES_OF_A_SLOT = ("slot.safetensors",)
"""What the checkpoint of a packed trial holds at least (`trial.packed.slot`)."""


class Measurement(Record):
    """An evaluation: its step, eval loss and further metrics."""

    step: int
    eval_loss: Measured = Field(alias="value")
    """In nats per token."""
    metrics: dict[str, Measured] = Field(default_factory=dict)


class TrialProgress(Record):
    """Progress of a trial at a checkpoint, beyond what its trainer saves: `progress.json`."""

    step: int = 0
    seconds: Seconds = Seconds()
    tokens: int = 0
    """Training tokens seen on all ranks, padding left out."""
    peak_memory_bytes: int = 0
    initial_eval_loss: Measured | None = None
    best: Measurement | None = None
    last: Measurement | None = None
    metrics: dict[str, Measured] = Field(default_factory=dict)


class CompleteMark(manifest.Manifest):
    """The content of COMPLETE: the files, relative to the folder of all checkpoints."""

    metrics: manifest.FileStamp | None = None
    """What `metrics.jsonl` was then; later lines follow."""


class Newest(NamedTuple):
    """The checkpoint to go on from, if any, and what is wrong with each newer one."""

    checkpoint: Path | None
    damaged: tuple[str, ...]


class Checkpoints:
    """The checkpoints of one trial. Of several ranks, only rank 0 changes anything."""

    def __init__(self, folder: TrialFolder) -> None:
        self.path = folder.checkpoints
        self._config = folder.config
        self._metrics = folder.metrics
        self._best: tuple[tuple[str, int, int], dict[str, manifest.FileStamp]] | None = None
        """A folder of best weights (name, inode, time), and the stamps of its files."""

    def at(self, step: int) -> Path:
        """Folder of the checkpoint of a step."""
        return self.path / f"{PREFIX}{step}"

    def best(self, step: int) -> Path:
        """Folder of the weights of the best evaluation, made at `step`."""
        return self.path / f"{BEST_PREFIX}{step}"

    def complete_ones(self) -> list[Path]:
        """Folders of the checkpoints that were written to the end, oldest first."""
        return [path for path in self._numbered(PREFIX) if (path / COMPLETE).is_file()]

    def newest(self) -> Path | None:
        """Folder of the newest complete checkpoint, damaged or not."""
        return next(reversed(self.complete_ones()), None)

    def newest_whole(self) -> Newest:
        """The newest complete checkpoint whose files are as they were written."""
        damaged: list[str] = []
        for checkpoint in reversed(self.complete_ones()):
            if not (found := self.damage(checkpoint, deep=True)):
                return Newest(checkpoint, tuple(damaged))
            damaged.append(found[0])
        return Newest(None, tuple(damaged))

    def damage(self, checkpoint: Path, *, deep: bool) -> list[str]:
        """What is wrong with a complete checkpoint; `deep` compares hashes, not sizes alone."""
        try:
            text = (checkpoint / PROGRESS).read_text(encoding="utf-8")
            step, listed = TrialProgress.model_validate_json(text).step, json.loads(text)
            if self.at(step) != checkpoint:
                return [f"{checkpoint.name}/{PROGRESS} is of step {step}"]
            mark = (checkpoint / COMPLETE).read_text(encoding="utf-8")
            if not mark and not listed.get(LISTED):
                return _missing_files(checkpoint, step)
            stamps = manifest.Manifest.model_validate_json(mark).files
            if not manifest.is_sealed(json.loads(mark)):
                return [f"{checkpoint.name}/{COMPLETE} has been changed"]
        except (OSError, ValidationError, UnicodeDecodeError) as error:
            what = "is missing" if isinstance(error, FileNotFoundError) else "cannot be read"
            return [f"{checkpoint.name}/{PROGRESS} or {COMPLETE} {what}"]
        return manifest.damage(self.path, stamps, deep=deep)

    def metrics_damage(self, checkpoint: Path) -> str:
        """What is wrong with the trial's metrics until a whole checkpoint; empty if nothing is."""
        text = (checkpoint / COMPLETE).read_text(encoding="utf-8")
        then = CompleteMark.model_validate_json(text).metrics if text else None
        if then is None or manifest.stamp_beginning(self._metrics, then.size) == then:
            return ""
        step = checkpoint.name.removeprefix(PREFIX)
        return f"{self._metrics.name} is not as it was at step {step}: lines are lost or changed"

    def read_progress(self, checkpoint: Path) -> TrialProgress:
        """The trial's progress at a checkpoint.

        Raises:
            ValueError: a checkpoint file is a link or belongs to another user.
        """
        self.refuse_foreign()
        return TrialProgress.model_validate_json(
            (checkpoint / PROGRESS).read_text(encoding="utf-8")
        )

    def complete(self, progress: TrialProgress, kept: int = KEPT) -> None:
        """Mark the checkpoint of `progress.step` complete and remove those that it replaces."""
        if rank_env.rank():
            return
        checkpoint = self.at(progress.step)
        content = {**json.loads(progress.model_dump_json()), LISTED: True}
        write_atomically(checkpoint / PROGRESS, json.dumps(content))
        sync_tree(checkpoint)
        files = manifest.stamp_all(self.path, [checkpoint]) | self._stamps_of_best(progress)
        # A checkpoint of that step may have been complete before.
        files.pop(f"{checkpoint.name}/{COMPLETE}", None)
        mark = CompleteMark(files=files, metrics=manifest.stamp_beginning(self._metrics))
        sealed = manifest.seal(json.loads(mark.model_dump_json()))
        write_atomically(checkpoint / COMPLETE, json.dumps(sealed))
        self.tidy(progress, kept)

    def _stamps_of_best(self, progress: TrialProgress) -> dict[str, manifest.FileStamp]:
        """Stamps of the best weights; they are read once, though several checkpoints name them."""
        folder = self.best(progress.best.step) if progress.best else None
        if folder is None or not folder.is_dir():
            return {}
        status = folder.stat()
        written = (folder.name, status.st_ino, status.st_mtime_ns)
        if self._best is None or self._best[0] != written:
            self._best = written, manifest.stamp_all(self.path, [folder])
        return self._best[1]

    def tidy(self, progress: TrialProgress, kept: int = KEPT) -> None:
        """Remove all but the newest complete checkpoints and the best weights that are named.

        Args:
            progress: The trial's progress now, which may name best weights.
            kept: How many checkpoints stay.
        """
        if rank_env.rank() or not self.path.is_dir():
            return
        stay = self._with_best(self.complete_ones()[-kept:], progress)
        # Checkpoints first: none may stay complete without the best weights that it names.
        for path in (*self._numbered(PREFIX), *self.path.iterdir()):
            if path not in stay:
                _remove(path)

    def make_room(self, progress: TrialProgress) -> None:
        """Remove what is not needed to go on, before more is written.

        So the disk never holds more than one complete checkpoint and the one being written, which
        other ranks may have begun.
        """
        if rank_env.rank():
            return
        complete = self.complete_ones()
        stay = self._with_best(complete[-1:], progress)
        for path in (*complete, *self._numbered(BEST_PREFIX)):
            if path not in stay:
                _remove(path)

    def _with_best(self, checkpoints: list[Path], progress: TrialProgress) -> list[Path]:
        """Checkpoints, and the best weights that they or the trial's progress name."""
        named = [progress.best.step] if progress.best else []
        return [*checkpoints, *map(self.best, [*named, *_best_steps(checkpoints)])]

    def remove_newer_than(self, whole: Path | None) -> None:
        """Remove the complete checkpoints that are newer than one, or all if it is None."""
        if rank_env.rank():
            return
        complete = self.complete_ones()
        for path in complete[complete.index(whole) + 1 if whole else 0 :]:
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
        for checkpoint in self.complete_ones():
            _remove(checkpoint)
        shutil.rmtree(self.path, ignore_errors=True)

    def _numbered(self, prefix: str) -> list[Path]:
        numbered = [
            (int(number), path)
            for path in self.path.glob(f"{prefix}*")
            if (number := path.name.removeprefix(prefix)).isdecimal()
        ]
        return [path for _, path in sorted(numbered)]


def _best_steps(checkpoints: Iterable[Path]) -> list[int]:
    """The steps of the best weights that checkpoints name, where they can be read."""
    steps = []
    for checkpoint in checkpoints:
        try:
            text = (checkpoint / PROGRESS).read_text(encoding="utf-8")
            best = TrialProgress.model_validate_json(text).best
        except (OSError, ValueError):
            continue
        if best is not None:
            steps.append(best.step)
    return steps


def _missing_files(checkpoint: Path, step: int) -> list[str]:
    """What is wrong with a checkpoint of an earlier version, whose files nobody has listed."""
    if _are_there(checkpoint, FILES_OF_A_SLOT):
        return []
    state = checkpoint / "trainer_state.json"
    try:
        found = json.loads(state.read_text(encoding="utf-8"))["global_step"]
    except (OSError, ValueError, KeyError, TypeError):
        return [f"{checkpoint.name}/{state.name} is missing or cannot be read"]
    if found != step:
        return [f"{checkpoint.name}/{state.name} is of step {found}"]
    if any(_are_there(checkpoint, names) for names in FILES_OF_A_TRAINER):
        return []
    return [f"{checkpoint.name} lacks the state of the optimizer or of the schedule"]


def _are_there(checkpoint: Path, names: Iterable[str]) -> bool:
    paths = [checkpoint / name for name in names]
    return all(path.is_file() and path.stat().st_size for path in paths)


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
