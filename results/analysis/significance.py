"""Which configurations differ by more than the noise: repeats over seeds, compared honestly.

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
import pandas as pd
from scipy import stats
from statsmodels.stats.multitest import multipletests

from results.data.naming import lower_is_better

LEVEL = 0.95
ALPHA = 1 - LEVEL
MOST_TIERS = 5
"""Places told apart; what is worse than the last of them shares one more."""
FEW_SEEDS = 5
"""With fewer seeds in common, the noise is taken from all configurations that share them."""
CLOSE_COST = 0.15
"""Costs that differ by less than this share are taken as equal: wall times of equal runs do."""
FREE = frozenset({
    "training.learning_rate", "training.lr_scheduler_type", "training.lr_scheduler_kwargs",
    "training.warmup_ratio", "training.warmup_steps", "training.weight_decay",
    "training.max_grad_norm", "training.adam_beta1", "training.adam_beta2",
    "training.adam_epsilon", "training.label_smoothing_factor", "training.seed",
    "training.data_seed", "lora.lora_alpha", "lora.lora_dropout", "lora.use_rslora",
    "lora.init_lora_weights", "scale",
})  # fmt: skip
"""Settings that leave the work of a run as it is: whatever the clock says, they cost the same."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A range that holds the true value with 95% confidence."""

    low: float
    high: float


@dataclass(frozen=True)
class Group:
    """One configuration and its repeats, in seed order."""

    trials: tuple[int, ...]
    seeds: tuple[int, ...]
    values: tuple[float, ...]
    row: Mapping[str, Any]
    """The table's row of its first trial: settings and costs."""
    device_seconds: float
    """Mean over the repeats, start-up left out: a worker's first trial pays it for all."""
    costs: tuple[float, ...] = ()
    """Device seconds of each of them."""
    work: tuple[str, ...] | None = None
    """The settings that move the cost: equal for equal work; None when nobody knows."""

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
        """Of the mean, by Student's t; None for one run."""
        if not self.repeated:
            return None
        half = stats.t.ppf(1 - ALPHA / 2, len(self.values) - 1) * self.deviation
        half /= np.sqrt(len(self.values))
        return Interval(self.mean - half, self.mean + half)


@dataclass(frozen=True, slots=True)
class Comparison:
    """A configuration against the leader of its tier; positive differences are worse."""

    difference: float
    interval: Interval
    p: float
    adjusted: float
    paired: int
    """Seeds that both have; 0 when Welch's test was used."""
    pooled: int = 0
    """Configurations whose noise was taken together; 0 when only the two's own was."""

    @property
    def tied(self) -> bool:
        """Whether it cannot be told from the leader."""
        return not self.adjusted < ALPHA


@dataclass(frozen=True, slots=True)
class Pool:
    """What is left of configurations by seeds once both are taken out: the noise of one run."""

    variance: float
    freedom: int
    configurations: int


@dataclass(frozen=True, slots=True)
class Standing:
    """A configuration's place."""

    group: Group
    tier: int | None
    """1 for the leader and what ties with it; None for a single run, which cannot be placed."""
    comparison: Comparison | None = None
    """Against the leader of all; None for the leader itself and for single runs."""
    within_noise: bool | None = None
    """For a single run: whether the repeats' noise could explain its distance to the leader."""


@dataclass(frozen=True, slots=True)
class Leaderboard:
    """Every configuration that was completed, best first; repeated ones before single runs."""

    standings: tuple[Standing, ...]
    noise: float | None
    """Standard deviation of one run, pooled over the repeats; None when nothing was repeated."""
    recommended: Group | None
    """The cheapest of the first tier, of equally costly ones the best; the best if all ran once."""

    @property
    def leader(self) -> Group | None:
        """The best mean among what was repeated; the best run when nothing was."""
        return self.standings[0].group if self.standings else None

    @property
    def tied(self) -> tuple[Standing, ...]:
        """The first tier."""
        return tuple(standing for standing in self.standings if standing.tier == 1)

    @property
    def same_cost(self) -> bool:
        """Whether nothing in which the first tier differs can move the cost."""
        works = {standing.group.work for standing in self.tied}
        return len(works) == 1 and None not in works

    @property
    def beaten(self) -> tuple[Standing, ...]:
        """Repeated configurations that are outside the leader's noise, best first."""
        return tuple(item for item in self.standings if item.tier is not None and item.tier > 1)


