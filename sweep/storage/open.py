"""Open a study's Optuna storage: the journal file in its folder, or any storage URL."""

from __future__ import annotations

import json
from pathlib import Path
from typing import cast

import optuna
from optuna.storages import BaseStorage

from sweep.storage.journal import Journal, SingleDriverStorage
from sweep.storage.patient import PatientStorage
from sweep.storage.url import connect
from trial.store.files import DamagedFileError, cut_torn_line
from trial.store.folders import StudyFolder


def open_storage(
    folder: StudyFolder, url: str | None = None, *, repair: bool = True
) -> BaseStorage:
    """The study's storage: the journal file in its folder, or any Optuna storage URL.

    Only the driver repairs a torn last line: for others it may be a line that is being written.
    Only the driver waits for a server that goes away.

    Raises:
        ConfigError: there is no such storage, or its server does not answer.
        ValueError: there is no journal, and none is to be made.
        DamagedFileError: the journal cannot be read, or has gone while there are trials.
    """
    if url is not None:
        storage = connect(url)
        server = repair and not url.startswith("sqlite")
        return cast("BaseStorage", PatientStorage(storage)) if server else storage
    if folder.all_trials() and not _size(folder.journal):
        what = "is empty" if folder.journal.exists() else "is missing"
        what = f"{what}, and there are trials; {folder.repair_hint}"
        raise DamagedFileError(folder.journal, what)
    if repair:
        folder.path.mkdir(parents=True, exist_ok=True)
        _check_end(folder)
        cut_torn_line(folder.journal)
    elif not folder.journal.exists():
        raise ValueError(f"{folder.journal}: there is no journal")
    try:
        return SingleDriverStorage(Journal(str(folder.journal)))
    except OSError:
        raise
    except Exception as error:
        # Optuna raises whatever a line with other content leads to.
        line, what = _first_damage(folder.journal)
        what = what or f"cannot be replayed ({type(error).__name__}: {error})"
        raise DamagedFileError(folder.journal, f"{what}; {folder.repair_hint}", line) from error


TAIL = 1_000_000
"""Bytes at the end of the journal that are checked before its torn last line is cut off."""


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _check_end(folder: StudyFolder) -> None:
    """Refuse a journal whose end no kill could have left; a torn line of text is what one leaves.

    Raises:
        DamagedFileError: its last whole line is no record, or zero bytes follow.
    """
    size = _size(folder.journal)
    if not size:
        return
    with open(folder.journal, "rb") as file:
        file.seek(max(0, size - TAIL))
        *whole, torn = file.read().split(b"\n")
    last = whole[-1] if len(whole) > (size > TAIL) else b'{"op_code": 0}'
    what = "ends in zero bytes" if b"\0" in torn else _damage_of(last)
    if what:
        line, found = _first_damage(folder.journal)
        raise DamagedFileError(folder.journal, f"{found or what}; {folder.repair_hint}", line)


def _first_damage(journal: Path) -> tuple[int | None, str]:
    """Number of the first line that is no record of the journal, and what is wrong with it."""
    with open(journal, "rb") as file:
        for number, line in enumerate(file, 1):
            if what := _damage_of(line):
                return number, what
    return None, ""


def _damage_of(line: bytes) -> str:
    if b"\0" in line:
        return "has zero bytes"
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):
        return "is not JSON"
    return "" if isinstance(content, dict) and "op_code" in content else "is no journal record"


def study_names(storage: BaseStorage) -> list[str]:
    """Names of all studies in a storage."""
    return list(optuna.get_all_study_names(storage))


def rename_study(storage: BaseStorage, old: str, new: str) -> None:
    """Rename a study in its storage; does nothing when there is no study `old`.

    A kill may leave the study under both names: called again, it copies the old one again.
    """
    names = study_names(storage)
    if old not in names:
        return
    if new in names:
        optuna.delete_study(study_name=new, storage=storage)
    optuna.copy_study(
        from_study_name=old, from_storage=storage, to_storage=storage, to_study_name=new
    )
    optuna.delete_study(study_name=old, storage=storage)


def in_memory() -> BaseStorage:
    """A storage in this process's memory, for previews."""
    return optuna.storages.InMemoryStorage()
