"""The grammar of dimensions and what a spec says of itself."""

import json
import math
from pathlib import Path

import optuna
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from sweep.loading import loader
from sweep.spec import expression, optuna_options
from sweep.spec.dimension_parser import parse_dimension
from sweep.spec.spec import PrunerSpec, SamplerSpec, SweepSpec
from trial.config.errors import ConfigError
from trial.config.trial_config import problems_of

GRAMMAR = [
    # raw value in the file -> form, fields
    ([4, 8], "Choices", {"choices": (4, 8)}),
    ([None, 2], "Choices", {"choices": (None, 2)}),
    ([["q", "v"], "all-linear"], "Choices", {"choices": (["q", "v"], "all-linear")}),
    ([{"a": 1}, {"a": 2}], "Choices", {"choices": ({"a": 1}, {"a": 2})}),
    ({"choices": [True, False]}, "Choices", {"choices": (True, False)}),
    (8, "Fixed", {"value": 8}),
    (None, "Fixed", {"value": None}),
    ("all-linear", "Fixed", {"value": "all-linear"}),
    ({"value": [1, 2]}, "Fixed", {"value": [1, 2]}),
    ({"low": 1, "high": 4}, "Range", {"type": "int", "low": 1, "high": 4, "step": None}),
    ({"low": 1, "high": 4, "step": 1}, "Range", {"type": "int", "step": None}),
    ({"low": 1, "high": 8, "step": 3}, "Range", {"type": "int", "high": 7, "step": 3}),
    ({"low": 1, "high": 4.0}, "Range", {"type": "float", "low": 1.0, "high": 4.0}),
    ({"low": 0, "high": 1, "step": 0.25}, "Range", {"type": "float", "step": 0.25}),
    ({"low": 1, "high": 4, "type": "float"}, "Range", {"type": "float", "low": 1.0}),
    ({"low": 0.0, "high": 1.0, "step": 0.3}, "Range", {"high": 0.9}),
    ({"low": 1, "high": 64, "log": True}, "Range", {"type": "int", "log": True}),
    ({"low": 3, "high": 3}, "Range", {"low": 3, "high": 3}),
    ({"expression": " 2 * lora.r "}, "Derived", {"expression": "2 * lora.r"}),
    ({"value": 1, "when": {"a": 2}}, "Fixed", {"when": {"a": (2,)}}),
    ({"value": 1, "when": {"a": [2, 3]}}, "Fixed", {"when": {"a": (2, 3)}}),
    ({"value": 1, "when": {"a": None}}, "Fixed", {"when": {"a": (None,)}}),
]


@pytest.mark.parametrize(("raw", "form", "fields"), GRAMMAR)
def test_grammar_means(raw, form, fields):
    (branch,) = parse_dimension(raw, "space.x")
    assert type(branch).__name__ == form
    for name, value in fields.items():
        got = getattr(branch, name)
        assert got == value
        assert type(got) is type(value)


