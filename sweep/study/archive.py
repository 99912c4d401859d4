"""`--fresh` moves the old study out of the way, under a name with the time.

A journal moves with its folder, at once. In a storage of many studies the name has to go too, in
several steps: what is to become of the study is noted first, so that the next run can finish them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from trial.store.files import write_atomically
from trial.store.folders import StudyFolder
from trial.store.records import Record

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

NOTE = "aside.json"


class ArchiveNote(Record):
    """A study that is on its way out."""

    old: str
    new: str
    """What it is called in its storage, and will be."""


def archive(folder: StudyFolder, storage: Callable[[], BaseStorage]) -> StudyFolder | None:
    """Move an existing study out of the way; returns it, None when there is none.

    Raises:
        ConfigError: its storage cannot be opened; nothing has been moved then.
    """
    if not folder.exists():
        return None
    record = folder.read_record()
    new = f"{folder.name}.{time.strftime('%Y%m%d-%H%M%S')}"
    move = ArchiveNote(old=record.name, new=new)
    if record.provenance.get("storage"):
        storage()
        write_atomically(folder.path / NOTE, move.model_dump_json())
    return _move(folder, move, storage)


def mend(folder: StudyFolder, storage: Callable[[], BaseStorage]) -> StudyFolder | None:
    """Finish a move that was cut short; returns the moved study, None when there was none."""
    if not (folder.path / NOTE).exists():
        return None
    move = ArchiveNote.model_validate_json((folder.path / NOTE).read_text(encoding="utf-8"))
    if folder.name == move.new:
        # Moved already; under the old name there may be another study by now.
        (folder.path / NOTE).unlink()
        return None
    return _move(folder, move, storage)


def _move(
    folder: StudyFolder, move: ArchiveNote, storage: Callable[[], BaseStorage]
) -> StudyFolder:
    """Every step is done anew or passed over when it was done before."""
    moved = StudyFolder(folder.path.with_name(move.new))
    record = folder.read_record()
    if record.provenance.get("storage"):
        from sweep.storage.open import rename

        rename(storage(), move.old, move.new)
        folder.write_record(record.model_copy(update={"name": move.new}))
    folder.path.rename(moved.path)
    (moved.path / NOTE).unlink(missing_ok=True)
    return moved
