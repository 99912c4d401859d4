"""The DeepSpeed configuration by ZeRO stage, device and user settings, as truth tables."""

import json

import pytest

from trial.config.errors import ConfigError
from trial.config.sections import DeepSpeedSection
from trial.config.trial_config import parse
from trial.devices.deepspeed_config import (
    AUTO,
    FROM_ARGUMENTS,
    OPTIMIZER,
    deepspeed_config,
    replaced_parts,
    user_config,
)
from trial.preflight.checks import preflight

SEEDS_OWN = {
    "zero_optimization": {
        "stage": 1,
        "offload_optimizer": {"device": "none", "pin_memory": True},
    }
}
GATHER = {"stage3_gather_16bit_weights_on_model_save": True}
HPU = {"overlap_comm": False, "contiguous_gradients": False}


def config(**sections):
    return parse({"zero_stage": 0, **sections})


@pytest.mark.parametrize(
    ("stage", "device", "section", "user", "zero"),
    [
        (0, "cpu", {}, {}, {"stage": 0}),
        (1, "cpu", {}, {}, {"stage": 1}),
        (2, "cuda", {}, {}, {"stage": 2}),
        (3, "cpu", {}, {}, {"stage": 3, **GATHER}),
        (1, "hpu", {}, {}, {"stage": 1}),
        (2, "hpu", {}, {}, {"stage": 2, **HPU, "reduce_scatter": False}),
        (3, "hpu", {}, {}, {"stage": 3, **HPU, **GATHER}),
        # The trial's stage wins over the file's; the rest of the file stays.
        (2, "cpu", {}, SEEDS_OWN, {**SEEDS_OWN["zero_optimization"], "stage": 2}),
        (
            2,
            "hpu",
            {},
            {"zero_optimization": {"overlap_comm": True}},
            {"stage": 2, **HPU, "overlap_comm": True, "reduce_scatter": False},
        ),
        (
            1,
            "cpu",
            {"offload_optimizer": "cpu"},
            {},
            {"stage": 1, "offload_optimizer": {"device": "cpu", "pin_memory": False}},
        ),
        (
            3,
            "cuda",
            {"offload_optimizer": "cpu", "offload_param": "cpu"},
            {},
            {
                "stage": 3,
                **GATHER,
                "offload_optimizer": {"device": "cpu", "pin_memory": True},
                "offload_param": {"device": "cpu", "pin_memory": True},
            },
        ),
        # Too low a stage for it: a sweep over stages runs, and this one has nothing to offload.
        (0, "cpu", {"offload_optimizer": "cpu"}, {}, {"stage": 0}),
        (
            2,
            "cpu",
            {"offload_optimizer": "cpu", "offload_param": "cpu"},
            {},
            {"stage": 2, "offload_optimizer": {"device": "cpu", "pin_memory": False}},
        ),
    ],
)
def test_the_stage_and_its_options(stage, device, section, user, zero):
    found = deepspeed_config(config(zero_stage=stage, deepspeed=section), device, user)
    assert found["zero_optimization"] == zero


def test_without_a_stage_there_is_no_deepspeed():
    assert deepspeed_config(parse({}), "cpu", {}) is None


@pytest.mark.parametrize("user", [{}, SEEDS_OWN, {"train_micro_batch_size_per_gpu": 4}])
def test_batch_sizes_and_clipping_come_from_the_arguments(user):
    found = deepspeed_config(config(zero_stage=1), "cpu", user)
    assert {key: found[key] for key in FROM_ARGUMENTS} == dict.fromkeys(FROM_ARGUMENTS, AUTO)


@pytest.mark.parametrize(
    ("training", "dtype", "user", "expected"),
    [
        ({}, "float32", {}, {"enabled": False}),
        ({"bf16": True}, "float32", {}, {"enabled": True}),
        ({}, "bfloat16", {}, {"enabled": True}),
        ({"bf16": True}, "float32", {"bf16": {"enabled": False}}, {"enabled": True}),
        ({}, "float32", {"bf16": {"enabled": True, "x": 1}}, {"enabled": False, "x": 1}),
    ],
)
def test_bf16_is_written_out(training, dtype, user, expected):
    trial = config(zero_stage=1, training=training, model={"dtype": dtype})
    assert deepspeed_config(trial, "hpu", user)["bf16"] == expected


