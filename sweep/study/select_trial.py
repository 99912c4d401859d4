"""One trial of a study, by number or as the best."""

from __future__ import annotations

from sweep.spec.spec import SweepSpec
from trial.store import metrics
from trial.store.folders import StudyFolder, TrialFolder


def choose(study: StudyFolder, which: str) -> TrialFolder:
    """The trial that `which` names: its number, or `best` by the first objective.

    Raises:
        ValueError: there is no such trial, or none is complete.
    """
    if which != "best":
        folder = study.trial(int(which)) if which.isdecimal() else None
        if folder is None or not folder.config.exists():
            numbers = [number for number, _ in study.all_trials()]
            known = f"0 to {numbers[-1]}" if numbers else "none yet"
            raise ValueError(f"{study.path}: no trial {which!r}; there are {known}, or say `best`")
        return folder
    goal = SweepSpec.from_content(study.read_record().spec).objectives[0]
    sign = -1.0 if goal.direction == "maximize" else 1.0
    values: list[tuple[float, int]] = []
    for number, folder in study.all_trials():
        try:
            result = folder.read_result()
        except ValueError:
            continue
        value = metrics.of_result(result, goal.metric) if result else None
        if result and result.state == "complete" and value is not None:
            values.append((sign * value, number))
    if not values:
        raise ValueError(f"{study.path}: no trial is complete yet")
    return study.trial(min(values)[1])