REFUSED = [
    ([], "at least one choice"),
    ([1, 1], "must differ"),
    ([0, False], "must differ"),
    ([1, 1.0], "must differ"),
    ([["a"], '["a"]'], "must differ"),
    ([{"a": 1, "b": 2}, {"b": 2, "a": 1}], "must differ"),
    ({}, "needs `choices`"),
    ({"when": {"a": 1}}, "needs `choices`"),
    ({"choices": "ab"}, "`choices` is a list"),
    ({"low": 4}, "`high` is missing"),
    ({"low": 4, "high": 3}, "`low <= high`"),
    ({"low": 0.0, "high": 3.0, "log": True}, "must be > 0 when log"),
    ({"low": 0, "high": 3, "log": True}, "must be at least 1 when log"),
    ({"low": 1, "high": 3, "log": True, "step": 2}, "not supported when log"),
    ({"low": 1.0, "high": 3.0, "log": True, "step": 1}, "not supported when log"),
    ({"low": 1, "high": 3, "step": 0}, "must be > 0"),
    ({"low": 1, "high": 3, "step": -1}, "must be > 0"),
    ({"low": True, "high": 3}, "finite number, got True"),
    ({"low": math.nan, "high": 3}, "finite number, got nan"),
    ({"low": 1, "high": math.inf}, "finite number, got inf"),
    ({"low": 1.5, "high": 3, "type": "int"}, "whole when the type is int, got 1.5"),
    ({"low": 1, "high": 3, "type": "integer"}, "int or float, got 'integer'"),
    ({"low": 1, "high": 3, "log": 1}, "true or false, got 1"),
    ({"lo": 1, "high": 3}, "did you mean low"),
    ({"values": [1, 2]}, "did you mean choices"),
    ({"low": 1, "high": 3, "value": 2}, "one of them"),
    ({"expression": "lora.r +"}, "is not an expression"),
    ({"expression": "().__class__"}, "is not allowed here"),
    ({"expression": "open('x')"}, "is not one of the functions"),
    ({"expression": "lora.r.bit_length()"}, "is not one of the functions"),
    ({"expression": "sqrt + 1"}, "is a function: call it"),
    ({"expression": "x" * 501}, "at most 500 characters"),
    ({"value": 1, "when": {}}, "is a mapping {path"),
    ({"value": 1, "when": {"a": []}}, "names no value"),
    ([{"value": 1, "when": {"a": 1}}, 3], "every branch is a mapping with `when`"),
    ([{"value": 1, "when": {"a": 1}}, {"value": 2, "when": {"a": [1, 2]}}], "at most one branch"),
    ([{"value": 1, "when": {"a": 1}}, {"value": 2, "when": {"b": 1}}], "at most one branch"),
]


@pytest.mark.parametrize(("raw", "message"), REFUSED)
def test_grammar_refuses(raw, message):
    with pytest.raises(ConfigError) as caught:
        parse_dimension(raw, "space.x")
    assert message in str(caught.value)
    assert all(problem.key.startswith("space.x") for problem in caught.value.problems)


def test_branches_that_one_condition_keeps_apart_are_taken():
    raw = [
        {"value": 1, "when": {"a": 1, "b": [1, 2]}},
        {"value": 2, "when": {"a": 2}},
        {"value": 3, "when": {"a": True, "b": 3}},
    ]
    assert len(parse_dimension(raw, "space.x")) == 3


numbers = st.one_of(
    st.integers(-6, 40), st.floats(-2, 10, allow_nan=False).map(lambda x: round(x, 3))
)


@pytest.mark.filterwarnings("ignore:The distribution is specified")
@given(numbers, numbers, st.none() | numbers, st.booleans(), st.sampled_from(["int", "float"]))
def test_a_range_is_accepted_exactly_when_optuna_accepts_it(low, high, step, log, kind):
    raw = {"low": low, "high": high, "step": step, "log": log, "type": kind}
    whole = all(isinstance(x, int) for x in (low, high, step) if x is not None)
    try:
        if kind == "int":
            theirs = IntDistribution(low, high, log, 1 if step is None else step)
        else:
            theirs = FloatDistribution(low, high, log, step)
    except (ValueError, ArithmeticError):
        theirs = None
    try:
        (ours,) = parse_dimension(raw, "x")
    except ConfigError:
        ours = None
    assert (ours is not None) == (theirs is not None and (whole or kind == "float"))
    if ours:
        assert (ours.low, ours.high) == (theirs.low, theirs.high)
        assert all(theirs._contains(theirs.to_internal_repr(x)) for x in ours.extremes())


@given(st.integers(0, 9), st.integers(0, 30), st.sampled_from([1, 2, 3, 0.1, 0.25, 0.7]))
def test_points_of_a_stepped_range_are_those_optuna_holds(low, width, step):
    (ours,) = parse_dimension({"low": low, "high": low + width, "step": step}, "x")
    points = list(ours.grid_values())
    assert len(points) == ours.count()
    assert points == sorted(set(points))
    theirs = (IntDistribution if ours.type == "int" else FloatDistribution)(
        ours.low, ours.high, step=step
    )
    assert all(theirs._contains(theirs.to_internal_repr(point)) for point in points)
    assert points[0] == low
    assert points[-1] == theirs.high
    assert [ours.encode(point) for point in points] == points


def test_optuna_confuses_what_choices_refuses():
    # The reason for the rule: in Optuna's eyes true and 1 are one choice.
    assert CategoricalDistribution([1, True]).to_internal_repr(True) == 0


