"""From Optuna's parameters to configurations: conditions, derived values, grids, points."""

import itertools

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweep.planning.lint import advice
from sweep.spec.dimension_parser import parse_dimension
from sweep.spec.grid import extreme_points, grid_points, grid_size, variants
from sweep.spec.overlay import overlay
from sweep.spec.space import Space
from sweep.spec.spec import ObjectiveSpec, PrunerSpec, SamplerSpec, StopSpec, SweepSpec
from trial.config.errors import ConfigError
from trial.config.trial_config import TrialConfig

optuna.logging.set_verbosity(optuna.logging.ERROR)


def make_spec(space, variables=None, base=None, **fields) -> SweepSpec:
    parsed = {
        kind: {name: parse_dimension(raw, name) for name, raw in (given or {}).items()}
        for kind, given in (("space", space), ("variables", variables))
    }
    return SweepSpec(name="study", base=base or {}, **parsed, **fields)


def make(space, variables=None, base=None) -> Space:
    return Space.of(make_spec(space, variables, base))


RS = "lora.use_rslora"
BRANCHED = {
    RS: [True, False],
    "lora.lora_alpha": [
        {"choices": [8, 16], "when": {RS: True}},
        {"low": 1, "high": 4, "when": {RS: False}},
    ],
    "lora.lora_dropout": {"low": 0.0, "high": 0.5, "when": {RS: True}},
    "lora.r": [4, 8],
}


def test_names_are_paths_and_branches_say_their_condition():
    space = make(BRANCHED, {"ratio": [1, 2]})
    assert [name for name, _ in space.parameters()] == [
        "ratio",
        RS,
        "lora.lora_alpha[lora.use_rslora=true]",
        "lora.lora_alpha[lora.use_rslora=false]",
        "lora.lora_dropout",
        "lora.r",
    ]


VALUES = [
    # space, variables, params -> values by path
    ({"lora.r": [4, 8]}, {}, {"lora.r": 8}, {"lora.r": 8}),
    ({"lora.r": 8}, {}, {}, {"lora.r": 8}),
    (
        {"lora.lora_alpha": {"expression": "ratio * lora.r"}, "lora.r": [4, 8]},
        {"ratio": [1, 2]},
        {"lora.r": 8, "ratio": 2},
        {"lora.lora_alpha": 16, "lora.r": 8},
    ),
    (  # the base's rank, where the space has none
        {"lora.lora_alpha": {"expression": "2 * lora.r"}, "training.seed": [1]},
        {},
        {"training.seed": 1},
        {"lora.lora_alpha": 20, "training.seed": 1},
    ),
    (  # TrialConfig's default, where the base has none
        {"training.warmup_steps": {"expression": "training.seed + 1"}},
        {},
        {},
        {"training.warmup_steps": 43},
    ),
    (
        {"lora.target_modules": ["all-linear", ["q", "v"]]},
        {},
        {"lora.target_modules": '["q", "v"]'},
        {"lora.target_modules": ["q", "v"]},
    ),
    (
        BRANCHED,
        {},
        {RS: False, "lora.lora_alpha[lora.use_rslora=false]": 3, "lora.r": 4},
        {RS: False, "lora.lora_alpha": 3, "lora.r": 4},
    ),
    (
        BRANCHED,
        {},
        {
            RS: True,
            "lora.lora_alpha[lora.use_rslora=true]": 8,
            "lora.lora_dropout": 0.1,
            "lora.r": 4,
        },
        {RS: True, "lora.lora_alpha": 8, "lora.lora_dropout": 0.1, "lora.r": 4},
    ),
    (  # a condition on a derived value, on the base, and on a variable
        {
            "lora.r": {"expression": "2 * half"},
            "training.seed": {"value": 7, "when": {"lora.r": 8}},
            "training.warmup_steps": {"value": 3, "when": {"keep": "last"}},
            "lora.bias": {"value": "all", "when": {"half": [2, 3]}},
        },
        {"half": [2, 4]},
        {"half": 4},
        {"lora.r": 8, "training.seed": 7},
    ),
    (  # false is not 0: the condition does not hold
        {RS: [True, False], "training.seed": {"value": 7, "when": {RS: 0}}},
        {},
        {RS: False},
        {RS: False},
    ),
]


@pytest.mark.parametrize(("space", "variables", "params", "values"), VALUES)
def test_values(space, variables, params, values):
    given = dict(params)
    assert make(space, variables, {"lora": {"r": 10}}).values(params) == values
    assert params == given


def test_a_missing_parameter_is_named():
    with pytest.raises(ConfigError, match=r"lora\.r: has no value"):
        make({"lora.r": [4, 8]}).values({})


