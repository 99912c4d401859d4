"""Parameter importance by Optuna's evaluators: fANOVA and PED-ANOVA.

fANOVA: Hutter et al. 2014 (ICML). PED-ANOVA: Watanabe et al. 2023, arXiv:2304.10255. They
run on an in-memory study that is built from the table; no sweep's storage is opened.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from results.data.naming import lower_is_better
from results.data.trials_table import SEEDS

if TYPE_CHECKING:
    import optuna

Shares = tuple[dict[str, float], dict[str, float]]

ENOUGH = 20
"""With fewer complete trials the report calls the importance a hint."""
MAX_FANOVA_TRIALS = 300
"""Largest number of trials that fANOVA is fitted to, spread evenly over the ranked values."""
MAX_CHOICES = 8
"""Most values of a categorical parameter for fANOVA as such: its time doubles with each value.
More values are put in the order of their mean objective, and split like a number."""
FEWEST = 4
"""With fewer complete trials no importance is computed."""


@dataclass(frozen=True, slots=True)
class Importance:
    """Shares of the searched parameters by two methods; each sums to one."""

    names: tuple[str, ...]
    ped_anova: tuple[float, ...]
    """Shares by PED-ANOVA: what separates the best tenth of the trials from the rest."""
    fanova: tuple[float, ...]
    """Shares of the objective's variance by fANOVA; NaN where it could not be fitted."""
    trials: int
    """Number of complete trials used."""
    left_out: tuple[str, ...] = ()
    """Conditional parameters; they are left out because not every trial has them."""

    @property
    def few(self) -> bool:
        """Whether there are fewer than `ENOUGH` trials."""
        return self.trials < ENOUGH


def importance(table: pd.DataFrame) -> Importance | None:
    """Importance of the searched parameters; None for fewer than two, or than FEWEST trials."""
    # Repeats add no new configuration, and only the best ones are repeated.
    rows = table[(table["state"] == "complete") & table["value"].notna() & table["confirms"].isna()]
    searched = [name for name in table.attrs.get("searched", ()) if name not in SEEDS]
    names = [name for name in searched if rows[name].nunique() > 1]
    always = [name for name in names if rows[name].notna().all()]
    if len(rows) < FEWEST or len(always) < 2 or rows["value"].nunique() < 2:
        return None
    sign = 1.0 if lower_is_better(table) else -1.0
    ped, fanova = _shares(rows, always, sign)
    order = sorted(always, key=lambda name: (-(fanova or ped).get(name, 0.0), name))
    return Importance(
        names=tuple(order),
        ped_anova=tuple(float(ped.get(name, np.nan)) for name in order),
        fanova=tuple(float(fanova.get(name, np.nan)) for name in order),
        trials=len(rows),
        left_out=tuple(name for name in names if name not in always),
    )


def _shares(rows: pd.DataFrame, names: Sequence[str], sign: float) -> Shares:
    import optuna

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        try:
            ped = optuna.importance.PedAnovaImportanceEvaluator()
            fanova = optuna.importance.FanovaImportanceEvaluator(seed=0)
            return (
                _evaluate(_study(rows, names, sign), ped),
                _evaluate(_study(_few_choices(_thinned(rows), names), names, sign), fanova),
            )
        finally:
            optuna.logging.set_verbosity(before)


def _few_choices(rows: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """The rows with each parameter of many choices as ranks by mean objective, from zero."""
    wide = [n for n in names if not is_number(rows[n]) and rows[n].nunique() > MAX_CHOICES]
    ranks = {
        name: rows["value"].groupby(rows[name].astype(str)).mean().rank(method="first") - 1
        for name in wide
    }
    return rows.assign(**{n: rows[n].astype(str).map(ranks[n]).astype(float) for n in wide})


def _evaluate(study: optuna.Study, evaluator: Any) -> dict[str, float]:
    import optuna

    try:
        return optuna.importance.get_param_importances(study, evaluator=evaluator)
    except (RuntimeError, ValueError, ZeroDivisionError):
        return {}


def _study(rows: pd.DataFrame, names: Sequence[str], sign: float) -> optuna.Study:
    import optuna

    kinds = {name: _distribution(rows[name]) for name in names}
    listed = rows[[*names, "value"]].to_dict("records")
    study = optuna.create_study()
    study.add_trials(
        [
            optuna.trial.create_trial(
                params={name: kinds[name][1](row[name]) for name in names},
                distributions={name: kinds[name][0] for name in names},
                value=sign * row["value"],
            )
            for row in listed
        ]
    )
    return study


def _distribution(
    column: pd.Series,
) -> tuple[optuna.distributions.BaseDistribution, Callable[[Any], Any]]:
    """An Optuna distribution that covers the values, and the conversion of one value to it."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    if not is_number(column):
        return CategoricalDistribution(sorted({str(value) for value in column})), str
    low, high = float(column.min()), float(column.max())
    return FloatDistribution(low, high, log=is_log(column)), float


def is_number(column: pd.Series) -> bool:
    """Whether the values are numbers."""
    kinds = pd.api.types
    return kinds.is_numeric_dtype(column) and not kinds.is_bool_dtype(column)


def is_log(column: pd.Series) -> bool:
    """Whether values spread over so many powers of ten that a log axis shows them better."""
    if not is_number(column) or not (column.dropna() > 0).all() or column.notna().sum() < 2:
        return False
    return bool(column.max() / column.min() >= 10)


def _thinned(rows: pd.DataFrame) -> pd.DataFrame:
    if len(rows) <= MAX_FANOVA_TRIALS:
        return rows
    ordered = rows.sort_values(["value", "number"])
    return ordered.iloc[np.linspace(0, len(rows) - 1, MAX_FANOVA_TRIALS).astype(int)]
