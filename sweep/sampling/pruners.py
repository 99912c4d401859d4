"""Optuna's pruners as a sweep file names them."""

from __future__ import annotations

from typing import Any

import optuna
from optuna.pruners import BasePruner

from sweep.sampling.successive_halving import CachedSuccessiveHalvingPruner
from sweep.spec.optuna_options import PRUNERS
from sweep.spec.rungs import HALVING, last_step, min_resource
from sweep.spec.spec import SweepSpec


def make_pruner(spec: SweepSpec) -> BasePruner:
    """The pruner of a sweep file; its resource is the optimizer step."""
    return _pruner(spec.pruner.name, spec.pruner.options, spec)


def _pruner(name: str, options: dict[str, Any], spec: SweepSpec) -> BasePruner:
    if name == "none":
        return optuna.pruners.NopPruner()
    given = dict(options)
    if name == "patient":
        wrapped = given.pop("wrapped", {"name": "none", "options": {}})
        inner = _pruner(wrapped["name"], wrapped["options"], spec)
        # Optuna's None: patience alone decides. A NopPruner would never let it prune.
        none = isinstance(inner, optuna.pruners.NopPruner)
        return optuna.pruners.PatientPruner(None if none else inner, **given)
    if name in HALVING:
        # Optuna guesses the first rung from the first trial; the spec says when trials evaluate.
        given.setdefault("min_resource", min_resource(spec, name))
    if name == "hyperband" and (steps := last_step(spec)):
        # Otherwise Optuna prunes nothing before the first trial has shown how long trials are.
        given.setdefault("max_resource", steps)
    if name == "successive_halving" and given["min_resource"] != "auto":
        return CachedSuccessiveHalvingPruner(**given)
    made: BasePruner = PRUNERS[name].type(**given)
    return made
