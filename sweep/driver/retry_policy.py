"""What to do with a failed trial: one policy for each kind of failure, as pure functions."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sweep.spec.spec import FailuresSpec
from trial.config.trial_config import Origin, TrialConfig
from trial.store.records import Cause, CauseKind

MEMORY = "out_of_memory"
"""The constraint that a trial violates which no device had the memory for."""

OUT_OF_MEMORY = "out of memory"
"""How a change of a trial's origin begins when it was made for this."""


@dataclass(frozen=True, slots=True)
class Retry:
    """Try the trial again: after `wait` seconds, with half the micro-batch when `halve`."""

    wait: float = 0.0
    halve: bool = False


IN_A_ROW: tuple[CauseKind, ...] = ("lost", "hung")
"""Failures that count no more once the trial has come further."""


def tries(past: Iterable[Cause], now: Cause) -> int:
    """How often a trial was retried for the kind of failure it has now.

    Not for want of memory: what counts there is how often its configuration was halved, for a kill
    may come between the note of a failure and the smaller configuration.
    """
    if now.kind == "out_of_memory":
        return 0
    alike = [cause for cause in past if cause.kind == now.kind]
    if now.kind in IN_A_ROW:
        alike = [cause for cause in alike if (cause.step or 0) >= (now.step or 0)]
    return len(alike)


def retry(policy: FailuresSpec, kind: CauseKind, tries: int) -> Retry | None:
    """What to do after a trial failed by `kind`, having been retried `tries` times for it."""
    allowed = {
        "diverged": 0,
        "out_of_memory": policy.out_of_memory_retries,
        "lost": policy.lost_retries,
        "hung": policy.hung_retries,
        "device_busy": policy.device_busy_retries,
        "error": policy.error_retries,
    }
    if tries >= allowed[kind]:
        return None
    wait = policy.device_busy_wait if kind == "device_busy" else 0.0
    return Retry(wait, halve=kind == "out_of_memory")


def is_halving(change: str) -> bool:
    """Whether a change of a trial's origin is a halved micro-batch."""
    return change.startswith(OUT_OF_MEMORY)


def halved(config: TrialConfig) -> TrialConfig | None:
    """The same effective batch in half the memory; None when the micro-batch is one row or odd."""
    training = config.training
    rows, steps = training["per_device_train_batch_size"], training["gradient_accumulation_steps"]
    if rows % 2 or config.origin is None:
        return None
    smaller = {
        **training,
        "per_device_train_batch_size": rows // 2,
        "gradient_accumulation_steps": steps * 2,
    }
    batch, accumulation = f"{rows} -> {rows // 2}", f"{steps} -> {steps * 2}"
    change = f"{OUT_OF_MEMORY}: micro-batch {batch}, accumulation {accumulation}"
    origin: Origin = config.origin.model_copy(update={"changes": [*config.origin.changes, change]})
    return config.model_copy(update={"training": smaller, "origin": origin})
