"""Where the seconds of one sweep went: shares of its workers' time that sum to the makespan."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from trial.store.folders import StudyFolder

BEFORE, IMPORTS = "command, Ray and workers up", "imports (torch, transformers, ...)"
BETWEEN, WAITING, AFTER = "between trials", "waiting for the last trial", "table, report, shutdown"
PHASES = {
    "load": "model, data, trainer",
    "first_step": "first step",
    "train": "training steps",
    "eval": "evaluation",
    "save": "adapters and checkpoints",
}


def profile(study: Path, began: float, ended: float) -> dict[str, float]:
    """Mean seconds of a worker by what they bought; `began` and `ended` are the command's."""
    lanes = _lanes(StudyFolder(study))
    last = max(end for *_, end in lanes)
    total: defaultdict[str, float] = defaultdict(float)
    for imports, started, phases, end in lanes:
        span = end - started
        spent = sum(phases.values())
        # Trials of a packed job share their seconds: their clocks may run side by side.
        share = min(1.0, span / spent) if spent else 1.0
        total[BEFORE] += max(0.0, started - imports - began)
        total[IMPORTS] += min(imports, started - began)
        for phase, seconds in phases.items():
            total[PHASES[phase]] += seconds * share
        total[BETWEEN] += span - spent * share
        total[WAITING] += last - end
        total[AFTER] += ended - last
    return {name: seconds / len(lanes) for name, seconds in total.items()}


def _lanes(study: StudyFolder) -> list[tuple[float, float, dict[str, float], float]]:
    """For each worker: seconds of imports, first start, seconds by phase, and its last end."""
    found: dict[int, list] = defaultdict(list)
    for _, trial in study.all_trials():
        attempts, result = trial.read_attempts(), trial.read_result()
        if attempts and result:
            found[attempts[-1].pid].append((attempts[-1].started, result))
    lanes = []
    for trials in found.values():
        started = min(start for start, _ in trials)
        imports = sum(result.seconds.startup for _, result in trials)
        phases = {
            phase: sum(getattr(result.seconds, phase) for _, result in trials) for phase in PHASES
        }
        lanes.append((imports, started, phases, max(result.finished for _, result in trials)))
    return lanes
