"""Optuna's successive halving with the rungs in memory: same decisions, constant cost per step.

The algorithm is asynchronous successive halving, ASHA (Li et al. 2018, arXiv:1810.05934). Optuna's
own pruner reads every trial of the study at every rung: at ten thousand trials that takes nearly
all of a driver's time. One driver alone writes to a study, so it need read them only once.
"""

from __future__ import annotations

import bisect
import math
from weakref import WeakKeyDictionary

from optuna.pruners import BasePruner, SuccessiveHalvingPruner
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial

from sweep.storage.compat import rung_values, set_rung_value


class CachedSuccessiveHalvingPruner(BasePruner):
    """Decides as `optuna.pruners.SuccessiveHalvingPruner`, which explains the arguments.

    The values at rungs are stored where Optuna stores them, so that either pruner can go on with a
    study.

    Raises:
        ValueError: Optuna's pruner refuses the arguments.
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
        self._rungs: WeakKeyDictionary[Study, dict[int, list[float]]] = WeakKeyDictionary()
        """By study, of which one may show a part of another's trials, and rung: the values that
        reached the rung, lower is better, ascending."""

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        """Whether the trial is not among the best 1/reduction_factor of a rung it has reached."""
        step = trial.last_step
        if step is None:
            return False
        sign = -1.0 if study.direction == StudyDirection.MAXIMIZE else 1.0
        rungs, value = self._rungs_of(study, sign), trial.intermediate_values[step]
        number, reached = 0, rung_values(trial)
        while number in reached:
            number += 1
        while step >= self.first * self.reduction_factor**number:
            if math.isnan(value):
                return True
            set_rung_value(study, trial, number, value)
            rung = rungs.setdefault(number, [])
            bisect.insort(rung, sign * value)
            if len(rung) <= self.bootstrap_count:
                return True
            if sign * value > rung[max(0, len(rung) // self.reduction_factor - 1)]:
                return True
            number += 1
        return False

    def _rungs_of(self, study: Study, sign: float) -> dict[int, list[float]]:
        """The rungs so far; read from the study the first time."""
        if study not in self._rungs:
            rungs: dict[int, list[float]] = {}
            for trial in study.get_trials(deepcopy=False):
                for number, value in rung_values(trial).items():
                    rungs.setdefault(number, []).append(sign * value)
            for rung in rungs.values():
                rung.sort()
            self._rungs[study] = rungs
        return self._rungs[study]
