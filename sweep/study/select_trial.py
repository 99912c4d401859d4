"""Selects one trial of a study, by number or as the best."""

from __future__ import annotations

from sweep.spec.spec import SweepSpec
from trial.store import metrics
from trial.store.folders import StudyFolder, TrialFolder
from trial.store.records import Result


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
    goals = SweepSpec.from_content(study.read_record().spec).objectives
    goal = goals[0]
    sign = -1.0 if goal.direction == "maximize" else 1.0
    complete: dict[int, float] = {}
    results: dict[int, Result] = {}
    for number, folder in study.all_trials():
        try:
            result = folder.read_result()
        except ValueError:
            continue
        objective = metrics.of_result(result, goal.metric) if result else None
        if result and result.state == "complete" and objective is not None:
            complete[number], results[number] = sign * objective, result
    if not complete:
        raise ValueError(f"{study.path}: no trial is complete yet")
    # Of several groups that were measured on unlike things, as in the report: the largest.
    measured = metrics.measured_on(results, [item.metric for item in goals])
    largest = metrics.by_size(measured.values())[0]
    alike = [(value, n) for n, value in complete.items() if measured[n] == largest]
    return study.trial(min(alike)[1])
