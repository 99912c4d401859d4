"""When a sweep ends: pure rules over its progress."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sweep.driver.interfaces import OutcomeKind, SweepOutcome, SweepState
from sweep.driver.progress import SweepProgress
from sweep.spec.spec import StopSpec


@dataclass(frozen=True, slots=True)
class StopDecision:
    """What the sweep came to, and the state in which it ends."""

    outcome: SweepOutcome
    state: SweepState = SweepState.CLOSING
    """`STOPPING` interrupts the running trials too."""


Rule = Callable[[StopSpec, SweepProgress], StopDecision | None]


def _same_failure(stop: StopSpec, progress: SweepProgress) -> StopDecision | None:
    cause, count = progress.same_failure
    limit = progress.same_failure_limit
    # Trials of the first round fail together: let every device report once.
    if not count or count < max(limit, progress.capacity):
        return None
    # One bad base model among many is no reason to leave the others untried.
    many = min(limit, progress.base_models)
    if many > 1 and len(progress.failed_base_models) < many:
        return None
    reason = f"the last {count} trials failed alike: {cause}"
    return StopDecision(SweepOutcome(reason, OutcomeKind.FAILED), SweepState.STOPPING)


def _trials(stop: StopSpec, progress: SweepProgress) -> StopDecision | None:
    if progress.planned is None or progress.begun < progress.planned:
        return None
    return StopDecision(SweepOutcome(f"all {progress.planned} trials are done"))


def _hours(stop: StopSpec, progress: SweepProgress) -> StopDecision | None:
    if stop.hours is None or progress.elapsed < stop.hours * 3600:
        return None
    return StopDecision(SweepOutcome(f"{stop.hours:g} hours are over"), SweepState.STOPPING)


def _device_hours(stop: StopSpec, progress: SweepProgress) -> StopDecision | None:
    if stop.device_hours is None or progress.device_seconds < stop.device_hours * 3600:
        return None
    return StopDecision(
        SweepOutcome(f"{stop.device_hours:g} device-hours are spent"), SweepState.STOPPING
    )


def _no_improvement(stop: StopSpec, progress: SweepProgress) -> StopDecision | None:
    if stop.no_improvement is None or not progress.best:
        return None
    if progress.since_best < stop.no_improvement:
        return None
    reason = f"no improvement in {progress.since_best} trials"
    if progress.measured.groups > 1:
        reason += " on trials measured on the same evaluation set"
    return StopDecision(SweepOutcome(reason))


def _target(stop: StopSpec, progress: SweepProgress) -> StopDecision | None:
    if stop.target is None or not progress.best:
        return None
    sign = -1.0 if progress.maximize else 1.0
    if sign * progress.best.value > sign * stop.target:
        return None
    reason = f"the target {stop.target:g} is reached"
    if progress.measured.groups > 1:
        reason += " in the largest group measured on the same evaluation set"
    return StopDecision(SweepOutcome(reason), SweepState.STOPPING)


RULES: tuple[Rule, ...] = (_same_failure, _target, _hours, _device_hours, _no_improvement, _trials)


def stop_decision(stop: StopSpec, progress: SweepProgress) -> StopDecision | None:
    """The decision of the first rule that ends the sweep now; None to go on."""
    return next((decision for rule in RULES if (decision := rule(stop, progress))), None)


def judged(outcome: SweepOutcome, progress: SweepProgress) -> SweepOutcome:
    """The outcome; a failure instead where all trials have ended and none has a value.

    Trials that were interrupted may still get one.
    """
    if outcome.kind is not OutcomeKind.DONE or progress.with_value or progress.unfinished_seconds:
        return outcome
    if not (why := progress.without_value):
        return outcome
    most, count = why.most_common(1)[0]
    others = f", and {len(why) - 1} other reason{'s' * (len(why) > 2)}" if len(why) > 1 else ""
    trials = f"none of {why.total()} trials has a value of {progress.metric}"
    reason = f"{outcome.reason}, but {trials}: {count} x {most}{others}"
    return SweepOutcome(reason, OutcomeKind.FAILED)
