"""Repairs after a kill, in the order in which a run makes them. Each may be made again.

| what a kill left | repaired by |
|---|---|
| a study that `--fresh` had begun to rename | `repair_folder`, before anything is read |
| a folder that `--fork` had begun to fill | `archive_cut_fork`, before the fork begins again |
| a torn last line of the journal | `storage.open.open_storage`, before the study is loaded |
| a trial of `--continue` with a number and no folder | `repair_study`, before the driver runs |
| evaluations on disk that the study lacks | `TrialRegistry.restore_pending` of the driver |
| results on disk that the study was not told | the driver, for each trial so restored |
| failed trials without the configuration of their retry | the driver's `Retries`, likewise |
| a torn last line of a trial's metrics | `TrialFolder.append`, once the trial is resumed |

A study's lock needs no repair: the operating system releases it (`sweep.study.study_lock`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from sweep.study.archive import finish_archiving, free_name
from trial.store.folders import StudyFolder

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

    from sweep.study.decider import OptunaDecider


def repair_folder(folder: StudyFolder, storage: Callable[[], BaseStorage]) -> StudyFolder | None:
    """Finish the renaming that a `--fresh` began; returns the renamed study, if there was one."""
    return finish_archiving(folder, storage)


def archive_cut_fork(folder: StudyFolder) -> None:
    """Rename the folder of a fork that was cut short; a fork writes its record last."""
    if folder.path.exists() and not folder.exists():
        folder.path.rename(folder.path.with_name(free_name(folder)))


def repair_study(folder: StudyFolder, decider: OptunaDecider) -> None:
    """Create the missing folders of trials that continue a finished one."""
    from sweep.study.extend_trial import finish_extensions

    finish_extensions(folder, decider)
