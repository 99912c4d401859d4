"""The answer in words: what wins, by how much, where it lies, what it cost, what to try next."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from results import units
from results.show import lower_is_better, objective, ranked, short, value_text

RANK = "lora.r"
RATE = "training.learning_rate"


def sentences(table: pd.DataFrame, spec: Mapping[str, Any]) -> list[str]:
    """Three to six sentences; the first one is the answer."""
    complete = ranked(table).dropna(subset="value")
    if complete.empty:
        return [_nothing(table)]
    told = [_winner(table, complete), _margin(table, complete)]
    told += [_over_ranks(table), *edges(table, spec), _cost(table)]
    return [text for text in told if text]


def settings(row: Mapping[str, Any] | pd.Series, names: list[str]) -> str:
    """`r 16, learning rate 0.001`."""
    known = [(short(name), row[name]) for name in names if not units.is_missing(row[name])]
    return ", ".join(f"{name} {units.number(value)}" for name, value in known) or "the base"


def best_of_each(table: pd.DataFrame, name: str) -> pd.DataFrame:
    """The best complete trial at each value of `name`, in order of that value."""
    complete = ranked(table).dropna(subset=["value", name]) if name in table else table.iloc[:0]
    return complete.drop_duplicates(name).sort_values(name) if len(complete) else complete


def edges(table: pd.DataFrame, spec: Mapping[str, Any]) -> list[str]:
    """What to widen: the best value of a searched parameter lies at the end of what was tried."""
    complete = ranked(table).dropna(subset="value")
    if complete.empty:
        return []
    best, told = complete.iloc[0], []
    for name in table.attrs.get("searched", ()):
        tried = _tried(table, name, spec)
        if tried and len(tried) > 2 and (side := _side(best[name], tried)):
            told.append(
                f"The best {short(name)}, {units.number(best[name])}, lies at the {side} end of "
                f"what was tried ({units.number(tried[0])} to {units.number(tried[-1])}): widen it."
            )
    return told


def _tried(table: pd.DataFrame, name: str, spec: Mapping[str, Any]) -> list[float]:
    """Sorted numeric values tried, with the declared ends of a range; empty for other kinds."""
    column = table[name].dropna()
    if not pd.api.types.is_numeric_dtype(column) or pd.api.types.is_bool_dtype(column):
        return []
    declared = spec.get("space")
    dimension = declared.get(name) if isinstance(declared, Mapping) else None
    ends = [dimension.get(end) for end in ("low", "high")] if isinstance(dimension, Mapping) else []
    known = {float(end) for end in ends if isinstance(end, int | float)}
    return sorted({float(value) for value in column} | known)


def _side(value: Any, tried: list[float]) -> str:
    """Which end `value` is within five hundredths of, on a log axis where the range is wide."""
    if units.is_missing(value):
        return ""
    low, high = tried[0], tried[-1]
    if low > 0 and high / low >= 10:
        low, high, value = math.log(low), math.log(high), math.log(float(value))
    share = (float(value) - low) / (high - low)
    return "lower" if share <= 0.05 else "upper" if share >= 0.95 else ""


def _winner(table: pd.DataFrame, complete: pd.DataFrame) -> str:
    best = complete.iloc[0]
    names = table.attrs.get("searched", [])
    metric = objective(table)[0].replace("_", " ")
    value = value_text(table)(best["value"])
    rank = best.get(RANK)
    lead = f"Rank {rank} wins" if RANK in names and not units.is_missing(rank) else "Best"
    return f"{lead}: {metric} {value} in trial {best['number']} ({settings(best, names)})."


def _margin(table: pd.DataFrame, complete: pd.DataFrame) -> str:
    if len(complete) < 2:
        return "It is the only trial that was completed, so it beats nothing yet."
    best, second = complete.iloc[0], complete.iloc[1]
    text, names = value_text(table), table.attrs.get("searched", [])
    gap = abs(second["value"] - best["value"])
    return (
        f"The next is trial {second['number']} ({settings(second, names)}) at "
        f"{text(second['value'])}, {text(gap)} behind. No configuration was repeated over seeds, "
        "so the noise is unknown and small differences may mean nothing."
    )


def _over_ranks(table: pd.DataFrame) -> str:
    each = best_of_each(table, RANK)
    if len(each) < 2 or RATE not in each or each[RATE].isna().all():
        return ""
    pairs = [f"{r}: {units.number(lr)}" for r, lr in zip(each[RANK], each[RATE], strict=True)]
    return f"Best learning rate by rank: {', '.join(pairs)}."


def _cost(table: pd.DataFrame) -> str:
    spent = table["device_seconds"].sum()
    lost = table.loc[table["state"] == "failed", "device_seconds"].sum()
    pruned = table.loc[table["state"] == "pruned", "device_seconds"].sum()
    return (
        f"It took {units.seconds(spent)} of device time; {units.percent(pruned, spent)} of it went "
        f"to trials that were pruned and {units.percent(lost, spent)} to trials that failed."
    )


def _nothing(table: pd.DataFrame) -> str:
    if table.empty:
        return "No trial has been started yet."
    failed = table.loc[table["state"] == "failed", "cause"].dropna()
    common = failed.mode()
    why = f" The commonest cause of failure: {common.iloc[0]}." if len(common) else ""
    better = "low" if lower_is_better(table) else "high"
    return f"No trial has been completed, so there is no {better}est value to name yet.{why}"
