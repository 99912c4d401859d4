"""The rules between the sections of a sweep file."""

import pytest
import yaml
from helpers.sweeps.sweep_files import RATED, refused, write

from sweep.loading import cross_checks as rules
from sweep.loading import loader, space_checks
from trial.config.errors import ConfigError

SOUND = {"space": {"lora.r": [4, 8]}, "stop": {"trials": 4}}
BROKEN = [
    # rule, what the file says beside SOUND, what is said of it
    (
        rules.sampler_takes_the_objectives,
        {"objectives": ["eval_loss", "seconds"], "sampler": "cmaes"},
        "sampler.name: cmaes takes one objective, got 2 (did you mean nsga2?)",
    ),
    (rules.cmaes_has_a_range, {"sampler": "cmaes"}, "sampler.name: cmaes needs a range"),
    (
        rules.pruner_sees_a_curve,
        {"objectives": ["eval_loss", "seconds"], "pruner": "median"},
        "pruner: Optuna cannot prune with several objectives",
    ),
    (
        rules.pruner_sees_a_curve,
        {"objective": "seconds", "pruner": "median"},
        "pruner: seconds is known only at the end",
    ),
    (
        rules.pruner_has_rungs,
        {"pruner": {"name": "median", "evaluate": "rungs"}},
        "pruner.evaluate: rungs are those of successive_halving and hyperband, got median",
    ),
    (rules.sweep_has_an_end, {"stop": {}}, "stop: the sweep has no end"),
    (rules.sweep_has_an_end, {"stop": {"target": 0.1}}, "got only a target"),
    (
        rules.stop_has_one_objective,
        {"objectives": ["eval_loss", "seconds"], "stop": {"trials": 4, "target": 0.1}},
        "stop.target: needs one objective, got several",
    ),
    (
        rules.warm_start_suits_the_sampler,
        {"sampler": "random", "warm_start": "earlier"},
        "warm_start: is for a sampler that learns from every trial: tpe, gp, got random",
    ),
    (rules.something_is_searched, {"space": {"lora.r": 8}}, "space: names nothing to search"),
    (
        rules.confirm_has_few_values,
        {"confirm": {"per": "lora.rank"}},
        "confirm.per: a searched key with a list of values: lora.r, got 'lora.rank'",
    ),
    (space_checks.base_is_valid, {"base": {"zero_stage": 4}}, "base.zero_stage: "),
    (space_checks.each_value_is_valid, {"space": {"lora.r": [4, -1]}}, "space.lora.r: "),
    (
        space_checks.metrics_are_reported,
        {"objective": "forget_loss"},
        "base.data.forget_path: forget_loss is measured on what is to be forgotten",
    ),
    (
        space_checks.references_resolve,
        {"space": {"lora.r": [4, 8], "lora.lora_alpha": {"expression": "2 * ratio"}}},
        "space.lora.lora_alpha: `ratio` is read here and has no value",
    ),
    (
        space_checks.points_are_valid,
        {"space": {"lora.r": [4, 8], "lora.lora_alpha": {"expression": "lora.r - 4"}}},
        "space.lora.lora_alpha: input should be greater than 0, got 0 at lora.r=4",
    ),
    (
        space_checks.enqueued_points_fit,
        {"enqueue": [{"lora.r": 5}]},
        "enqueue.0.lora.r: 5 is not one of 4, 8",
    ),
    (
        space_checks.grid_has_an_end,
        {"space": {"lora.lora_dropout": {"low": 0.0, "high": 0.5}}, "sampler": "grid"},
        "space.lora.lora_dropout: needs a `step` in a grid, or a list",
    ),
    (
        rules.evaluations_are_said_once,
        {"pruner": {"name": "hyperband", "evaluate": "rungs"}},
        "pruner.evaluate: no rung is known before the last step",
    ),
]


@pytest.mark.parametrize(("rule", "content", "expected"), BROKEN)
def test_each_rule_refuses_what_breaks_it_alone(tmp_path, rule, content, expected):
    path = write(tmp_path, yaml.safe_dump({**SOUND, **content}))
    checked = loader.examine(path)
    before = loader.read(path, ())
    (problem,) = rule(rules.ParsedSweep(before, checked.spec))
    assert expected in str(problem)
    assert [problem.key for problem in checked.problems] == [problem.key]


