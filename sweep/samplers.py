"""Optuna's samplers and pruners as a sweep file names them."""

from __future__ import annotations

from typing import Any

import optuna
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler

from sweep.optuna_names import PRUNERS, SAMPLERS
from sweep.spec import PrunerSpec, SweepSpec
from trial.config import TRAINING_DEFAULTS


def make_sampler(spec: SweepSpec, seed: int) -> BaseSampler:
    """The sampler of a sweep file. Grids are walked by the decider; the sampler fills in the rest."""
    if spec.sampler.name == "grid":
        return optuna.samplers.RandomSampler(seed=seed)
    cls = getattr(optuna.samplers, SAMPLERS[spec.sampler.name].cls)
    return cls(seed=seed, **spec.sampler.options)


def make_pruner(spec: SweepSpec) -> BasePruner:
    """The pruner of a sweep file; steps are optimizer steps."""
    return _pruner(spec.pruner.name, spec.pruner.options, spec)


def _pruner(name: str, options: dict[str, Any], spec: SweepSpec) -> BasePruner:
    if name == "none":
        return optuna.pruners.NopPruner()
    given = dict(options)
    if name == "patient":
        wrapped = PrunerSpec.model_validate(given.pop("wrapped", {"name": "none"}))
        inner = None if wrapped.name == "none" else _pruner(wrapped.name, wrapped.options, spec)
        return optuna.pruners.PatientPruner(inner, **given)
    if name in ("successive_halving", "hyperband"):
        # Optuna guesses the first rung from the first trial; we know where trials are evaluated.
        given.setdefault("min_resource", first_evaluation(spec))
    return getattr(optuna.pruners, PRUNERS[name].cls)(**given)


def first_evaluation(spec: SweepSpec) -> int:
    """Optimizer step of the first evaluation; 1 when it depends on the length of the data."""
    training = {**TRAINING_DEFAULTS, **spec.base.get("training", {})}
    every, total = training["eval_steps"], training["max_steps"]
    if every >= 1:
        return int(every)
    return max(1, int(every * total)) if total > 0 else 1
