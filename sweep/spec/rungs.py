"""The rungs of halving pruners: optimizer steps at which they decide whether a trial goes on."""

from __future__ import annotations

import math
from typing import Any

from sweep.spec.spec import SweepSpec
from trial.config.sections import TRAINING_DEFAULTS

HALVING = ("successive_halving", "hyperband")
"""Pruners that decide at rungs."""
FACTORS = {"successive_halving": 4, "hyperband": 3}
"""Optuna's default reduction factors."""
FIRST_RUNG_DIVISOR = 8
"""The first rung lies at or after this part of a trial's steps: loss curves cross before that
(docs/defaults.md)."""


def first_rung(spec: SweepSpec) -> int:
    """Optimizer step of the first evaluation at or after an eighth of a trial."""
    first, last = first_evaluation(spec), last_step(spec)
    return first if last is None else first * max(1, math.ceil(last / FIRST_RUNG_DIVISOR / first))


def first_evaluation(spec: SweepSpec) -> int:
    """Optimizer step of the first evaluation; 1 when it depends on the length of the data."""
    if chosen := (spec.base.get("evaluation") or {}).get("steps"):
        return int(chosen[0])
    training = {**TRAINING_DEFAULTS, **spec.base.get("training", {})}
    every, total = training["eval_steps"], training["max_steps"]
    if every >= 1:
        return int(every)
    return max(1, int(every * total)) if total > 0 else 1


def last_step(spec: SweepSpec) -> int | None:
    """Optimizer step at which every trial ends; None when it is searched or depends on the data."""
    steps = {**TRAINING_DEFAULTS, **spec.base.get("training", {})}["max_steps"]
    known = steps > first_evaluation(spec) and "training.max_steps" not in spec.space
    return int(steps) if known else None


def min_resource(spec: SweepSpec, name: str) -> int:
    """The first rung of a pruner by its name, for options that leave `min_resource` out."""
    return first_rung(spec) if name == "successive_halving" else first_evaluation(spec)


def rungs(spec: SweepSpec) -> list[int] | None:
    """The rungs before the last step; None when the pruner has none, or they are not known.

    The pruner's options must be valid. Rungs follow Optuna's `SuccessiveHalvingPruner`:
    `min_resource * reduction_factor ** (min_early_stopping_rate + rung)`.
    """
    name, options, last = spec.pruner.name, spec.pruner.options, last_step(spec)
    first = options.get("min_resource", min_resource(spec, name))
    if name not in HALVING or last is None or not isinstance(first, int):
        return None
    factor = options.get("reduction_factor", FACTORS[name])
    # The exponent is bounded: it may be as large as somebody has typed.
    step = first * factor ** min(options.get("min_early_stopping_rate", 0), last.bit_length())
    found = []
    while step < last:
        found.append(step)
        step *= factor
    return found


def evaluated_at_rungs(spec: SweepSpec) -> SweepSpec:
    """The sweep with the rungs as `evaluation.steps`, when its pruner evaluates at the rungs."""
    if spec.pruner.evaluate != "rungs" or not (steps := rungs(spec)):
        return spec
    section: dict[str, Any] = {**(spec.base.get("evaluation") or {}), "steps": steps}
    # `min_resource` follows the first evaluation, which is another one now: keep it as it was.
    first = {"min_resource": min_resource(spec, spec.pruner.name), **spec.pruner.options}
    pruner = spec.pruner.model_copy(update={"options": first})
    return spec.model_copy(update={"base": {**spec.base, "evaluation": section}, "pruner": pruner})
