"""Selects one trial of a study, by number or as the best."""

from __future__ import annotations

from sweep.spec.spec import SweepSpec
from trial.store import metrics
from trial.store.folders import StudyFolder, TrialFolder


def select_trial(study: StudyFolder, which: str) -> TrialFolder:
    """The trial that `which` names: its number, or `best` by the first objective.

    Raises:
        ValueError: there is no such trial, or none is complete.
    """
    return _best_trial(study) if which == "best" else _trial_with_number(study, which)


def _trial_with_number(study: StudyFolder, which: str) -> TrialFolder:
    folder = study.trial(int(which)) if which.isdecimal() else None
    if folder is None or not folder.config.exists():
        numbers = [number for number, _ in study.all_trials()]
        known = f"0 to {numbers[-1]}" if numbers else "none yet"
        raise ValueError(f"{study.path}: no trial {which!r}; there are {known}, or say `best`")
    return folder


def _best_trial(study: StudyFolder) -> TrialFolder:
    goal = SweepSpec.from_content(study.read_record().spec).objectives[0]
    sign = -1.0 if goal.direction == "maximize" else 1.0
    complete: list[tuple[float, int]] = []
    for number, folder in study.all_trials():
        try:
            result = folder.read_result()
        except ValueError:
            continue
        objective = metrics.of_result(result, goal.metric) if result else None
        if result and result.state == "complete" and objective is not None:
            complete.append((sign * objective, number))
    if not complete:
        raise ValueError(f"{study.path}: no trial is complete yet")
    return study.trial(min(complete)[1])
