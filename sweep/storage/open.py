"""Open a study's Optuna storage: the journal file in its folder, or any storage URL."""

from __future__ import annotations

import optuna
from optuna.storages import BaseStorage

from sweep.storage.journal import Journal, SingleDriverStorage
from sweep.storage.url import connect
from trial.store.files import cut_torn_line
from trial.store.folders import StudyFolder


def open_storage(
    folder: StudyFolder, url: str | None = None, *, repair: bool = True
) -> BaseStorage:
    """The study's storage: the journal file in its folder, or any Optuna storage URL.

    Only the driver repairs a torn last line: for others it may be a line that is being written.

    Raises:
        ConfigError: there is no such storage, or its server does not answer.
        ValueError: there is no journal, and none is to be made.
    """
    if url is not None:
        return connect(url)
    if repair:
        folder.path.mkdir(parents=True, exist_ok=True)
        cut_torn_line(folder.journal)
    elif not folder.journal.exists():
        raise ValueError(f"{folder.journal}: there is no journal")
    return SingleDriverStorage(Journal(str(folder.journal)))


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