def test_configure_lays_a_point_over_the_base():
    base = {"lora": {"r": 2, "bias": "all"}, "training": {"max_steps": 9}, "gaudi_config": {}}
    space = make({"lora.r": [4, 8], "gaudi_config.use_fused_adam": [True, False]}, {}, base)
    config = space.configure({"lora.r": 8, "gaudi_config.use_fused_adam": False}, 3)
    assert (config.lora.r, config.lora.bias, config.training["max_steps"]) == (8, "all", 9)
    assert config.gaudi_config == {"use_fused_adam": False}
    assert config.origin
    assert (config.origin.study, config.origin.number) == ("study", 3)
    assert config.origin.params == {"lora.r": 8, "gaudi_config.use_fused_adam": False}
    assert base == {
        "lora": {"r": 2, "bias": "all"},
        "training": {"max_steps": 9},
        "gaudi_config": {},
    }
    assert space.configure({"lora.r": 8, "gaudi_config.use_fused_adam": False}).origin is None


def test_a_deeper_path_keeps_the_defaults_around_it():
    config = make({"gaudi_config.use_fused_adam": [False]}).configure(
        {"gaudi_config.use_fused_adam": False}
    )
    assert config.gaudi_config == {**TrialConfig().gaudi_config, "use_fused_adam": False}


def test_configure_reports_every_mistake():
    space = make({"lora.r": [-1], "lora.lora_dropout": [1.5]})
    with pytest.raises(ConfigError) as caught:
        space.configure({"lora.r": -1, "lora.lora_dropout": 1.5})
    assert {problem.key for problem in caught.value.problems} == {"lora.r", "lora.lora_dropout"}


def test_a_path_through_a_scalar_is_refused():
    with pytest.raises(ConfigError, match="config is not a mapping in the base"):
        overlay({"deepspeed": {"config": "ds.json"}}, {"deepspeed.config.bf16.enabled": True})


def test_circles_are_shown():
    with pytest.raises(ConfigError, match=r"a -> b -> c -> a|b -> c -> a -> b|c -> a -> b -> c"):
        make(
            {},
            {
                "a": {"expression": "b"},
                "b": {"choices": [1], "when": {"c": 1}},
                "c": {"expression": "a + 1"},
                "d": {"expression": "a"},
            },
        )


# Grids


def test_a_plain_grid_is_the_product_in_file_order():
    space = make(
        {"lora.r": [4, 8], "training.seed": {"low": 1, "high": 5, "step": 2}, RS: [True, False]}
    )
    names = ["lora.r", "training.seed", RS]
    want = [dict(zip(names, p, strict=True)) for p in itertools.product([4, 8], [1, 3, 5], [1, 0])]
    assert grid_points(space) == want
    assert grid_size(space) == len(want) == 12


def test_a_conditional_grid_equals_the_product_with_the_inactive_left_out():
    space = make(
        {
            **BRANCHED,
            "lora.lora_dropout": {"low": 0.0, "high": 0.2, "step": 0.1, "when": {RS: True}},
        }
    )
    want = []
    for rs in (True, False):
        for alpha in (8, 16) if rs else (1, 2, 3, 4):
            for dropout in (0.0, 0.1, 0.2) if rs else (None,):
                for r in (4, 8):
                    point = {RS: rs, f"lora.lora_alpha[lora.use_rslora={str(rs).lower()}]": alpha}
                    point |= {} if dropout is None else {"lora.lora_dropout": dropout}
                    want.append({**point, "lora.r": r})
    assert grid_points(space) == want
    assert grid_size(space) == len(want)


conditional = st.fixed_dictionaries(
    {name: st.lists(st.integers(0, 4), min_size=1, max_size=3, unique=True) for name in "abcd"}
)


@given(
    conditional,
    st.dictionaries(st.sampled_from("bcd"), st.lists(st.integers(0, 4), min_size=1, max_size=2)),
    st.permutations("abcd"),
)
def test_any_conditional_grid_equals_a_filtered_product(choices, conditions, written):
    """Each of b, c and d may depend on the letter before it; files may write them in any order."""
    variables = {}
    for name in written:
        variables[name] = {"choices": choices[name]}
        if name in conditions:
            variables[name]["when"] = {chr(ord(name) - 1): conditions[name]}
    want = set()
    for combination in itertools.product(*(choices[name] for name in "abcd")):
        point = {}
        for name, value in zip("abcd", combination, strict=True):
            if name not in conditions or point.get(chr(ord(name) - 1)) in conditions[name]:
                point[name] = value
        want.add(frozenset(point.items()))
    space = make({}, variables)
    grid = grid_points(space)
    assert {frozenset(point.items()) for point in grid} == want
    assert len(grid) == len(want) == grid_size(space)
    assert all(space.encode_point(point) == point for point in grid)


