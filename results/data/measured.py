"""Trials that were measured on the same things: values are never ranked across such groups."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from results.data.naming import metric_name, ranked_trials, short_name
from results.data.trials_table import MEASURED_ON
from trial.store import metrics

_DECIDING = ("data.", "model.")
"""Sections of a configuration that decide what is evaluated."""


def measured_groups(table: pd.DataFrame) -> list[str]:
    """What complete trials were measured on, the group with the most trials first.

    Of equally large groups the one with the earliest trial comes first. At most one without any
    complete trial, or where nothing is known.
    """
    if MEASURED_ON not in table:
        return []
    return metrics.by_size(_valued(table).sort_values("number")[MEASURED_ON])


def _valued(table: pd.DataFrame) -> pd.DataFrame:
    rows = table[(table["state"] == "complete") & table["value"].notna()]
    return rows.assign(**{MEASURED_ON: rows[MEASURED_ON].fillna("")})


def measured_alike(table: pd.DataFrame, group: str | None = None) -> pd.DataFrame:
    """The trials of one group, by default the largest, and those of which nothing was measured."""
    groups = measured_groups(table)
    if len(groups) < 2:
        return table
    of = table[MEASURED_ON].fillna("")
    unknown = (of == "") & (table["state"] != "complete")
    rows = table[(of == (groups[0] if group is None else group)) | unknown]
    rows.attrs = dict(table.attrs)
    return rows


@dataclass(frozen=True, slots=True)
class MeasuredGroup:
    """Complete trials that were measured on the same things."""

    label: str
    """`A` for the largest, then `B` and so on."""
    trials: int
    """Number of complete trials."""
    row: Mapping[str, Any]
    """The table's row of the best one."""
    names: tuple[str, ...]
    """Settings of the data and the model that are equal in it and not in all trials."""


def best_of_groups(table: pd.DataFrame) -> list[MeasuredGroup]:
    """Every group with its best trial, the largest first."""
    rows = ranked_trials(table)
    rows = rows[rows["value"].notna()]
    if MEASURED_ON not in table or rows.empty:
        return []
    of = rows[MEASURED_ON].fillna("")
    varied = [n for n in table.attrs.get("varied", ()) if n.startswith(_DECIDING)]
    differing = [name for name in varied if rows[name].nunique(dropna=False) > 1]
    found = []
    for place, group in enumerate(measured_groups(table)):
        own = rows[of == group]
        names = tuple(name for name in differing if own[name].nunique(dropna=False) == 1)
        best = {str(name): value for name, value in own.iloc[0].items()}
        found.append(MeasuredGroup(_label(place), len(own), best, names))
    return found


def _label(place: int) -> str:
    """`A` to `Z`, then `AA`, `AB` and so on."""
    before, last = divmod(place, 26)
    return (_label(before - 1) if before else "") + chr(ord("A") + last)


def not_compared(table: pd.DataFrame) -> str:
    """The sentence that comes first where there is more than one group; else empty."""
    groups = measured_groups(table)
    if len(groups) < 2:
        return ""
    listed = [metric for metric, _ in table.attrs["objectives"]]
    kind = metrics.depends_on(listed)
    what = "texts" if kind == "text" else "evaluation sets"
    found = best_of_groups(table)
    keys = [name for name in found[0].names if all(name in item.names for item in found)]
    differs = "differs" if len(keys) == 1 else "differ"
    why = f" ({', '.join(short_name(name) for name in keys)} {differs})" if keys else ""
    name = " and ".join(metric_name(metric) for metric in listed)
    return (
        f"The complete trials were measured on {len(groups)} unlike {what}{why}, and {name} on "
        "unlike ones is not compared: what follows is of the largest group alone."
    )
