"""`--fresh` renames an existing study: its name gets the time appended.

A journal moves with its folder, in one step. In a storage of many studies the study has to be
renamed as well, in several steps: a note of the move is written first, from which the next run can
finish it after a kill.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING

from trial.store.files import write_atomically
from trial.store.folders import StudyFolder
from trial.store.records import Record

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

NOTE = "aside.json"


class ArchiveNote(Record):
    """A move that has begun: names of the study in its storage."""

    old: str
    new: str


def archive_study(folder: StudyFolder, storage: Callable[[], BaseStorage]) -> StudyFolder | None:
    """Rename an existing study; returns it under its new name, None when there is none.

    Raises:
        ConfigError: its storage cannot be opened; nothing has been moved then.
    """
    if not folder.exists():
        return None
    record = folder.read_record()
    names: Collection[str] = ()
    if record.provenance.get("storage"):
        from sweep.storage.open import study_names

        names = study_names(storage())
    note = ArchiveNote(old=record.name, new=free_name(folder, names))
    if record.provenance.get("storage"):
        write_atomically(folder.path / NOTE, note.model_dump_json())
    return _move(folder, note, storage)


def free_name(folder: StudyFolder, taken: Collection[str] = ()) -> str:
    """The study's name with the time appended, and a number where that name is in use.

    Args:
        folder: The study.
        taken: Names that are in use besides those of the folders beside it.
    """
    stem = f"{folder.name}.{time.strftime('%Y%m%d-%H%M%S')}"
    names = itertools.chain([stem], (f"{stem}-{count}" for count in itertools.count(2)))
    return next(
        name for name in names if name not in taken and not folder.path.with_name(name).exists()
    )


def finish_archiving(folder: StudyFolder, storage: Callable[[], BaseStorage]) -> StudyFolder | None:
    """Finish a move that a kill cut short; returns the moved study, None when there was none."""
    if not (folder.path / NOTE).exists():
        return None
    note = ArchiveNote.model_validate_json((folder.path / NOTE).read_text(encoding="utf-8"))
    if folder.name == note.new:
        # Moved already; under the old name there may be another study by now.
        (folder.path / NOTE).unlink()
        return None
    return _move(folder, note, storage)


def _move(
    folder: StudyFolder, note: ArchiveNote, storage: Callable[[], BaseStorage]
) -> StudyFolder:
    """Move folder and study; every step may be repeated after a kill."""
    moved = StudyFolder(folder.path.with_name(note.new))
    record = folder.read_record()
    if record.provenance.get("storage"):
        from sweep.storage.open import rename_study

        rename_study(storage(), note.old, note.new)
        folder.write_record(record.model_copy(update={"name": note.new}))
    folder.path.rename(moved.path)
    (moved.path / NOTE).unlink(missing_ok=True)
    return moved