def test_conditions_reach_through_derived_values():
    space = make(
        {},
        {
            "a": [1, 2],
            "b": {"expression": "a"},
            "c": {"expression": "b"},
            "d": {"choices": [5, 6, 7], "when": {"c": 1}},
        },
    )
    assert grid_points(space) == [{"a": 1, "d": 5}, {"a": 1, "d": 6}, {"a": 1, "d": 7}, {"a": 2}]
    assert grid_size(space) == 4


def test_a_grid_names_the_range_without_an_end():
    space = make({"lora.r": [4], "training.learning_rate": {"low": 0.1, "high": 0.2}})
    assert grid_size(space) is None
    with pytest.raises(ValueError, match=r"training\.learning_rate: a float range needs a `step`"):
        grid_points(space)


def test_a_huge_grid_is_counted_without_being_walked():
    million = {"low": 1, "high": 10**6}
    space = make({"lora.r": million, "training.seed": million, RS: [True, False]})
    assert grid_size(space) == 2 * 10**12
    with pytest.raises(ValueError, match="at most 100000"):
        grid_points(space)


def test_corners_hold_the_ends_and_are_bounded():
    wide = {"low": 0.0, "high": 1.0}
    space = make({"lora.lora_dropout": wide, "training.weight_decay": wide})
    assert len(list(extreme_points(space))) == 4
    many = make({}, {f"v{i}": [1, 2, 3] for i in range(20)})
    assert len(list(extreme_points(many, limit=50))) == 50


def test_variants_move_only_what_is_asked_for_and_its_parents():
    space = make(
        {
            "data.path": {"choices": ["x", "y"], "when": {RS: True}},
            RS: [True, False],
            "lora.r": [4, 8],
        }
    )
    assert list(variants(space, ["data"])) == [
        {"data.path": "x", RS: True, "lora.r": 4},
        {"data.path": "y", RS: True, "lora.r": 4},
        {RS: False, "lora.r": 4},
    ]


# Enqueued points

POINTS = [
    # point -> params, or what the refusal says
    ({"lora.r": 8}, {"lora.r": 8}),
    ({}, {}),
    ({RS: True, "lora.lora_alpha": 16}, {RS: True, "lora.lora_alpha[lora.use_rslora=true]": 16}),
    ({RS: False, "lora.lora_alpha": 3}, {RS: False, "lora.lora_alpha[lora.use_rslora=false]": 3}),
    ({RS: True, "lora.lora_dropout": 0}, {RS: True, "lora.lora_dropout": 0.0}),
    ({RS: False, "lora.lora_alpha": 16}, "16 is not in 1 to 4"),
    ({RS: True, "lora.lora_alpha": 3}, "3 is not one of 8, 16"),
    ({"lora.lora_alpha": 3}, "depends on lora.use_rslora: give that too"),
    ({RS: False, "lora.lora_dropout": 0.1}, "is not searched here, its value is 0.0"),
    ({RS: 1}, "1 is not one of true, false"),
    ({"lora.r": 8.5}, "8.5 is not one of"),
    ({"lora.rank": 8}, "unknown path of the space"),
    ({RS: True, "lora.lora_dropout": "0.1"}, "is not of type float"),
    ({RS: True, "lora.lora_dropout": 0.6}, "0.6 is not in 0.0 to 0.5"),
]


@pytest.mark.parametrize(("point", "want"), POINTS)
def test_check_point(point, want):
    space = make(BRANCHED)
    if isinstance(want, dict):
        assert space.encode_point(point) == want
    else:
        with pytest.raises(ConfigError) as caught:
            space.encode_point(point)
        assert want in str(caught.value)
        assert len(caught.value.problems) == 1


def test_a_derived_value_may_stand_in_a_point_when_it_is_right():
    space = make({"lora.r": [4, 8], "lora.lora_alpha": {"expression": "2 * lora.r"}})
    assert space.encode_point({"lora.r": 4, "lora.lora_alpha": 8}) == {"lora.r": 4}
    with pytest.raises(ConfigError, match="its value is 8"):
        space.encode_point({"lora.r": 4, "lora.lora_alpha": 9})


# With a real study

RICH = {
    **BRANCHED,
    "training.learning_rate": {"low": 1e-5, "high": 1e-2, "log": True},
    "lora.target_modules": ["all-linear", ["q_proj", "v_proj"], ["q_proj"]],
    "zero_stage": [None, 0, 2],
    "training.warmup_ratio": {"low": 0.0, "high": 0.3, "step": 0.1},
    "training.weight_decay": {"expression": "decay / 10"},
}


