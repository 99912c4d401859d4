"""Significance tests between configurations that were repeated over seeds.

A configuration's repeats are the complete trials that differ in nothing but the seed. The leader is
the repeated configuration with the best mean. Every other repeated configuration is tested against
it: by a paired t test over the seeds both have (the seed fixes data order and initial adapter, so
it moves both alike), else by Welch's t test; p values are corrected by Holm's method. Those that
cannot be told from the leader tie with it; the rest are compared among themselves in the same way,
tier by tier. Assumed: repeats are independent, and (paired) differences about normal.

Two or three seeds say next to nothing about the noise of one difference. Where three or more
configurations were run over the same few seeds, the noise of all their differences is therefore
taken together: the residuals of a two-way analysis of variance (configuration and seed), which
assumes that they are about equally noisy.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from scipy import stats

LEVEL = 0.95
ALPHA = 1 - LEVEL
FEW_SEEDS = 5
"""With fewer shared seeds the variance is pooled over the configurations that share them."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A 95% confidence interval."""

    low: float
    high: float


@dataclass(frozen=True)
class Group:
    """One configuration and its repeats, in seed order."""

    trials: tuple[int, ...]
    seeds: tuple[int, ...]
    values: tuple[float, ...]
    row: Mapping[str, Any]
    """Table row of the first trial: settings and costs."""
    device_seconds: float
    """Mean device seconds over the repeats, without start-up."""
    costs: tuple[float, ...] = ()
    """Device seconds of each repeat."""
    work: tuple[str, ...] | None = None
    """Values of the settings that change the cost; equal for equal work, None when unknown."""

    @cached_property
    def mean(self) -> float:
        """Mean over the repeats."""
        return float(np.mean(self.values))

    @property
    def repeated(self) -> bool:
        """Whether there is more than one run."""
        return len(self.values) > 1

    @cached_property
    def deviation(self) -> float:
        """Standard deviation over the repeats; NaN for one run."""
        return float(np.std(self.values, ddof=1)) if self.repeated else float("nan")

    @cached_property
    def interval(self) -> Interval | None:
        """Confidence interval of the mean by Student's t; None for one run."""
        if not self.repeated:
            return None
        half = stats.t.ppf(1 - ALPHA / 2, len(self.values) - 1) * self.deviation
        half /= np.sqrt(len(self.values))
        return Interval(self.mean - half, self.mean + half)


@dataclass(frozen=True, slots=True)
class Comparison:
    """Test of a configuration against the leader of its tier; a positive difference is worse."""

    difference: float
    interval: Interval
    p: float
    adjusted: float
    paired: int
    """Number of shared seeds; 0 when Welch's test was used."""
    pooled: int = 0
    """Number of configurations whose variance was pooled; 0 when only these two were used."""

    @property
    def tied(self) -> bool:
        """Whether it does not differ significantly from the leader."""
        return not self.adjusted < ALPHA


@dataclass(frozen=True, slots=True)
class Pool:
    """Residual variance of a two-way layout (configuration x seed): the noise of one run."""

    variance: float
    freedom: int
    configurations: int


def compare(
    group: Group, leader: Group, sign: float = 1.0, among: Sequence[Group] = ()
) -> Comparison:
    """Test a configuration against the leader, without correction; both must be repeated.

    `among` are the repeated configurations of the study, whose variance may be pooled.
    """
    alike = [other for other in among if other.seeds == leader.seeds]
    return compare_all(leader, [group], sign, pool_noise(alike) if alike else None)[0]


def compare_all(
    leader: Group, groups: Sequence[Group], sign: float, pool: Pool | None = None
) -> list[Comparison]:
    """Test every configuration against the leader.

    `pool` is the pooled variance of the configurations with exactly the leader's seeds, if any.
    """
    other = dict(zip(leader.seeds, leader.values, strict=True))
    made: dict[int, Comparison] = {}
    pairs: dict[tuple[int, ...], list[int]] = {}
    for place, group in enumerate(groups):
        shared = tuple(seed for seed in group.seeds if seed in other)
        if len(shared) > 1:
            pairs.setdefault(shared, []).append(place)
        else:
            made[place] = _welch(sign * np.array(group.values), sign * np.array(leader.values))
    for shared, places in pairs.items():
        base = np.array([other[seed] for seed in shared])
        mine = np.array([_at(groups[place], shared) for place in places])
        alike = pool if shared == leader.seeds else None
        made |= zip(places, _paired(sign * (mine - base), alike), strict=True)
    return [made[place] for place in range(len(groups))]


