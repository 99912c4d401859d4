"""From Optuna's parameters to configurations, and back from points."""

import optuna
import pytest
from helpers.sweeps.spaces import BRANCHED, RS, make

from sweep.spec.space import overlay
from trial.config.errors import ConfigError
from trial.config.trial_config import TrialConfig

optuna.logging.set_verbosity(optuna.logging.ERROR)


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
def test_encode_point(point, want):
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