def test_every_rule_has_a_file_that_breaks_it():
    assert {rule for rule, _, _ in BROKEN} == set(rules.RULES)


def test_a_sound_sweep_breaks_no_rule(tmp_path):
    assert loader.examine(write(tmp_path, yaml.safe_dump(SOUND))).problems == []


def test_a_rule_of_the_sampler_is_checked_beside_problems_of_other_sections(tmp_path):
    content = {**SOUND, "sampler": "cmaes", "failures": {"alik": 2}}
    found = refused(write(tmp_path, yaml.safe_dump(content)))
    assert [line.split()[1] for line in found] == ["failures.alik:", "sampler.name:"]


HALVED = "pruner: {name: successive_halving, reduction_factor: 2, evaluate: rungs}\n"


def test_evaluations_at_the_rungs_alone(tmp_path):
    path = write(tmp_path, f"{RATED}stop: {{trials: 9}}\n{HALVED}")
    overrides = ["base.training.max_steps=64", "base.training.eval_steps=4"]
    spec = loader.load(path, overrides)
    assert spec.base["evaluation"] == {"steps": [8, 16, 32]}
    assert spec.pruner.options == {"reduction_factor": 2, "min_resource": 8}
    assert "evaluation" not in loader.load(path, [*overrides, "pruner.evaluate=steps"]).base


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("pruner=median", None),
        ("pruner.name=patient", "rungs are those of successive_halving and hyperband"),
        ("pruner.evaluate=often", "'steps' or 'rungs'"),
        ("base.training.max_steps=-1", "no rung is known before the last step"),
        ("pruner.min_resource=auto", "no rung is known before the last step"),
        ("pruner.min_resource=64", "and a min_resource below it"),
        ("pruner.min_resource=0", "min_resource"),
        ("pruner.reduction_factor=1", "reduction_factor"),
        ("pruner.reduction_factor=x", "reduction_factor"),
        ("pruner.min_early_stopping_rate=x", "min_early_stopping_rate"),
        ("base.training.eval_steps=x", "training.eval_steps"),
        ("base.evaluation.steps=[3]", "evaluation.steps says already when to evaluate"),
        ("base.evaluation.steps=[]", "optimizer steps from 1 on, ascending"),
        ("base.evaluation.steps=[4, 2]", "optimizer steps from 1 on, ascending"),
    ],
)
def test_evaluations_at_rungs_that_are_refused(tmp_path, override, expected):
    path = write(tmp_path, f"{RATED}stop: {{trials: 9}}\n{HALVED}")
    overrides = ["base.training.max_steps=64", "base.training.eval_steps=4", override]
    if expected is None:
        assert loader.load(path, overrides).pruner.evaluate == "steps"
    else:
        assert any(expected in line for line in refused(path, overrides))


@pytest.mark.parametrize(("value", "holds"), [(4, True), (8, True), (99, False)])
def test_a_condition_may_hold_at_the_base_s_value_of_a_conditional_parent(tmp_path, value, holds):
    text = (
        "base: {lora: {r: 8}}\nspace:\n  lora.use_rslora: [true, false]\n"
        "  lora.r: {choices: [4, 16], when: {lora.use_rslora: true}}\n"
        f"  lora.use_dora: {{choices: [true, false], when: {{lora.r: {value}}}}}\n"
    )
    path = write(tmp_path, f"{text}stop: {{trials: 3}}\n")
    if holds:
        assert "lora.use_dora" in loader.load(path).space
    else:
        assert "never holds: lora.r is 4, 16, got 99" in refused(path)[0]


def test_a_scheduler_may_be_drawn_together_with_the_keywords_it_needs(tmp_path):
    space = {
        "training.lr_scheduler_type": ["cosine", "cosine_with_min_lr"],
        "training.lr_scheduler_kwargs": {
            "value": {"min_lr_rate": 0.1},
            "when": {"training.lr_scheduler_type": "cosine_with_min_lr"},
        },
    }
    path = tmp_path / "schedulers.yaml"
    path.write_text(yaml.safe_dump({"space": space, "sampler": "grid"}))
    loader.load(path)
    del space["training.lr_scheduler_kwargs"]
    path.write_text(yaml.safe_dump({"space": space, "sampler": "grid"}))
    with pytest.raises(ConfigError, match="lr_scheduler_kwargs: cosine_with_min_lr needs min_lr"):
        loader.load(path)
