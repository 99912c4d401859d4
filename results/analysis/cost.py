"""Device time by use (training, evaluation, pruned, failed ...), and its price."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

USES = ("start-up and compile", "train", "eval", "save", "pruned", "failed", "retried")
"""Uses of device time. The first four count trials that are complete or still running; all time of
a pruned or failed trial counts as `pruned` or `failed`; `retried` is training that was lost with
an attempt and repeated by the next one."""

_PHASES = {
    "start-up and compile": ("seconds_startup", "seconds_load", "seconds_first_step"),
    "train": ("seconds_train",),
    "eval": ("seconds_eval",),
    "save": ("seconds_save",),
}


@dataclass(frozen=True, slots=True)
class Price:
    """Price of one device-hour."""

    per_device_hour: float
    currency: str = ""

    def of(self, device_seconds: float) -> str:
        """Device seconds in money."""
        amount = device_seconds / 3600 * self.per_device_hour
        text = f"{amount:,.2f}" if amount >= 0.1 or amount == 0 else f"{amount:.2g}"
        return f"{text} {self.currency}".strip()


def price_of(spec: Mapping[str, Any], given: float | None, currency: str) -> Price | None:
    """The price given, or the sweep file's `price_per_device_hour` (and `currency`), if any."""
    resources = spec.get("resources")
    said = resources if isinstance(resources, Mapping) else {}
    for value in (given, said.get("price_per_device_hour")):
        if isinstance(value, int | float) and not isinstance(value, bool) and value >= 0:
            return Price(float(value), currency or str(said.get("currency") or ""))
    return None


def seconds_by_use(table: pd.DataFrame) -> pd.DataFrame:
    """Device seconds by use; one row per trial, in the table's order."""
    devices = table["devices"].fillna(1).astype(float)
    total = table["device_seconds"].fillna(0.0)
    lost = (table["repeated_seconds"].fillna(0.0) * devices).clip(upper=total)
    spent = pd.DataFrame(0.0, index=table.index, columns=list(USES))
    kept = ~table["state"].isin(["pruned", "failed"])
    for name, columns in _PHASES.items():
        phase = sum((table[column].fillna(0.0) for column in columns), start=total * 0)
        spent[name] = (phase * devices).where(kept, 0.0)
    spent["retried"] = lost
    spent["train"] = (spent["train"] - lost.where(kept, 0.0)).clip(lower=0.0)
    for state in ("pruned", "failed"):
        spent[state] = (total - lost).where(table["state"] == state, 0.0)
    return spent


def total_by_use(table: pd.DataFrame) -> dict[str, float]:
    """Device seconds of the whole study by use."""
    return {str(name): float(value) for name, value in seconds_by_use(table).sum().items()}
