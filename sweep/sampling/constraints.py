"""The memory constraint of trials: whether a device has the memory for their parameters.

Optuna's samplers take a trial for feasible when all its constraints are <= 0
(`optuna.trial.Trial.set_constraint`).
"""

from __future__ import annotations

from collections.abc import Sequence

from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, Trial

MEMORY = "out_of_memory"
"""Name of the constraint."""

FEASIBLE, INFEASIBLE = -1.0, 1.0
"""Its values."""


def is_feasible(trial: FrozenTrial) -> bool:
    """Whether the devices had the memory for a trial, as far as is known."""
    return all(value <= 0 for value in trial.constraints.values())


def set_memory_constraint(trial: Trial, value: float) -> None:
    """Set a trial's constraint unless it has one: a kill may have come after it was set."""
    if MEMORY not in trial.constraints:
        trial.set_constraint(MEMORY, value)


def worst_values(
    complete: Sequence[FrozenTrial], directions: Sequence[StudyDirection]
) -> list[float] | None:
    """The worst objective values of the feasible trials, with which an infeasible one is told.

    Returns:
        One value per objective. None without complete trials, and in a study of a version that set
        no constraints: `GPSampler` refuses trials of which only some have constraints.
    """
    if not complete or not all(MEMORY in trial.constraints for trial in complete):
        return None
    by_objective = zip(*(trial.values for trial in complete if is_feasible(trial)), strict=True)
    worst = [min if goal == StudyDirection.MAXIMIZE else max for goal in directions]
    return [pick(values) for pick, values in zip(worst, by_objective, strict=True)]