def test_an_optimizer_section_comes_with_offload_alone():
    plain = deepspeed_config(config(zero_stage=2), "cpu", SEEDS_OWN)
    assert "optimizer" not in plain
    offloaded = config(zero_stage=2, deepspeed={"offload_optimizer": "cpu"})
    found = deepspeed_config(offloaded, "cpu", {})
    assert found["optimizer"] == OPTIMIZER
    assert found["zero_force_ds_cpu_optimizer"] is False


WARMUP = {"type": "WarmupLR", "params": {"warmup_max_lr": 1e-3, "warmup_num_steps": 5}}
FIXED_ADAMW = {"type": "AdamW", "params": {"lr": 1e-3, "betas": [0.8, 0.9], "adam_w_mode": True}}


def test_the_trials_schedule_and_hyperparameters_win_over_the_files():
    user = {"scheduler": WARMUP, "optimizer": FIXED_ADAMW, "bf16": {"enabled": True}}
    trial = config(zero_stage=2)
    found = deepspeed_config(trial, "cpu", user)
    assert "scheduler" not in found
    kept = {**dict.fromkeys(("lr", "betas", "eps", "weight_decay"), AUTO), "adam_w_mode": True}
    assert found["optimizer"] == {"type": "AdamW", "params": kept}
    replaced = ["scheduler", "optimizer.params.lr", "optimizer.params.betas", "bf16.enabled"]
    assert replaced_parts(trial, user) == replaced
    assert replaced_parts(trial, {"optimizer": OPTIMIZER, "bf16": {"enabled": AUTO}}) == []


def test_the_trials_optimizer_wins_over_an_adamw_of_the_file():
    sgd = config(zero_stage=2, training={"optim": "sgd"})
    assert "optimizer" not in deepspeed_config(sgd, "cpu", {"optimizer": FIXED_ADAMW})
    assert replaced_parts(sgd, {"optimizer": FIXED_ADAMW}) == ["optimizer"]


@pytest.mark.parametrize(
    ("sections", "user", "key"),
    [
        ({}, {"optimizer": {"type": "Adagrad"}}, "deepspeed.config"),
        ({}, {"optimizer": {"type": "Adam", "params": {"adam_w_mode": False}}}, "deepspeed.config"),
        ({"training": {"optim": "sgd"}, "deepspeed": {"offload_optimizer": "cpu"}}, {},
         "training.optim"),
        ({"training": {"optim": "adafactor"}},
         {"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}, "training.optim"),
    ],
)  # fmt: skip
def test_an_optimizer_other_than_the_trials_is_refused_by_name(sections, user, key):
    trial = config(zero_stage=2, **sections)
    with pytest.raises(ConfigError) as refused:
        deepspeed_config(trial, "cpu", user)
    assert [problem.key for problem in refused.value.problems] == [key]
    settings = {**trial.deepspeed.model_dump(), "config": user}
    checked = trial.model_copy(update={"deepspeed": DeepSpeedSection(**settings)})
    assert [problem.key for problem in preflight(checked)] == [key]
    assert preflight(checked.model_copy(update={"zero_stage": None})) == []


def test_the_arguments_are_not_modified(tmp_path):
    user = json.loads(json.dumps(SEEDS_OWN))
    found = deepspeed_config(
        config(zero_stage=3, deepspeed={"offload_optimizer": "cpu"}), "cpu", user
    )
    found["optimizer"]["params"]["lr"] = 1
    assert user == SEEDS_OWN
    assert OPTIMIZER["params"]["lr"] == AUTO


def test_a_users_configuration_is_a_file_or_a_mapping(tmp_path):
    file = tmp_path / "ds_config.json"
    file.write_text(json.dumps(SEEDS_OWN))
    assert user_config(str(file)) == user_config(SEEDS_OWN) == SEEDS_OWN
    assert user_config(None) == {}
    for text in ("[1]", "{"):
        file.write_text(text)
        with pytest.raises(ValueError, match="JSON"):
            user_config(str(file))
    with pytest.raises(ValueError, match=r"none\.json is not readable"):
        user_config(str(tmp_path / "none.json"))
