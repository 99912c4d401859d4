"""Confirming the best configurations: the same ones trained once more with other seeds.

`confirm:` in a sweep file.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from sweep.sampling.constraints import is_feasible
from sweep.sampling.measured_alike import MEASURED_ON
from sweep.spec.space import Space
from sweep.spec.spec import ConfirmSpec, SweepSpec
from trial.config.trial_config import TrialConfig
from trial.store import metrics

OUTSIDE_SEARCH = {"confirms", "continues"}
"""User attributes of trials that are no part of the search: never pruned, never repeated."""


@dataclass(frozen=True, slots=True)
class Repeat:
    """A trial that has to be trained once more, with another seed."""

    params: Mapping[str, Any]
    confirms: int
    """Number of the trial that it repeats."""
    seed: int

    def user_attrs(self) -> dict[str, int]:
        """What its trial is marked with in the study."""
        return {"confirms": self.confirms, "seed": self.seed}


def missing_repeats(
    trials: Sequence[FrozenTrial], spec: SweepSpec, space: Space
) -> Iterator[Repeat]:
    """The repeats of the best trials that the study does not have yet."""
    if spec.confirm is None:
        return
    existing = {
        (trial.user_attrs["confirms"], trial.user_attrs["seed"])
        for trial in trials
        if "confirms" in trial.user_attrs
    }
    for best in best_trials(trials, spec.confirm, spec, space):
        first = space.configure(best.params).training["seed"]
        for seed in range(first + 1, first + spec.confirm.seeds):
            if (best.number, seed) not in existing:
                yield Repeat(best.params, best.number, seed)


def best_trials(
    trials: Sequence[FrozenTrial], confirm: ConfirmSpec, spec: SweepSpec, space: Space
) -> list[FrozenTrial]:
    """The best trials of the search; with `confirm.per`, of each value of what it names.

    Among trials that were measured on unlike things, those of the largest such group.
    """
    groups: dict[str, list[FrozenTrial]] = {}
    for trial in trials:
        searched = is_feasible(trial) and not OUTSIDE_SEARCH & trial.user_attrs.keys()
        if trial.state == TrialState.COMPLETE and searched:
            values = space.values(trial.params) if confirm.per else {}
            group = json.dumps(values.get(confirm.per or ""), sort_keys=True)
            groups.setdefault(group, []).append(trial)
    signs = [-1.0 if goal.direction == "maximize" else 1.0 for goal in spec.objectives]
    best = []
    for group_trials in map(_measured_alike, groups.values()):
        points = [[s * v for s, v in zip(signs, t.values, strict=True)] for t in group_trials]
        best += [group_trials[index] for index in metrics.best_of(points, confirm.top)]
    return best


def _measured_alike(trials: list[FrozenTrial]) -> list[FrozenTrial]:
    """The largest group of trials that were measured on the same things.

    All trials, where one was told before it was noted what they were measured on.
    """
    if any(MEASURED_ON not in trial.user_attrs for trial in trials):
        return trials
    largest = metrics.by_size(trial.user_attrs[MEASURED_ON] for trial in trials)[0]
    return [trial for trial in trials if trial.user_attrs[MEASURED_ON] == largest]


def with_seed(config: TrialConfig, confirms: int, seed: int) -> TrialConfig:
    """The same configuration with another seed: adapter, data order and dropout differ."""
    if config.origin is None:
        return config
    origin = config.origin.model_copy(update={"confirms": confirms})
    training = {**config.training, "seed": seed}
    return config.model_copy(update={"training": training, "origin": origin})
