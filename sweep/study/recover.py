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
| a finished trial whose result is lost | the driver trains it anew (`sweep.study.retrained`) |
| a torn last line of a trial's metrics | `TrialFolder.append`, once the trial is resumed |

Damaged files are no matter of a kill: `sweep.repair` makes them anew when it is asked to.
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


def refuse_lost_trials(folder: StudyFolder, storage: BaseStorage, name: str) -> None:
    """Check, before a study is written to, that its storage has not lost trials or parameters.

    A trial's parameters are in the storage before its folder is made.

    Raises:
        ValueError: it has lost some.
    """
    import optuna

    try:
        study = optuna.load_study(study_name=name, storage=storage)
    except KeyError:
        trials = []
    else:
        trials = study.get_trials(deepcopy=False)
    folders = dict(folder.all_trials())
    refuse_unknown_folders(folder, {trial.number for trial in trials})
    for trial in trials:
        if trial.state.is_finished() or trial.number not in folders:
            continue
        try:
            origin = folders[trial.number].read_config().origin
        except (OSError, ValueError):
            continue
        if lost := sorted(set(origin.params if origin else ()) - set(trial.params)):
            raise ValueError(
                f"{folder.path}: the storage has lost {lost[0]!r} of trial {trial.number}, which "
                f"its folder has; {folder.repair_hint}"
            )


def check_same_study(folder: StudyFolder, numbered: set[int], finished: list[int]) -> None:
    """Compare the trial folders with the storage's trials.

    The storage numbers a trial before its folder is made, and is told a result after it has been
    written to the folder: it never knows fewer trials, nor finished ones without a folder.

    Args:
        folder: The study.
        numbered: Numbers of all trials in the storage.
        finished: Numbers of those that have finished.

    Raises:
        ValueError: the storage has lost trials, or holds another study of this name.
    """
    refuse_unknown_folders(folder, numbered)
    if finished and not folder.all_trials():
        raise ValueError(
            f"the storage has a study {folder.name!r} with {len(finished)} finished trials, and "
            f"{folder.path} has none of them: choose another name with --study"
        )


def refuse_unknown_folders(folder: StudyFolder, numbered: set[int]) -> None:
    """Check that the storage knows every trial that has a folder.

    Raises:
        ValueError: it does not.
    """
    if ahead := sorted({number for number, _ in folder.all_trials()} - numbered):
        raise ValueError(
            f"{folder.path} has a folder of trial {ahead[0]}, which its storage does not know: the "
            "storage was lost or replaced. --fresh starts anew and keeps the folders aside; "
            f"{folder.repair_hint}"
        )
