"""Optuna's samplers and pruners as a sweep file names them."""

from __future__ import annotations

from typing import Any

import optuna
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler

from sweep.spec.optuna_options import PRUNERS, SAMPLERS
from sweep.spec.rungs import HALVING, last_step, min_resource
from sweep.spec.spec import SweepSpec
from sweep.study.successive_halving import Halving


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
    if name in HALVING:
        # Optuna guesses the first rung from the first trial; we know where trials are evaluated.
        given.setdefault("min_resource", min_resource(spec, name))
    if name == "hyperband" and (steps := last_step(spec)):
        # It would prune nothing before the first trial has shown how long trials are.
        given.setdefault("max_resource", steps)
    if name == "successive_halving" and given["min_resource"] != "auto":
        return Halving(**given)
    made: BasePruner = PRUNERS[name].type(**given)
    return made
