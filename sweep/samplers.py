"""Optuna's samplers and pruners as a sweep file names them."""

from __future__ import annotations

import math
from typing import Any

import optuna
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler

from sweep.halving import Halving
from sweep.optuna_names import PRUNERS, SAMPLERS
from sweep.spec import SweepSpec
from trial.config import TRAINING_DEFAULTS


def make_sampler(spec: SweepSpec, seed: int) -> BaseSampler:
    """The sampler of a sweep file; a grid is walked by the decider itself."""
    if spec.sampler.name == "grid":
        return optuna.samplers.RandomSampler(seed=seed)
    made: BaseSampler = SAMPLERS[spec.sampler.name].type(seed=seed, **spec.sampler.options)
    return made


def make_pruner(spec: SweepSpec) -> BasePruner:
    """The pruner of a sweep file; steps are optimizer steps."""
    return _pruner(spec.pruner.name, spec.pruner.options, spec)


def _pruner(name: str, options: dict[str, Any], spec: SweepSpec) -> BasePruner:
    if name == "none":
        return optuna.pruners.NopPruner()
    given = dict(options)
    if name == "patient":
        wrapped = given.pop("wrapped", {"name": "none", "options": {}})
        inner = _pruner(wrapped["name"], wrapped["options"], spec)
        # Without a pruner to hold back, patience alone decides.
        none = isinstance(inner, optuna.pruners.NopPruner)
        return optuna.pruners.PatientPruner(None if none else inner, **given)
    if name in ("successive_halving", "hyperband"):
        # Optuna guesses the first rung from the first trial; we know where trials are evaluated.
        first = first_rung if name == "successive_halving" else first_evaluation
        given.setdefault("min_resource", first(spec))
    if name == "hyperband" and (steps := last_step(spec)):
        # It would prune nothing before the first trial has shown how long trials are.
        given.setdefault("max_resource", steps)
    if name == "successive_halving" and given["min_resource"] != "auto":
        return Halving(**given)
    made: BasePruner = PRUNERS[name].type(**given)
    return made


EARLIEST = 8
"""Halving starts after this fraction of a trial: curves cross before (docs/defaults.md)."""


def first_rung(spec: SweepSpec) -> int:
    """Optimizer step of the first evaluation that is not before an eighth of a trial."""
    first, last = first_evaluation(spec), last_step(spec)
    return first if last is None else first * max(1, math.ceil(last / EARLIEST / first))


def first_evaluation(spec: SweepSpec) -> int:
    """Optimizer step of the first evaluation; 1 when it depends on the length of the data."""
    training = {**TRAINING_DEFAULTS, **spec.base.get("training", {})}
    every, total = training["eval_steps"], training["max_steps"]
    if every >= 1:
        return int(every)
    return max(1, int(every * total)) if total > 0 else 1


def last_step(spec: SweepSpec) -> int | None:
    """Optimizer step at which every trial ends; None where that is searched, or up to the data."""
    steps = {**TRAINING_DEFAULTS, **spec.base.get("training", {})}["max_steps"]
    known = steps > first_evaluation(spec) and "training.max_steps" not in spec.space
    return int(steps) if known else None
