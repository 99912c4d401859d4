"""Optuna's samplers and pruners by the names of a sweep file."""

import optuna
import pytest

from sweep.spec import optuna_options


@pytest.mark.parametrize("name", sorted(optuna_options.SAMPLERS))
def test_every_sampler_exists_and_takes_its_keywords(name):
    entry = optuna_options.SAMPLERS[name]
    assert issubclass(entry.type, optuna.samplers.BaseSampler)
    assert "seed" not in entry.keywords
    assert optuna_options.sampler_problems(name, {}) == []


@pytest.mark.parametrize("name", sorted(optuna_options.PRUNERS))
def test_every_pruner_exists(name):
    entry = optuna_options.PRUNERS[name]
    assert issubclass(entry.type, optuna.pruners.BasePruner)
    needs = {"percentile": {"percentile": 25.0}, "patient": {"patience": 1}}
    needs["threshold"] = {"upper": 3.0}
    assert optuna_options.pruner_problems(name, needs.get(name, {})) == []
