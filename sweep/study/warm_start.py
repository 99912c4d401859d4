"""What earlier studies of a like space have learned, told to the sampler and to nobody else.

`warm_start: [NAME]`. Their complete trials are copied into the new study's folder when it is
started, so it can go on without them. They get no number, no place in the journal, none in tables.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FixedTrial, FrozenTrial, TrialState

from sweep.sampling.constraints import MEMORY
from sweep.spec.space import Space
from sweep.spec.spec import SweepSpec
from sweep.study.fork import point_of
from trial.config.errors import ConfigError, Problem
from trial.store import metrics
from trial.store.files import read_lines, write_atomically
from trial.store.folders import StudyFolder, TrialFolder
from trial.store.records import Record


class PriorTrial(Record):
    """One trial of an earlier study as a point of the new space."""

    study: str
    number: int
    params: dict[str, Any]
    values: tuple[float, ...]
    """By objective, as measured then."""
    alike: bool
    """Whether all but the space was the same: then the values count as they are."""


@dataclass(frozen=True, slots=True)
class PriorStudy:
    """What one earlier study is worth to the new one."""

    study: str
    trials: tuple[PriorTrial, ...]
    dropped: Counter[str]
    """Why other complete trials are none of the new space's, and how many."""

    def __str__(self) -> str:
        text = f"the sampler starts from {len(self.trials)} trials of {self.study}"
        left = "; ".join(f"{count} left out: {why}" for why, count in self.dropped.most_common(3))
        return f"{text} ({left})" if left else text


def gather(spec: SweepSpec, new: StudyFolder, studies: Sequence[StudyFolder]) -> list[PriorStudy]:
    """Read the complete trials of earlier studies.

    Raises:
        ConfigError: one is no study, or has nothing for this one.
    """
    found, problems = [], []
    for index, study in enumerate(studies):
        key = f"warm_start.{index}"
        if study.path.resolve() == new.path.resolve() or not study.exists():
            rule = "the name of another study that was run with the same --runs"
            problems.append(Problem(key, rule, repr(study.name)))
            continue
        found.append(_taught(spec, study))
        if not found[-1].trials:
            rule = "a study with complete trials that lie in this space and have its objectives"
            problems.append(Problem(key, rule, str(found[-1])))
    if problems:
        raise ConfigError(problems)
    return found


def _taught(spec: SweepSpec, study: StudyFolder) -> PriorStudy:
    before, after = SweepSpec.from_content(study.read_record().spec), Space.of(spec)
    trials: list[PriorTrial] = []
    dropped: Counter[str] = Counter()
    for number, folder in study.all_trials():
        try:
            trials += _read(number, folder, spec, before, after)
        except ConfigError as error:
            dropped[str(error.problems[0])] += 1
        except (OSError, ValueError) as error:
            dropped[str(error)] += 1
    return PriorStudy(study.name, tuple(trials), dropped)


def _read(
    number: int, folder: TrialFolder, spec: SweepSpec, before: SweepSpec, after: Space
) -> Iterator[PriorTrial]:
    result = folder.read_result()
    if result is None or result.state != "complete":
        return
    config = folder.read_config()
    if config.origin is not None and not config.origin.searched:
        return
    params = after.encode_point(point_of(config, before, after))
    measured = [metrics.of_result(result, goal.metric) for goal in spec.objectives]
    values = tuple(value for value in measured if value is not None and math.isfinite(value))
    if len(values) < len(measured):
        raise ValueError("its objective was not measured")
    yield PriorTrial(
        study=before.name,
        number=number,
        params=dict(params),
        values=values,
        alike=before.base == spec.base,
    )


def write(folder: StudyFolder, taught: Sequence[PriorStudy]) -> None:
    """Keep the earlier trials with the new study."""
    rows = [trial.model_dump_json() for one in taught for trial in one.trials]
    folder.path.mkdir(parents=True, exist_ok=True)
    write_atomically(folder.earlier, "".join(f"{row}\n" for row in rows))


def read(folder: StudyFolder) -> list[PriorTrial]:
    """The earlier trials that were kept with a study; none without `warm_start`."""
    if not folder.earlier.exists():
        return []
    return [PriorTrial.model_validate(row) for row in read_lines(folder.earlier)]


