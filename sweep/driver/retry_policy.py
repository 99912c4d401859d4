"""What to do with a failed trial: one policy for each kind of failure, as pure functions."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sweep.spec.spec import FailuresSpec
from trial.config.trial_config import TrialConfig
from trial.store.records import Cause, CauseKind

OUT_OF_MEMORY = "out of memory"
"""First words of the note of a halved micro-batch among the changes of a trial's origin."""

IN_A_ROW: tuple[CauseKind, ...] = ("lost", "hung")
"""Failures that no longer count once the trial has got further than they did."""


@dataclass(frozen=True, slots=True)
class Retry:
    """Try the trial again: after `wait` seconds, with half the micro-batch when `halve`."""

    wait: float = 0.0
    halve: bool = False


def retry_action(policy: FailuresSpec, kind: CauseKind, tries: int) -> Retry | None:
    """What to do after a failure of a kind for which the trial was retried `tries` times before.

    Returns:
        How to try again; None to give the trial up.
    """
    actions: dict[CauseKind, tuple[int, Retry]] = {
        "diverged": (0, Retry()),
        "out_of_memory": (policy.out_of_memory_retries, Retry(halve=True)),
        "lost": (policy.lost_retries, Retry()),
        "hung": (policy.hung_retries, Retry()),
        "device_busy": (policy.device_busy_retries, Retry(wait=policy.device_busy_wait)),
        "error": (policy.error_retries, Retry()),
    }
    limit, action = actions[kind]
    return action if tries < limit else None


def count_tries(past: Iterable[Cause], now: Cause) -> int:
    """How often a trial was retried for the kind of failure that it has now.

    Always 0 for `out_of_memory`: there the halvings of its configuration are counted instead, for a
    kill may come between the note of a failure and the smaller configuration.
    """
    if now.kind == "out_of_memory":
        return 0
    same = [cause for cause in past if cause.kind == now.kind]
    if now.kind in IN_A_ROW:
        same = [cause for cause in same if (cause.step or 0) >= (now.step or 0)]
    return len(same)


def is_halving(change: str) -> bool:
    """Whether a change of a trial's origin is a halved micro-batch."""
    return change.startswith(OUT_OF_MEMORY)


def halve_micro_batch(config: TrialConfig) -> TrialConfig | None:
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
    origin = config.origin.model_copy(update={"changes": [*config.origin.changes, change]})
    return config.model_copy(update={"training": smaller, "origin": origin})


def halved_as(config: TrialConfig, count: int) -> TrialConfig:
    """A configuration whose micro-batch is halved so many times, or as often as it can be."""
    for _ in range(count):
        config = halve_micro_batch(config) or config
    return config


def count_halvings(config: TrialConfig) -> int:
    """How often the micro-batch of a configuration has been halved."""
    return sum(map(is_halving, config.origin.changes if config.origin else []))


def config_difference(found: TrialConfig, proposed: TrialConfig) -> str:
    """How a stored configuration differs from the proposed one, but for halved micro-batches."""
    differs = found.difference(halved_as(proposed, count_halvings(found)))
    for name in ("number", "confirms", "continues"):
        here, there = (getattr(config.origin, name, None) for config in (found, proposed))
        if differs is None and here != there:
            differs = f"origin.{name}", here, there
    if differs is None:
        return ""
    key, here, there = differs
    return f"{key} is {here!r}, the study proposed {there!r}"
