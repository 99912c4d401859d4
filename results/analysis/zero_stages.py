"""ZeRO stages: time and memory of each, and the parity of their eval losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from results.data import format
from results.data.folders import StudyRead, TrialRead

STAGE = "zero_stage"

ROUNDING: Mapping[str, float] = {"float32": 1e-4, "bfloat16": 1e-2, "float16": 5e-3}
"""Largest relative difference in eval loss that rounding explains, by dtype of the base weights.
Beyond it two stages have not trained the same model."""


@dataclass(frozen=True, slots=True)
class Parity:
    """Two trials that differ only in the stage, compared at the steps that both evaluated."""

    reference: int
    other: int
    stages: tuple[str, str]
    steps: int
    """Number of compared evaluations."""
    worst: float
    """Largest relative difference in eval loss."""
    at_step: int
    allowed: float

    @property
    def agrees(self) -> bool:
        """Whether rounding can explain the difference."""
        return self.worst <= self.allowed


def is_searched(table: pd.DataFrame) -> bool:
    """Whether the study's trials differ in their stage."""
    return STAGE in table.attrs.get("varied", ())


def stage_name(stage: object) -> str:
    """Display name of a stage."""
    return "no DeepSpeed" if format.is_missing(stage) else f"ZeRO-{stage}"


def stages(table: pd.DataFrame) -> pd.DataFrame:
    """Medians over each stage's complete trials: seconds per step, tokens per second, memory."""
    complete = table[table["state"] == "complete"]
    names = ["seconds_per_step", "tokens_per_second", "peak_memory_bytes", "eval_loss"]
    level = complete[STAGE].fillna(-1)
    grouped = complete.groupby(level, sort=True)
    medians = grouped[names].median().assign(trials=grouped.size())
    stages = [stage_name(None if level == -1 else level) for level in medians.index]
    return medians.assign(stage=stages).reset_index(drop=True)


def audit(study: StudyRead) -> list[Parity]:
    """Compare every trial with the otherwise equal trial of the lowest stage."""
    alike: dict[tuple[tuple[str, str], ...], list[TrialRead]] = {}
    for trial in study.trials:
        if trial.state == "complete" and len(trial.curve):
            alike.setdefault(_but_stage(trial), []).append(trial)
    pairs = []
    for trials in alike.values():
        ordered = sorted(trials, key=lambda trial: (_level(trial), trial.number))
        pairs += [
            parity
            for other in ordered[1:]
            if _level(other) != _level(ordered[0]) and (parity := _compare(ordered[0], other))
        ]
    return pairs


def disagreements(pairs: Sequence[Parity]) -> list[Parity]:
    """Pairs whose difference rounding does not explain, worst first."""
    return sorted((pair for pair in pairs if not pair.agrees), key=lambda pair: -pair.worst)


def _but_stage(trial: TrialRead) -> tuple[tuple[str, str], ...]:
    ignored = (STAGE, "deepspeed.offload_optimizer", "deepspeed.offload_param")
    return tuple(sorted((k, str(v)) for k, v in trial.config.items() if k not in ignored))


def _level(trial: TrialRead) -> int:
    stage = trial.config.get(STAGE)
    return stage if isinstance(stage, int) else -1


def _compare(reference: TrialRead, other: TrialRead) -> Parity | None:
    steps, mine, its = np.intersect1d(reference.curve.step, other.curve.step, return_indices=True)
    if not len(steps):
        return None
    base, value = reference.curve.eval_loss[mine], other.curve.eval_loss[its]
    apart = np.abs(value - base) / np.maximum(np.abs(base), 1e-12)
    apart = np.where(np.isfinite(apart), apart, np.inf)
    worst = int(np.argmax(apart))
    dtype = str(reference.config.get("model.dtype"))
    names = (stage_name(reference.config.get(STAGE)), stage_name(other.config.get(STAGE)))
    return Parity(
        reference.number, other.number, names, len(steps), float(apart[worst]),
        int(steps[worst]), ROUNDING.get(dtype, ROUNDING["float32"]),
    )  # fmt: skip
