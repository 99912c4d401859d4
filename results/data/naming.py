"""Display names of settings and metrics, and how values of a metric are formatted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd

from results.data import format

_SHORT = {
    "training.learning_rate": "learning rate", "lora.r": "r", "lora.lora_alpha": "alpha",
    "lora.lora_dropout": "dropout", "lora.use_rslora": "rsLoRA", "lora.target_modules": "targets",
    "training.seed": "seed", "zero_stage": "ZeRO",
}  # fmt: skip


def short_name(name: str) -> str:
    """Display name of a dotted path: `training.learning_rate` is `learning rate`."""
    return _SHORT.get(name) or name.rsplit(".", 1)[-1].replace("_", " ")


def capitalize(text: str) -> str:
    """Text with its first letter capitalised; a leading `r ` (the rank) stays lower-case."""
    return text if text.startswith("r ") else text[:1].upper() + text[1:]


def ranked_trials(table: pd.DataFrame, state: str = "complete") -> pd.DataFrame:
    """Trials of one state, best first; those without a value last, ties by number."""
    rows = table[table["state"] == state]
    upward = lower_is_better(table)
    return rows.sort_values(["value", "number"], ascending=[upward, True], na_position="last")


def lower_is_better(table: pd.DataFrame) -> bool:
    """Whether the study's first objective is minimised."""
    return first_objective(table)[1] != "maximize"


def metric_name(metric: str) -> str:
    """Display name of a metric."""
    return metric.removesuffix("_bytes").replace("_", " ")


def first_objective(table: pd.DataFrame) -> tuple[str, str]:
    """Metric and direction of the study's first objective."""
    objectives = table.attrs.get("objectives") or [["eval_loss", "minimize"]]
    return objectives[0][0], objectives[0][1]


def value_formatter(table: pd.DataFrame) -> Callable[[Any], str]:
    """Formatter of the study's first objective."""
    return metric_formatter(first_objective(table)[0])


def metric_formatter(metric: str) -> Callable[[Any], str]:
    """Formatter of a metric's values."""
    if "loss" in metric:
        return format.loss
    if metric.endswith("_bytes"):
        return format.size
    return format.number


def format_noise(metric: str, noise: float) -> str:
    """Formatted standard deviation of a metric."""
    return metric_formatter(metric)(noise) if metric.endswith("_bytes") else format.number(noise, 2)


def join_words(parts: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return ", ".join(parts[:-1]) + f" and {parts[-1]}" if len(parts) > 1 else "".join(parts)