EXPRESSIONS = [
    ("2 * lora.r", 16),
    ("lora.r / 2", 4.0),
    ("lora.r // 3", 2),
    ("alpha_over_r * lora.r", 4.0),
    ("sqrt(lora.r * 2)", 4.0),
    ("int(lora.r * 1.6)", 12),
    ("max(lora.r, 16) if use else 1", 16),
    ("training.eval_strategy == 'steps'", True),
    ("-lora.r ** 2", -64),
    ("not use", False),
    ("'all-linear'", "all-linear"),
    ("None", None),
    ("round(lora.r / 3, 1)", 2.7),
]
VALUES = {"lora.r": 8, "alpha_over_r": 0.5, "use": True, "training.eval_strategy": "steps"}


@pytest.mark.parametrize(("text", "value"), EXPRESSIONS)
def test_expressions(text, value):
    got = expression.evaluate(text, VALUES)
    assert got == value
    assert type(got) is type(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lora.r / 0", "division by zero"),
        ("lora.alpha * 2", "lora.alpha has no value here"),
        ("10.0 ** 400", "is too large"),
        ("exp(1000)", "is too large"),
        ("2 ** 63", "is too large"),
        ("9 ** 9 ** 9 ** 9", "is too large"),
        ("'a' * 9999", "text cannot be multiplied"),
        ("lora.r + 'a'", "unsupported operand"),
        ("1e308 * 10", "must be finite"),
        ("9223372036854775807 + 1", "must be below 2"),
    ],
)
def test_expressions_that_fail_say_why(text, message):
    with pytest.raises(ValueError, match=message):
        expression.evaluate(text, VALUES)


def test_names_of_an_expression():
    assert expression.names("max(a.b.c, d) + e.f if g else 1") == {"a.b.c", "d", "e.f", "g"}


def spec_of(tmp_path: Path, **content) -> SweepSpec:
    content = {"space": {"lora.r": [4, 8], "training.learning_rate": [1e-4, 1e-3]}, **content}
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump({"stop": {"trials": 5}, **content}))
    return loader.load(path)


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


def test_content_survives_json_and_means_the_same(tmp_path):
    content = {
        "variables": {"ratio": [0.5, 1, 2]},
        "space": {
            "lora": {"r": [4, 8], "lora_alpha": {"expression": "ratio * lora.r"}},
            "lora.target_modules": ["all-linear", ["q_proj", "v_proj"]],
            "zero_stage": [None, 2],
            "training.learning_rate": {"low": 1e-5, "high": 1, "log": True},
            "lora.lora_dropout": {"low": 0.0, "high": 0.5, "when": {"zero_stage": None}},
        },
        "enqueue": [{"lora": {"r": 4}, "ratio": 1}],
    }
    spec = spec_of(tmp_path, **content)
    again = SweepSpec.from_content(json.loads(json.dumps(spec.content())))
    assert again == spec
    assert again.content() == spec.content()
    assert again.space["training.learning_rate"][0].high == 1.0


def test_files_that_mean_the_same_have_the_same_content(tmp_path):
    short = {"sampler": "grid", "space": {"lora": {"r": [4, 8], "bias": "none"}}}
    long = {
        "sampler": {"name": "grid", "seed": 0},
        "objective": {"metric": "eval_loss", "direction": "minimize"},
        "pruner": {"name": "none"},
        "space": {"lora.r": {"choices": [4, 8]}, "lora.bias": {"value": "none"}},
    }
    assert spec_of(tmp_path, **short).content() == spec_of(tmp_path, **long).content()
    other = {"sampler": "grid", "space": {"lora": {"r": [4, 16], "bias": "none"}}}
    assert spec_of(tmp_path, **other).content() != spec_of(tmp_path, **short).content()


def test_tokens_per_second_are_maximised(tmp_path):
    spec = spec_of(tmp_path, objectives=["tokens_per_second", "seconds"])
    assert [goal.direction for goal in spec.objectives] == ["maximize", "minimize"]


def test_a_start_that_loading_draws_again_is_refused_with_the_one_that_is_not():
    (problem,) = problems_of({"lora": {"init_lora_weights": "pissa_niter_16"}})
    assert (problem.key, problem.near) == ("lora.init_lora_weights", "pissa")
    assert problems_of({"lora": {"init_lora_weights": "pissa"}}) == []


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
