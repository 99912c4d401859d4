"""Axes for numeric parameters."""

from __future__ import annotations

import numpy as np
import pandas as pd

from results.analysis.importance import is_log
from results.data import format
from results.page.chart import Axis

FEW = 7


def number_axis(title: str, column: pd.Series) -> Axis:
    """Axis of a numeric parameter: log scale over a decade or more, ticks at the values if few."""
    values = np.unique(column.dropna().to_numpy(float))
    log = is_log(column)
    named = len(values) <= FEW and (log or all(float(value).is_integer() for value in values))
    if not named and not (log and values[-1] / values[0] < 100):
        return Axis(title, log=log)
    shown = values if named else np.geomspace(values[0], values[-1], 5)
    labels = tuple((float(value), _text(float(value))) for value in shown)
    return Axis(title, log=log, labels=labels)


def _text(value: float) -> str:
    return format.count(value) if value >= 1000 else format.number(value, 2 + (value >= 100))
