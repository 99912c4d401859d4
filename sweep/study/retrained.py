"""Finished trials of a study whose result has been lost: they are trained anew, and not told again.

Optuna never changes a finished trial. What it was told decides where a pruned trial ends, and says
how failed trials and duplicates ended, which need no training.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import cast

from optuna.trial import FrozenTrial, TrialState

from trial.store import metrics
from trial.store.records import Cause, CauseKind, Result

logger = logging.getLogger(__name__)


def told_result(trial: FrozenTrial) -> Result | None:
    """The result of a trial that failed or was a duplicate; None of one that has to be trained."""
    marks = trial.user_attrs
    if "duplicate_of" in marks:
        return Result(state="duplicate", duplicate_of=marks["duplicate_of"])
    if "cause" not in marks:
        return None
    kind, _, message = marks["cause"].partition(": ")
    cause = Cause(kind=cast("CauseKind", kind), message=message, step=trial.last_step)
    return Result(state="failed", cause=cause, steps=trial.last_step or 0)


def was_pruned_at(trial: FrozenTrial, step: int) -> bool:
    """Whether a trial that is trained anew ends at a step, since it was pruned there before."""
    return trial.state == TrialState.PRUNED and step >= (trial.last_step or 0)


def compare(trial: FrozenTrial, result: Result, names: Sequence[str]) -> None:
    """Log it where a trial that was trained anew has other values than the study was told."""
    values = [metrics.of_result(result, name) for name in names]
    if trial.state == TrialState.COMPLETE and values != trial.values:
        logger.warning(
            "trial %d, trained anew, has %s; the study was told %s and keeps it (`gaudi-sweep "
            "verify --repair` tells it the new values)",
            trial.number,
            values,
            trial.values,
        )
