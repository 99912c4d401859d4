"""Parameters, numbers and durations as short text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def params_text(params: Mapping[str, Any]) -> str:
    """Parameters as `r=8 learning_rate=0.0002`: last part of each name, short numbers."""
    return " ".join(f"{short_name(name)}={value_text(value)}" for name, value in params.items())


def short_name(name: str) -> str:
    """`training.learning_rate` -> `learning_rate`; a branch's condition is left out."""
    return name.partition("[")[0].rpartition(".")[2]


def number_text(value: float) -> str:
    """A value of an objective: four decimals, or four digits from 10,000 on."""
    return f"{value:.4f}" if abs(value) < 10_000 else f"{value:.4g}"


def value_text(value: Any) -> str:
    """A parameter's value; floats with three digits."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def duration_text(seconds: float) -> str:
    """`75` -> `1:15`, `3700` -> `1:01:40`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
