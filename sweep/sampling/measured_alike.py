"""Pruning among trials that were measured on the same things.

A pruner compares a trial with others of its study. Values on unlike evaluation sets say nothing of
which trial is better, so a pruner is shown the trials of one group at a time. The groups are those
of `trial.store.metrics.measured_on`.
"""

from __future__ import annotations

from collections.abc import Iterable

from optuna.study import Study
from optuna.trial import FrozenTrial, Trial

from sweep.storage import compat

MEASURED_ON = "measured_on"
"""User attribute of a trial that was evaluated: what it was measured on. Missing where that is not
known, and where no objective depends on the eval set."""


class AlikePruning:
    """Asks a study's pruner, which sees only trials that were measured on the same things.

    Trials of which that is not known are shown in every group. As long as a study has one group,
    its pruner sees the study itself.
    """

    def __init__(self, study: Study, past: Iterable[FrozenTrial]) -> None:
        self._study = study
        self._groups = {
            trial.user_attrs[MEASURED_ON] for trial in past if MEASURED_ON in trial.user_attrs
        }
        self._views: dict[str, Study] = {}

    def note(self, trial: Trial, measured_on: str) -> None:
        """Note what a trial in flight is measured on; the first note stays."""
        if measured_on and MEASURED_ON not in trial.user_attrs:
            trial.set_user_attr(MEASURED_ON, measured_on)
            self._groups.add(measured_on)

    def should_prune(self, trial: Trial) -> bool:
        """As `Trial.should_prune`."""
        group = trial.user_attrs.get(MEASURED_ON)
        if group is None or len(self._groups) < 2:
            return trial.should_prune()
        if group not in self._views:
            self._views[group] = compat.study_of_some(
                self._study, lambda other: other.user_attrs.get(MEASURED_ON, group) == group
            )
        return compat.should_prune(self._views[group], trial)