def _at(group: Group, seeds: Sequence[int]) -> list[float]:
    values = dict(zip(group.seeds, group.values, strict=True))
    return [values[seed] for seed in seeds]


def _paired(differences: np.ndarray, pool: Pool | None = None) -> list[Comparison]:
    """Paired t tests of `differences` [configurations, seeds]."""
    if pool is not None:
        return [_pooled_test(float(row.mean()), len(row), pool) for row in differences]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # rows without variance are handled below
        test = stats.ttest_1samp(differences, 0.0, axis=1)
        bounds = test.confidence_interval(LEVEL)
    made = []
    for place, row in enumerate(differences):
        mean = float(row.mean())
        if np.ptp(row) <= 1e-12 * max(1.0, abs(mean)):
            made.append(_without_noise(mean, len(row)))
            continue
        interval = Interval(float(bounds.low[place]), float(bounds.high[place]))
        p = float(test.pvalue[place])
        made.append(Comparison(mean, interval, p, p, len(row)))
    return made


def _pooled_test(mean: float, seeds: int, pool: Pool) -> Comparison:
    """T test of a mean difference with the pooled variance."""
    error = float(np.sqrt(2 * pool.variance / seeds))
    if error <= 1e-12 * max(1.0, abs(mean)):
        return replace(_without_noise(mean, seeds), pooled=pool.configurations)
    p = float(2 * stats.t.sf(abs(mean) / error, pool.freedom))
    low, high = stats.t.interval(LEVEL, pool.freedom, mean, error)
    return Comparison(mean, Interval(float(low), float(high)), p, p, seeds, pool.configurations)


def pool_noise(groups: Sequence[Group]) -> Pool | None:
    """Pooled variance of configurations with the same few seeds; None for fewer than three."""
    if len(groups) < 3 or len(groups[0].seeds) >= FEW_SEEDS:
        return None
    values = np.array([group.values for group in groups])
    left = values - values.mean(axis=1, keepdims=True) - values.mean(axis=0) + values.mean()
    freedom = (values.shape[0] - 1) * (values.shape[1] - 1)
    return Pool(float((left**2).sum() / freedom), freedom, len(groups))


def _welch(mine: np.ndarray, other: np.ndarray) -> Comparison:
    mean = float(mine.mean() - other.mean())
    if max(np.ptp(mine), np.ptp(other)) <= 1e-12 * max(1.0, abs(other.mean())):
        return _without_noise(mean, 0)
    test = stats.ttest_ind(mine, other, equal_var=False)
    bounds = test.confidence_interval(LEVEL)
    interval = Interval(float(bounds.low), float(bounds.high))
    return Comparison(mean, interval, float(test.pvalue), float(test.pvalue), 0)


def _without_noise(mean: float, paired: int) -> Comparison:
    """Comparison without any variance: every difference is significant, however small."""
    p = 1.0 if abs(mean) <= 1e-12 else 0.0
    return Comparison(mean, Interval(mean, mean), p, p, paired)


def pooled_deviation(repeated: Sequence[Group]) -> float | None:
    """Standard deviation of one run, pooled over configurations; None without repeats."""
    freedom = degrees_of_freedom(repeated)
    if not freedom:
        return None
    total = sum(group.deviation**2 * (len(group.values) - 1) for group in repeated)
    return float(np.sqrt(total / freedom))


def degrees_of_freedom(repeated: Sequence[Group]) -> int:
    """Degrees of freedom of `pooled_deviation`."""
    return sum(len(group.values) - 1 for group in repeated)