@pytest.mark.parametrize(
    "sampler",
    [
        optuna.samplers.RandomSampler(seed=1),
        optuna.samplers.TPESampler(
            seed=1, n_startup_trials=4, multivariate=True, group=True, constant_liar=True
        ),
        optuna.samplers.NSGAIISampler(seed=1, population_size=4),
        optuna.samplers.BruteForceSampler(seed=1),
    ],
    ids=lambda sampler: type(sampler).__name__,
)
@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_what_a_study_draws_comes_back_from_its_values(sampler):
    space = RICH
    if isinstance(sampler, optuna.samplers.BruteForceSampler):
        space = {name: raw for name, raw in RICH.items() if "high" not in str(raw)}
    made = make(space, {"decay": [0, 1]})
    study = optuna.create_study(sampler=sampler)
    seen = set()
    for _ in range(25):
        trial = study.ask()
        params = made.suggest(trial)
        assert params == trial.params
        assert set(params) <= {name for name, _ in made.parameters()}
        config = made.configure(params, trial.number)
        seen.add(config.lora.use_rslora)
        values = {**made.values(params), "decay": params["decay"]}
        assert made.encode_point(values) == params
        active = "lora.lora_dropout" in params
        assert not active or config.lora.use_rslora
        study.tell(trial, config.lora.r + (config.lora.lora_alpha or 0))
    assert seen == {True, False}


def test_enqueued_points_are_what_optuna_asks_first():
    space = make(BRANCHED)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    params = space.encode_point({RS: False, "lora.lora_alpha": 3, "lora.r": 8})
    study.enqueue_trial(params)
    trial = study.ask()
    assert space.suggest(trial) == params
    assert space.configure(trial.params).lora.lora_alpha == 3


def test_params_survive_a_journal(tmp_path):
    file = optuna.storages.journal.JournalFileBackend(str(tmp_path / "journal.log"))
    study = optuna.create_study(
        storage=optuna.storages.JournalStorage(file), sampler=optuna.samplers.RandomSampler(seed=0)
    )
    space = make(RICH, {"decay": [0, 1]})
    drawn = [space.configure(space.suggest(study.ask())) for _ in range(5)]
    again = optuna.load_study(
        study_name=study.study_name,
        storage=optuna.storages.JournalStorage(
            optuna.storages.journal.JournalFileBackend(str(tmp_path / "journal.log"))
        ),
    )
    assert [space.configure(trial.params) for trial in again.get_trials()] == drawn


# Advice

RATE = {"training.learning_rate": {"low": 1e-5, "high": 1e-3, "log": True}}
ALPHA = {"lora.lora_alpha": {"expression": "2 * lora.r"}}
LOSS_AND_TIME = (ObjectiveSpec(), ObjectiveSpec(metric="seconds"))
ADVICE = [
    ({"lora.r": [4, 8], **ALPHA, **RATE}, {}, []),
    ({"lora.r": [4, 8], **RATE}, {}, ["effective scale"]),
    ({"lora.r": [4, 8], "lora.lora_alpha": [8, 16], **RATE}, {}, []),
    ({"lora.r": [4, 8], **ALPHA}, {}, ["every value of lora.r is compared at one learning rate"]),
    ({"lora.lora_alpha": [4, 8]}, {}, ["every value of lora.lora_alpha"]),
    ({"zero_stage": [0, 2]}, {}, ["zero_stage moves eval_loss by noise"]),
    ({"zero_stage": [0, 2]}, {"sampler": SamplerSpec(name="grid")}, []),
    ({"training.seed": [0, 2]}, {"objectives": LOSS_AND_TIME}, ["training.seed moves eval_loss"]),
    ({"zero_stage": [0, 2]}, {"objectives": LOSS_AND_TIME[1:]}, []),
    ({"training.learning_rate": {"low": 1e-5, "high": 1e-3}}, {}, ["say `log: true`"]),
    ({"training.warmup_ratio": {"low": 0, "high": 1}}, {}, ["say `type: float`"]),
    (RATE, {"stop": StopSpec(trials=10)}, ["the sampler never learns"]),
    (RATE, {"stop": StopSpec(trials=11)}, []),
    (
        {"lora.bias": ["none", "all"], **RATE},
        {"sampler": SamplerSpec(name="cmaes")},
        ["draws choices at random: lora.bias"],
    ),
    (RATE, {"objectives": (ObjectiveSpec(metric="rouge"),)}, ["`rouge` is none of"]),
    (
        RATE,
        {"base": {"training": {"eval_strategy": "no"}}, "pruner": PrunerSpec(name="median")},
        ["the pruner sees nothing"],
    ),
]


@pytest.mark.parametrize(("space", "fields", "messages"), ADVICE)
def test_advice(space, fields, messages):
    said = advice(make_spec(space, **fields))
    assert len(said) == len(messages)
    assert all(message in line for message, line in zip(messages, said, strict=True))
