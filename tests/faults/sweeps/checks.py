"""What must hold of a study after every kill: nothing lost, nothing done twice."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from trial.store.files import read_lines
from trial.store.folders import StudyFolder, TrialFolder

STEPS, EVERY = 40, 5
"""Optimizer steps of a trial, and between two evaluations."""


class LostError(AssertionError):
    """Something was lost, done twice, or left behind."""


def require(holds: bool, what: str) -> None:
    """Raise LostError unless `holds`."""
    if not holds:
        raise LostError(what)


@dataclass
class Snapshot:
    """What was final at one moment, by trial number."""

    results: dict[int, tuple[int, int, str]] = field(default_factory=dict)
    """Inode, modification time in ns and SHA-256 of each `result.json`."""
    evaluations: dict[int, dict[int, float]] = field(default_factory=dict)
    """Eval loss by step."""


def snapshot(study: StudyFolder) -> Snapshot:
    """What is on disk now."""
    made = Snapshot()
    for number, folder in study.all_trials():
        if folder.result.exists():
            stat = folder.result.stat()
            print_ = hashlib.sha256(folder.result.read_bytes()).hexdigest()
            made.results[number] = (stat.st_ino, stat.st_mtime_ns, print_)
        made.evaluations[number] = {r.step: r.eval_loss for r in folder.read_evaluations()}
    return made


def check_metrics(number: int, folder: TrialFolder) -> None:
    """Steps without gaps or repeats; a step measured twice has the same loss both times."""
    rows = [row for row in read_lines(folder.metrics) if row.get("kind") == "eval"]
    seen: dict[int, float] = {}
    for row in rows:
        same = seen.setdefault(row["step"], row["eval_loss"]) == row["eval_loss"]
        require(same, f"trial {number} step {row['step']}: {row['eval_loss']} and {seen}")
    steps = [row.step for row in folder.read_evaluations()]
    whole = list(range(EVERY, EVERY * len(steps) + 1, EVERY))
    require(steps == whole, f"trial {number} has evaluations at {steps}")
    result = folder.read_result()
    if result and result.state == "complete":
        require(steps[-1:] == [STEPS], f"trial {number} is complete with steps {steps}")
        best = min(row.eval_loss for row in folder.read_evaluations())
        require(
            result.eval_loss == best, f"trial {number} has {result.eval_loss}, its best is {best}"
        )


def curves(study: StudyFolder) -> dict[str, dict[int, float]]:
    """Eval loss by step for each configuration's fingerprint."""
    found = {}
    for _, folder in study.all_trials():
        rows = {row.step: row.eval_loss for row in folder.read_evaluations()}
        found[folder.read_config().fingerprint()] = rows
    return found
