"""What to do with a failed trial: one policy for each kind of failure, as pure functions."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from pydantic import Field

from trial.config import Origin, Section, TrialConfig
from trial.folder import Cause, CauseKind


class FailuresSpec(Section):
    """Failures by kind, each with its own policy.

    A diverged trial has none: it is told as pruned at its step, so that the sampler learns, and is
    not tried again. `base.diverged_above` bounds the loss; NaN and infinity always count.
    """

    out_of_memory_retries: int = Field(default=1, ge=0)
    """Tries with half the micro-batch and twice the accumulation: the same effective batch. Then
    the trial is infeasible, and the sampler is told by a constraint."""
    lost_retries: int = Field(default=3, ge=0)
    """Losses of a trial's worker or node in a row without a new evaluation. It goes on from its
    checkpoint each time."""
    hung_minutes: float | None = Field(default=30.0, gt=0, allow_inf_nan=False)
    """Minutes without a step or an evaluated batch after which a trial is ended; null waits on."""
    hung_retries: int = Field(default=1, ge=0)
    """Tries after a trial hung, from its checkpoint."""
    device_busy_retries: int = Field(default=10, ge=0)
    """Tries after a device that another process holds."""
    device_busy_wait: float = Field(default=30.0, ge=0, allow_inf_nan=False)
    """Seconds before each of them."""
    error_retries: int = Field(default=0, ge=0)
    """Tries after any other exception: usually the user's to mend."""
    alike: int = Field(default=3, ge=1)
    """So many trials in a row that fail in the same way end the sweep. Those that diverged or ran
    out of memory count only until a trial is complete: the sampler learns to keep away."""


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