def leaderboard(table: pd.DataFrame) -> Leaderboard:
    """Rank the completed configurations of a study, given by its table."""
    sign = 1.0 if lower_is_better(table) else -1.0
    groups = sorted(_groups(table), key=lambda group: sign * group.mean)
    repeated = [group for group in groups if group.repeated]
    noise = _pooled(repeated)
    placed = _placed(repeated, sign)
    single = [group for group in groups if not group.repeated]
    leader = repeated[0] if repeated else None
    standings = (*placed, *(_single(group, leader, repeated, sign) for group in single))
    first = [item.group for item in standings if item.tier == 1] or [s.group for s in standings[:1]]
    return Leaderboard(standings, noise, cheapest(first, sign) if first else None)


def cheapest(groups: Sequence[Group], sign: float = 1.0) -> Group:
    """The fewest device seconds; among nearly equal ones the fewest trained parameters.

    Configurations that do the same work cost the same, however busy the machine was: of them the
    best is taken.
    """
    alike: dict[Any, list[Group]] = {}
    for group in groups:
        alike.setdefault(id(group) if group.work is None else group.work, []).append(group)
    costs = {key: [cost for group in own for cost in _costs(group)] for key, own in alike.items()}
    means = {key: float(np.mean(own)) for key, own in costs.items()}
    least = min(means, key=lambda key: (np.isnan(means[key]), means[key]))
    reach = max(means[least] * (1 + CLOSE_COST), max(costs[least]))
    near = [key for key in alike if not (means[key] > reach and min(costs[key]) > reach)]
    taken = min(near, key=lambda k: (_parameters(alike[k][0]), means[k], alike[k][0].trials[0]))
    return min(alike[taken], key=lambda group: (sign * group.mean, group.trials[0]))


def _costs(group: Group) -> tuple[float, ...]:
    return group.costs or (group.device_seconds,)


def compare(
    group: Group, leader: Group, sign: float = 1.0, among: Sequence[Group] = ()
) -> Comparison:
    """Test a configuration against the leader, uncorrected; both must be repeated.

    `among` are the repeated configurations of one study, whose noise may be taken together.
    """
    alike = [other for other in among if other.seeds == leader.seeds]
    return _tests(leader, [group], sign, _pool(alike) if alike else None)[0]


