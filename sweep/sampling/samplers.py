"""Optuna's samplers as a sweep file names them."""

from __future__ import annotations

import optuna
from optuna.samplers import BaseSampler

from sweep.spec.optuna_options import SAMPLERS
from sweep.spec.spec import SweepSpec


def make_sampler(spec: SweepSpec, seed: int) -> BaseSampler:
    """The sampler of a sweep file; the points of a grid are enqueued by the decider."""
    if spec.sampler.name == "grid":
        return optuna.samplers.RandomSampler(seed=seed)
    made: BaseSampler = SAMPLERS[spec.sampler.name].type(seed=seed, **spec.sampler.options)
    return made
