"""Completed configurations ranked: leader, ties, what the leader beats, and the cheapest tie."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats
from statsmodels.stats.multitest import multipletests

from results.analysis.significance import (
    ALPHA,
    Comparison,
    Group,
    Pool,
    compare_all,
    degrees_of_freedom,
    pool_noise,
    pooled_deviation,
)
from results.data.measured import measured_alike
from results.data.naming import lower_is_better

MOST_TIERS = 5
"""Number of tiers; all configurations below the last one share one more."""
CLOSE_COST = 0.15
"""Relative difference below which two costs count as equal: wall times vary by that much."""
COST_NEUTRAL_KEYS = frozenset({
    "training.learning_rate", "training.lr_scheduler_type", "training.lr_scheduler_kwargs",
    "training.warmup_ratio", "training.warmup_steps", "training.weight_decay",
    "training.max_grad_norm", "training.adam_beta1", "training.adam_beta2",
    "training.adam_epsilon", "training.label_smoothing_factor", "training.seed",
    "training.data_seed", "lora.lora_alpha", "lora.lora_dropout", "lora.use_rslora",
    "lora.init_lora_weights", "scale",
})  # fmt: skip
"""Settings that do not change the work of a run, and so its cost."""


@dataclass(frozen=True, slots=True)
class Standing:
    """Place of a configuration on the leaderboard."""

    group: Group
    tier: int | None
    """1 for the leader and its ties; None for a configuration with a single run."""
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
    """The cheapest of the first tier, the best of equally costly ones; or the best single run."""

    @property
    def leader(self) -> Group | None:
        """The repeated configuration with the best mean, or the best single run."""
        return self.standings[0].group if self.standings else None

    @property
    def tied(self) -> tuple[Standing, ...]:
        """The leader and its ties."""
        return tuple(standing for standing in self.standings if standing.tier == 1)

    @property
    def same_cost(self) -> bool:
        """Whether the first tier differs only in settings that do not change the cost."""
        works = {standing.group.work for standing in self.tied}
        return len(works) == 1 and None not in works

    @property
    def beaten(self) -> tuple[Standing, ...]:
        """Repeated configurations that are significantly worse than the leader, best first."""
        return tuple(item for item in self.standings if item.tier is not None and item.tier > 1)


def leaderboard(table: pd.DataFrame) -> Leaderboard:
    """Rank the completed configurations of a study, given by its table.

    Where trials were measured on unlike things, those of the largest group alone.
    """
    table = measured_alike(table)
    sign = 1.0 if lower_is_better(table) else -1.0
    groups = sorted(_groups(table), key=lambda group: sign * group.mean)
    repeated = [group for group in groups if group.repeated]
    noise = pooled_deviation(repeated)
    placed = _placed(repeated, sign)
    single = [group for group in groups if not group.repeated]
    leader = repeated[0] if repeated else None
    standings = (*placed, *(_single(group, leader, repeated, sign) for group in single))
    first = [item.group for item in standings if item.tier == 1] or [s.group for s in standings[:1]]
    return Leaderboard(standings, noise, cheapest(first, sign) if first else None)


def cheapest(groups: Sequence[Group], sign: float = 1.0) -> Group:
    """The configuration with the least device time; if nearly equal, the fewest parameters.

    Configurations that do the same work count as equally costly, whatever the measured times say:
    of those the one with the best mean is returned.
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


def _groups(table: pd.DataFrame) -> list[Group]:
    complete = table[(table["state"] == "complete") & table["value"].notna()]
    alike: dict[str, list[dict[str, Any]]] = {}
    for row in complete.to_dict("records"):
        alike.setdefault(row["group"], []).append({str(name): v for name, v in row.items()})
    varied = table.attrs.get("varied")
    costly = None if varied is None else [name for name in varied if name not in COST_NEUTRAL_KEYS]
    return [_group(_unbiased_rows(rows), costly) for rows in alike.values()]


def _unbiased_rows(rows: Sequence[dict[str, Any]]) -> Sequence[dict[str, Any]]:
    """Rows to average: only the confirmation runs, where there are two or more of them.

    The search run that got the configuration selected is left out: it was selected partly for its
    luck and would bias the mean.
    """
    repeats = [row for row in rows if "confirms" in row and not pd.isna(row["confirms"])]
    return repeats if len(repeats) > 1 else rows


def _group(rows: Sequence[dict[str, Any]], costly: Sequence[str] | None) -> Group:
    """Build a `Group` from rows in number order; `costly` names the settings that change the cost.

    A seed that was run twice counts once.
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
    """Assign tiers: repeatedly the best configuration left and all that tie with it."""
    left, tier = list(repeated), 0
    tiers: dict[int, int] = {}
    against_leader: dict[int, Comparison] = {}
    while left and tier < MOST_TIERS:
        tier += 1
        pool = pool_noise([group for group in repeated if group.seeds == left[0].seeds])
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
    raw = compare_all(leader, others, sign, pool)
    if not raw:
        return []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adjusted = multipletests([item.p for item in raw], alpha=ALPHA, method="holm")[1]
    corrected = [replace(item, adjusted=float(p)) for item, p in zip(raw, adjusted, strict=True)]
    return list(zip(others, corrected, strict=True))


def _single(group: Group, leader: Group | None, repeated: Sequence[Group], sign: float) -> Standing:
    """Standing of a single run, judged by the 95% t interval of one run minus the leader's mean."""
    noise = pooled_deviation(repeated)
    if leader is None or noise is None:
        return Standing(group, None)
    reach = stats.t.ppf(1 - ALPHA / 2, degrees_of_freedom(repeated)) * noise
    reach *= np.sqrt(1 + 1 / len(leader.values))
    return Standing(group, None, None, bool(sign * (group.mean - leader.mean) <= reach))


def _parameters(group: Group) -> float:
    known = group.row.get("trainable_parameters")
    return float("inf") if known is None or pd.isna(known) else float(known)