def _tests(
    leader: Group, groups: Sequence[Group], sign: float, pool: Pool | None = None
) -> list[Comparison]:
    """Every configuration against the leader; those that share the same seeds in one go.

    `pool` is the noise of those that have the very seeds of the leader, where these are few.
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
    """Paired t tests; one row of differences by seed for each configuration."""
    if pool is not None:
        return [_pooled_test(float(row.mean()), len(row), pool) for row in differences]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # rows without any spread are dealt with below
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
    """A t test of a mean difference by the noise of all configurations together."""
    error = float(np.sqrt(2 * pool.variance / seeds))
    if error <= 1e-12 * max(1.0, abs(mean)):
        return replace(_without_noise(mean, seeds), pooled=pool.configurations)
    p = float(2 * stats.t.sf(abs(mean) / error, pool.freedom))
    low, high = stats.t.interval(LEVEL, pool.freedom, mean, error)
    return Comparison(mean, Interval(float(low), float(high)), p, p, seeds, pool.configurations)


def _pool(groups: Sequence[Group]) -> Pool | None:
    """The noise of configurations over the same few seeds; None where it says nothing new."""
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
    """Every repeat gave the same number: a difference is one, however small."""
    p = 1.0 if abs(mean) <= 1e-12 else 0.0
    return Comparison(mean, Interval(mean, mean), p, p, paired)


def _groups(table: pd.DataFrame) -> list[Group]:
    complete = table[(table["state"] == "complete") & table["value"].notna()]
    alike: dict[str, list[dict[str, Any]]] = {}
    for row in complete.to_dict("records"):
        alike.setdefault(row["group"], []).append({str(name): v for name, v in row.items()})
    varied = table.attrs.get("varied")
    costly = None if varied is None else [name for name in varied if name not in FREE]
    return [_group(_fair(rows), costly) for rows in alike.values()]


def _fair(rows: Sequence[dict[str, Any]]) -> Sequence[dict[str, Any]]:
    """The repeats alone, where a search's best was confirmed by two or more of them.

    The run that got a configuration picked was picked partly for its luck, which would flatter
    the mean.
    """
    repeats = [row for row in rows if "confirms" in row and not pd.isna(row["confirms"])]
    return repeats if len(repeats) > 1 else rows


def _group(rows: Sequence[dict[str, Any]], costly: Sequence[str] | None) -> Group:
    """A configuration of rows in number order; `costly` settings move what a run costs.

    A seed that was run twice counts once: it is no repeat.
    """
    by_seed: dict[int, dict[str, Any]] = {}
    for row in rows:
        by_seed.setdefault(int(row["number"] if pd.isna(row["seed"]) else row["seed"]), row)
    seeds = sorted(by_seed)
    once = [by_seed[seed] for seed in seeds]
    costs = tuple(float(row["warm_device_seconds"]) for row in once)
    return Group(
        trials=tuple(int(row["number"]) for row in once),
        seeds=tuple(seeds),
        values=tuple(float(row["value"]) for row in once),
        row=once[0],
        device_seconds=sum(costs) / len(costs),
        costs=costs,
        work=None if costly is None else tuple(str(once[0][name]) for name in costly),
    )


def _placed(repeated: Sequence[Group], sign: float) -> list[Standing]:
    """Tier by tier: the best of what is left, and all that cannot be told from it."""
    left, tier = list(repeated), 0
    tiers: dict[int, int] = {}
    against_leader: dict[int, Comparison] = {}
    while left and tier < MOST_TIERS:
        tier += 1
        pool = _pool([group for group in repeated if group.seeds == left[0].seeds])
        tests = _against(left[0], left[1:], sign, pool)
        against_leader = against_leader or {id(group): test for group, test in tests}
        tied = [left[0], *(group for group, test in tests if test.tied)]
        tiers |= {id(group): tier for group in tied}
        left = [group for group in left if id(group) not in tiers]
    placed = [
        Standing(group, tiers.get(id(group), tier + 1), against_leader.get(id(group)))
        for group in repeated
    ]
    return sorted(placed, key=lambda standing: standing.tier or 0)


def _against(
    leader: Group, others: Sequence[Group], sign: float, pool: Pool | None
) -> list[tuple[Group, Comparison]]:
    raw = _tests(leader, others, sign, pool)
    if not raw:
        return []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adjusted = multipletests([item.p for item in raw], alpha=ALPHA, method="holm")[1]
    corrected = [replace(item, adjusted=float(p)) for item, p in zip(raw, adjusted, strict=True)]
    return list(zip(others, corrected, strict=True))


def _pooled(repeated: Sequence[Group]) -> float | None:
    freedom = _freedom(repeated)
    if not freedom:
        return None
    total = sum(group.deviation**2 * (len(group.values) - 1) for group in repeated)
    return float(np.sqrt(total / freedom))


def _freedom(repeated: Sequence[Group]) -> int:
    return sum(len(group.values) - 1 for group in repeated)


def _single(group: Group, leader: Group | None, repeated: Sequence[Group], sign: float) -> Standing:
    noise = _pooled(repeated)
    if leader is None or noise is None:
        return Standing(group, None)
    reach = stats.t.ppf(1 - ALPHA / 2, _freedom(repeated)) * noise
    reach *= np.sqrt(1 + 1 / len(leader.values))
    return Standing(group, None, None, bool(sign * (group.mean - leader.mean) <= reach))


def _parameters(group: Group) -> float:
    known = group.row.get("trainable_parameters")
    return float("inf") if known is None or pd.isna(known) else float(known)