class WarmSampler(BaseSampler):
    """A sampler that sees earlier trials before those of its study."""

    def __init__(self, inner: BaseSampler, earlier: Sequence[PriorTrial], space: Space) -> None:
        self.inner = inner
        self.earlier = earlier
        self._distributions = [_distributions(space, trial.params) for trial in earlier]

    def reseed_rng(self) -> None:
        """As the sampler itself."""
        self.inner.reseed_rng()

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """As the sampler itself, over more trials."""
        return self.inner.infer_relative_search_space(self._wider(study), trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """As the sampler itself, from more trials."""
        return self.inner.sample_relative(self._wider(study), trial, search_space)

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """As the sampler itself, from more trials."""
        wider = self._wider(study)
        return self.inner.sample_independent(wider, trial, param_name, param_distribution)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """As the sampler itself."""
        self.inner.before_trial(self._wider(study), trial)

    def after_trial(
        self,
        study: Study,
        trial: FrozenTrial,
        state: TrialState,
        values: Sequence[float] | None,
    ) -> None:
        """As the sampler itself."""
        self.inner.after_trial(self._wider(study), trial, state, values)

    def _wider(self, study: Study) -> Any:
        return _Wider(study, self._seen_from(study))

    def _seen_from(self, study: Study) -> list[FrozenTrial]:
        """The earlier trials, numbered backwards from before the study's first."""
        own = study._get_trials(deepcopy=False, states=(TrialState.COMPLETE,), use_cache=True)
        values = levelled(self.earlier, [trial.values for trial in own])
        count = len(self.earlier)
        found = []
        for index, (trial, distributions) in enumerate(
            zip(self.earlier, self._distributions, strict=True)
        ):
            shown = optuna.trial.create_trial(
                values=list(values[index]),
                params=trial.params,
                distributions=distributions,
                # As every complete trial of the study: GP wants the same of all.
                constraints={MEMORY: -1.0},
            )
            shown.number = shown._trial_id = index - count
            found.append(shown)
        return found


class _Wider:
    """A study with trials before its own, for a sampler to read."""

    def __init__(self, study: Study, earlier: Sequence[FrozenTrial]) -> None:
        self._inner = study
        self._earlier = earlier

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def _get_trials(
        self,
        deepcopy: bool = True,
        states: Sequence[TrialState] | None = None,
        use_cache: bool = False,
    ) -> list[FrozenTrial]:
        own = self._inner._get_trials(deepcopy=deepcopy, states=states, use_cache=use_cache)
        wanted = states is None or TrialState.COMPLETE in states
        return [*self._earlier, *own] if wanted else own

    def get_trials(
        self, deepcopy: bool = True, states: Sequence[TrialState] | None = None
    ) -> list[FrozenTrial]:
        return self._get_trials(deepcopy, states)

    @property
    def trials(self) -> list[FrozenTrial]:
        return self._get_trials()


def _distributions(space: Space, params: dict[str, Any]) -> dict[str, BaseDistribution]:
    draw = FixedTrial(params)
    space.suggest(draw)
    return dict(draw.distributions)


def levelled(
    earlier: Sequence[PriorTrial], own: Sequence[Sequence[float]]
) -> list[tuple[float, ...]]:
    """Values of earlier trials on the level of a study's own.

    A loss after other steps or of another model says how good a point was among its like, not more:
    such a trial counts as if it had come out at the same place among the study's own.
    """
    found = [trial.values for trial in earlier]
    for study in {trial.study for trial in earlier if not trial.alike}:
        places = [index for index, trial in enumerate(earlier) if trial.study == study]
        if own:
            table = np.array([found[place] for place in places])
            columns = [
                _among(table[:, goal], np.array(own)[:, goal]) for goal in range(table.shape[1])
            ]
            for place, row in zip(places, np.stack(columns, axis=1), strict=True):
                found[place] = tuple(float(value) for value in row)
    return found


def _among(values: Any, own: Any) -> Any:
    """The quantiles of `own` at which `values` stand among themselves; ties keep their order."""
    shares = (values.argsort(kind="stable").argsort() + 0.5) / len(values)
    width = float(np.ptp(own)) or max(1.0, abs(float(own[0])))
    return np.quantile(own, shares) + 1e-9 * width * (shares - 0.5)
