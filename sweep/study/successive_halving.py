"""Optuna's successive halving, from memory: the same decisions at a cost that does not grow.

Optuna's own pruner reads every trial of the study again at every rung: at ten thousand trials that
is nearly all that a driver does. The driver is alone with its study, so it need read them once.
"""

from __future__ import annotations

import bisect
import math

from optuna.pruners import BasePruner, SuccessiveHalvingPruner
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial


class Halving(BasePruner):
    """As `optuna.pruners.SuccessiveHalvingPruner`; it and its arguments are explained there.

    Rungs are kept where Optuna keeps them, so that either pruner can go on with a study.

    Raises:
        ValueError: Optuna's refuses the arguments.
    """

    def __init__(
        self,
        min_resource: int = 1,
        reduction_factor: int = 4,
        min_early_stopping_rate: int = 0,
        bootstrap_count: int = 0,
    ) -> None:
        SuccessiveHalvingPruner(
            min_resource, reduction_factor, min_early_stopping_rate, bootstrap_count
        )
        self.first = min_resource * reduction_factor**min_early_stopping_rate
        """Step of the first rung."""
        self.reduction_factor = reduction_factor
        self.bootstrap_count = bootstrap_count
        self._rungs: dict[str, list[float]] | None = None
        """What has come to each rung, the best first."""

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        """Whether the trial is not among the best of a rung that it has come to."""
        step = trial.last_step
        if step is None:
            return False
        sign = -1.0 if study.direction == StudyDirection.MAXIMIZE else 1.0
        rungs, value = self._known(study, sign), trial.intermediate_values[step]
        number = 0
        while (key := f"completed_rung_{number}") in trial.system_attrs:
            number += 1
        while step >= self.first * self.reduction_factor**number:
            if math.isnan(value):
                return True
            study._storage.set_trial_system_attr(trial._trial_id, key, value)
            rung = rungs.setdefault(key, [])
            bisect.insort(rung, sign * value)
            if len(rung) <= self.bootstrap_count:
                return True
            if sign * value > rung[max(0, len(rung) // self.reduction_factor - 1)]:
                return True
            number += 1
            key = f"completed_rung_{number}"
        return False

    def _known(self, study: Study, sign: float) -> dict[str, list[float]]:
        """The rungs so far; read from the study the first time."""
        if self._rungs is None:
            self._rungs = {}
            for trial in study.get_trials(deepcopy=False):
                for key, value in trial.system_attrs.items():
                    if key.startswith("completed_rung_"):
                        self._rungs.setdefault(key, []).append(sign * value)
            for rung in self._rungs.values():
                rung.sort()
        return self._rungs
