"""Open a study's Optuna storage: the journal file in its folder, or any storage URL."""

from __future__ import annotations

import optuna
from optuna.storages import BaseStorage

from sweep.storage.journal import Journal, OneDriversStorage
from sweep.storage.url import connect
from trial.store.files import cut_torn_line
from trial.store.folders import StudyFolder


def open_storage(
    folder: StudyFolder, url: str | None = None, *, repair: bool = True
) -> BaseStorage:
    """The study's storage: the journal file in its folder, or any Optuna storage URL.

    Only the driver repairs a torn last line: to others it may be one that is being written.

    Raises:
        ConfigError: there is no such storage, or its server does not answer.
    """
    if url is not None:
        return connect(url)
    if repair:
        folder.path.mkdir(parents=True, exist_ok=True)
        cut_torn_line(folder.journal)
    elif not folder.journal.exists():
        raise ValueError(f"{folder.journal}: there is no journal")
    return OneDriversStorage(Journal(str(folder.journal)))


def rename(storage: BaseStorage, old: str, new: str) -> None:
    """Give a study another name; one that the storage does not have is passed over.

    Cut short, it leaves the study under both names, and is done again from the old one.
    """
    names = optuna.get_all_study_names(storage)
    if old not in names:
        return
    if new in names:
        optuna.delete_study(study_name=new, storage=storage)
    optuna.copy_study(
        from_study_name=old, from_storage=storage, to_storage=storage, to_study_name=new
    )
    optuna.delete_study(study_name=old, storage=storage)


def in_memory() -> BaseStorage:
    """A storage that ends with the process, for previews."""
    return optuna.storages.InMemoryStorage()
