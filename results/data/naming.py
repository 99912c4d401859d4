"""Names of settings, metrics and values as people read them."""

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


def short(name: str) -> str:
    """A dotted path as people call it."""
    return _SHORT.get(name) or name.rsplit(".", 1)[-1].replace("_", " ")


def sentence(text: str) -> str:
    """Text with a capital at its start and everything else as it is; `r` stays `r`."""
    return text if text.startswith("r ") else text[:1].upper() + text[1:]


def ranked(table: pd.DataFrame, state: str = "complete") -> pd.DataFrame:
    """Trials of one state, best first; those without a value last, ties by number."""
    rows = table[table["state"] == state]
    upward = lower_is_better(table)
    return rows.sort_values(["value", "number"], ascending=[upward, True], na_position="last")


def lower_is_better(table: pd.DataFrame) -> bool:
    """Whether small values win in this study."""
    return objective(table)[1] != "maximize"


def words(metric: str) -> str:
    """A metric as people call it."""
    return metric.removesuffix("_bytes").replace("_", " ")


def objective(table: pd.DataFrame) -> tuple[str, str]:
    """Metric and direction of the study's first objective."""
    listed = table.attrs.get("objectives") or [["eval_loss", "minimize"]]
    return listed[0][0], listed[0][1]


def value_text(table: pd.DataFrame) -> Callable[[Any], str]:
    """How the study's value is written."""
    return metric_text(objective(table)[0])


def metric_text(metric: str) -> Callable[[Any], str]:
    """How values of a metric are written."""
    if "loss" in metric:
        return format.loss
    if metric.endswith("_bytes"):
        return format.size
    return format.number


def noise_text(metric: str, noise: float) -> str:
    """A standard deviation of a metric."""
    return metric_text(metric)(noise) if metric.endswith("_bytes") else format.number(noise, 2)


def listed(parts: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return ", ".join(parts[:-1]) + f" and {parts[-1]}" if len(parts) > 1 else "".join(parts)
