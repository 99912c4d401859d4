"""A sampler that learns from trials of earlier studies besides those of its own.

`warm_start: [NAME]` in a sweep file. Earlier trials have no number in the study, no place in its
journal and none in tables.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FixedTrial, FrozenTrial, TrialState

from sweep.sampling.constraints import FEASIBLE, MEMORY
from sweep.sampling.measured_alike import MEASURED_ON
from sweep.spec.space import Space
from sweep.storage import compat
from trial.store.records import Record


class PriorTrial(Record):
    """One trial of an earlier study as a point of the new space."""

    study: str
    number: int
    params: dict[str, Any]
    values: tuple[float, ...]
    """By objective, as measured in the earlier study."""
    alike: bool
    """Whether that study had the same `base`: then the values are used as they are, unless the
    trials of both studies were measured on unlike things."""
    measured_on: str = ""
    """What it was measured on (`trial.store.metrics.measured_on`); empty where nothing is known."""


class WarmStartSampler(BaseSampler):
    """Wraps a sampler: it sees the earlier trials before those of its study."""

    def __init__(self, inner: BaseSampler, prior: Sequence[PriorTrial], space: Space) -> None:
        self.inner = inner
        self.prior = on_one_scale(prior)
        self._distributions = [_distributions(space, trial.params) for trial in prior]

    def reseed_rng(self) -> None:
        """As the wrapped sampler."""
        self.inner.reseed_rng()

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """As the wrapped sampler, over more trials."""
        return self.inner.infer_relative_search_space(self._extended(study), trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """As the wrapped sampler, from more trials."""
        return self.inner.sample_relative(self._extended(study), trial, search_space)

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """As the wrapped sampler, from more trials."""
        extended = self._extended(study)
        return self.inner.sample_independent(extended, trial, param_name, param_distribution)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """As the wrapped sampler."""
        self.inner.before_trial(self._extended(study), trial)

    def after_trial(
        self,
        study: Study,
        trial: FrozenTrial,
        state: TrialState,
        values: Sequence[float] | None,
    ) -> None:
        """As the wrapped sampler."""
        self.inner.after_trial(self._extended(study), trial, state, values)

    def _extended(self, study: Study) -> Any:
        return compat.StudyWithPriorTrials(study, self._prior_trials(study))

    def _prior_trials(self, study: Study) -> list[FrozenTrial]:
        """The earlier trials, numbered -n to -1: before the study's first."""
        complete = compat.complete_trials(study)
        measured_on = {trial.user_attrs.get(MEASURED_ON, "") for trial in complete} - {""}
        values = match_quantiles(self.prior, [trial.values for trial in complete], measured_on)
        count = len(self.prior)
        found = []
        for index, (trial, distributions) in enumerate(
            zip(self.prior, self._distributions, strict=True)
        ):
            frozen = optuna.trial.create_trial(
                values=list(values[index]),
                params=trial.params,
                distributions=distributions,
                # Every complete trial of the study has it: GPSampler wants the same of all.
                constraints={MEMORY: FEASIBLE},
            )
            found.append(compat.renumber(frozen, index - count))
        return found


def _distributions(space: Space, params: dict[str, Any]) -> dict[str, BaseDistribution]:
    draw = FixedTrial(params)
    space.suggest(draw)
    return dict(draw.distributions)


def on_one_scale(prior: Sequence[PriorTrial]) -> list[PriorTrial]:
    """Earlier trials, those of each study as if measured on what its largest group was measured on.

    Trials of a smaller group get values at their quantiles of the largest group's.
    """
    found = list(prior)
    for study in {trial.study for trial in prior}:
        groups: dict[str, list[int]] = {}
        for index, trial in enumerate(prior):
            if trial.study == study:
                groups.setdefault(trial.measured_on, []).append(index)
        largest = max(groups, key=lambda group: len(groups[group]))
        scale = [prior[index].values for index in groups.pop(largest)]
        for indices in groups.values():
            values = _matched([prior[index].values for index in indices], scale)
            for index, row in zip(indices, values, strict=True):
                changed = {"values": row, "measured_on": largest}
                found[index] = prior[index].model_copy(update=changed)
    return found


def match_quantiles(
    prior: Sequence[PriorTrial],
    own: Sequence[Sequence[float]],
    measured_on: Collection[str] = (),
) -> list[tuple[float, ...]]:
    """Objective values of earlier trials, mapped to the range of a study's own (quantile matching).

    A loss after another number of steps or of another model says how good a point was among the
    trials of its study, no more: such a trial gets the value at its quantile of the study's own.

    Args:
        prior: Earlier trials; those that are `alike` keep their values, if the study's own trials
            were measured on the same things as far as is known.
        own: Objective values of the study's complete trials, [trials][objectives].
        measured_on: What these were measured on; empty where nothing is known.

    Returns:
        Values by earlier trial and objective.
    """
    found = [trial.values for trial in prior]
    for study in {trial.study for trial in prior if not _comparable(trial, measured_on)}:
        indices = [index for index, trial in enumerate(prior) if trial.study == study]
        if own:
            values = _matched([found[index] for index in indices], own)
            for index, row in zip(indices, values, strict=True):
                found[index] = row
    return found


def _comparable(trial: PriorTrial, measured_on: Collection[str]) -> bool:
    """Whether the value of an earlier trial can stand beside those of the study's own."""
    unknown = not measured_on or not trial.measured_on
    return trial.alike and (unknown or trial.measured_on in measured_on)


def _matched(
    values: Sequence[Sequence[float]], scale: Sequence[Sequence[float]]
) -> list[tuple[float, ...]]:
    """Objective values at their quantiles of other values; all [trials][objectives]."""
    table, other = np.array(values), np.array(scale)
    columns = [_at_same_quantiles(table[:, goal], other[:, goal]) for goal in range(table.shape[1])]
    return [tuple(float(value) for value in row) for row in np.stack(columns, axis=1)]


def _at_same_quantiles(values: Any, own: Any) -> Any:
    """The quantiles of `own` at the ranks of `values`, both [trials].

    Results are kept distinct and in the order of `values` (ties by index) by differences below 1e-9
    of the range of `own`.
    """
    shares = (values.argsort(kind="stable").argsort() + 0.5) / len(values)
    width = float(np.ptp(own)) or max(1.0, abs(float(own[0])))
    return np.quantile(own, shares) + 1e-9 * width * (shares - 0.5)
