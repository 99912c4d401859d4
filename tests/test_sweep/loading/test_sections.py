"""The sections of a sweep file, and the defaults of what they leave out."""

import pytest
from helpers.sweeps.sweep_files import refused, spec_of

from sweep.loading import loader
from sweep.spec.spec import PrunerSpec, SamplerSpec
from trial.config.errors import ConfigError

TPE = {"multivariate": True, "group": True, "constant_liar": True}


SAMPLERS = [
    ({}, "tpe", 0, TPE),
    ({"sampler": "tpe"}, "tpe", 0, TPE),
    ({"sampler": {"seed": 3}}, "tpe", 3, TPE),
    ({"sampler": {"name": "tpe", "seed": None}}, "tpe", None, TPE),
    (
        {"sampler": {"name": "tpe", "multivariate": False}},
        "tpe",
        0,
        {"multivariate": False, "group": False, "constant_liar": True},
    ),
    ({"sampler": {"name": "tpe", "gamma": None} | {}}, None, None, None),
    ({"sampler": "random"}, "random", 0, {}),
    ({"sampler": {"name": "qmc", "scramble": True}}, "qmc", 0, {"scramble": True}),
    ({"objectives": ["eval_loss", "seconds"]}, "nsga2", 0, {}),
    ({"objectives": ["eval_loss", "seconds"], "sampler": "tpe"}, "tpe", 0, TPE),
]


@pytest.mark.parametrize(("content", "name", "seed", "options"), SAMPLERS)
def test_sampler_defaults(tmp_path, content, name, seed, options):
    if name is None:
        with pytest.raises(ConfigError, match="unknown keyword of TPESampler"):
            spec_of(tmp_path, **content)
        return
    want = SamplerSpec(name=name, seed=seed, options=options)
    assert spec_of(tmp_path, **content).sampler == want


PRUNERS = [
    ({}, "successive_halving"),
    ({"stop": {"trials": 8}}, "successive_halving"),
    ({"stop": {"hours": 1}}, "successive_halving"),
    ({"sampler": "grid"}, "none"),
    ({"objectives": ["eval_loss", "seconds"]}, "none"),
    ({"objective": "seconds"}, "none"),
    ({"objective": "rouge"}, "successive_halving"),
    ({"pruner": "none"}, "none"),
    ({"pruner": "hyperband"}, "hyperband"),
    ({"sampler": "grid", "pruner": "median"}, "median"),
]


@pytest.mark.parametrize(("content", "name"), PRUNERS)
def test_pruner_defaults(tmp_path, content, name):
    assert spec_of(tmp_path, **content).pruner.name == name


def test_patient_wraps_a_pruner(tmp_path):
    pruner = {"name": "patient", "patience": 2, "wrapped": {"name": "median", "n_min_trials": 2}}
    spec = spec_of(tmp_path, pruner=pruner)
    wrapped = PrunerSpec.model_validate(spec.pruner.options["wrapped"])
    assert wrapped == PrunerSpec(name="median", options={"n_min_trials": 2})


def test_tokens_per_second_are_maximised(tmp_path):
    spec = spec_of(tmp_path, objectives=["tokens_per_second", "seconds"])
    assert [goal.direction for goal in spec.objectives] == ["maximize", "minimize"]


def test_a_budget_is_device_hours(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("space: {lora.r: [2, 4]}\nbudget: {device_hours: 8}\n")
    assert loader.load(path).stop.device_hours == 8
    path.write_text("space: {lora.r: [2, 4]}\nbudget: {device_hours: 8}\nstop: {device_hours: 4}\n")
    with pytest.raises(ConfigError, match=r"x.yaml:2 budget.device_hours: is said once"):
        loader.load(path)
    path.write_text("space: {lora.r: [2, 4]}\nbudget: {device_hour: 8}\n")
    with pytest.raises(ConfigError, match="did you mean device_hours"):
        loader.load(path)


def test_a_metric_that_is_no_text_is_refused(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("space: {lora.r: [2, 4]}\nsampler: grid\nobjective:\n  metric: []\n")
    assert refused(path) == ["FILE:4 objective.metric: input should be a valid string, got []"]
