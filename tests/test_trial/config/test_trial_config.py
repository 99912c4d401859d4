"""The rules of a trial's configuration, and that each border applies them once."""

from __future__ import annotations

import json

import pytest
from pydantic import ValidationError

from trial.config import config_rules, trial_config
from trial.config.errors import ConfigError
from trial.config.trial_config import TrialConfig, parse, problems_of, validate
from trial.store.folders import TrialFolder

FORGET = {"data": {"forget_path": "f.json"}, "keep": "last"}

WRONG = [
    # content, keys of the problems
    ({"training": {"learning_rat": 1e-4}}, ["training.learning_rat"]),
    ({"training": {"learning_rate": "high"}}, ["training.learning_rate"]),
    ({"training": {"learning_rate": 0}}, ["training.learning_rate"]),
    ({"training": {"warmup_ratio": 1.5}}, ["training.warmup_ratio"]),
    ({"training": {"adam_beta1": 1.0}}, ["training.adam_beta1"]),
    ({"training": {"adam_beta2": 1}}, ["training.adam_beta2"]),
    ({"training": {"eval_steps": 2.5}}, ["training.eval_steps"]),
    ({"training": {"seed": 2**32}}, ["training.seed"]),
    ({"training": {"output_dir": "x"}}, ["training.output_dir"]),
    ({"training": {"report_to": "wanb"}}, ["training.report_to"]),
    (
        {"training": {"lr_scheduler_type": "cosine_with_min_lr"}},
        ["training.lr_scheduler_kwargs"],
    ),
    ({"lora": {"rank": 4}}, ["lora.rank"]),
    ({"lora": {"r": -1}}, ["lora.r"]),
    ({"lora": {"rank": 4, "r": -1}}, ["lora.rank", "lora.r"]),
    ({"gaudi_config": {"use_fused_adm": True}}, ["gaudi_config.use_fused_adm"]),
    ({"gaudi_config": {"use_fused_adam": 1}}, ["gaudi_config.use_fused_adam"]),
    ({"gaudi_config": 3}, ["gaudi_config"]),
    ({"deepspeed": {"offload_param": "cpu"}}, ["zero_stage"]),
    ({"objective": "np"}, ["objective.name"]),
    ({"objective": "npo"}, ["data.forget_path"]),
    ({"objective": "npo", **FORGET, "lora": {"r": 0}}, ["lora.r"]),
    (
        {"objective": "npo", **FORGET, "training": {"label_smoothing_factor": 0.1}},
        ["training.label_smoothing_factor"],
    ),
    ({"unknown": 1}, ["unknown"]),
    (
        {"training": {"learning_rate": 0}, "lora": {"rank": 4}, "objective": "np", "keep": "all"},
        ["training.learning_rate", "lora.rank", "objective.name", "keep"],
    ),
]


@pytest.mark.parametrize(("content", "keys"), WRONG)
def test_every_mistake_is_named_once(content, keys):
    assert [problem.key for problem in problems_of(content)] == keys
    with pytest.raises(ConfigError):
        parse(content)
    assert validate(content)[0] is None


@pytest.mark.parametrize(("content", "keys"), WRONG)
def test_the_model_alone_refuses_the_same(content, keys):
    """As when a worker reads `config.json`."""
    with pytest.raises(ValidationError):
        TrialConfig.model_validate(content)


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"training": {"learning_rate": 1e-4, "eval_steps": 0.5}, "lora": {"r": 4}},
        {"objective": "npo", **FORGET, "data": {"forget_path": "f", "alternatives": ["no"]}},
        {"zero_stage": 3, "deepspeed": {"offload_param": "cpu"}, "gaudi_config": "Habana/llama"},
    ],
)
def test_a_parsed_configuration_is_the_one_that_a_worker_reads(content, tmp_path):
    config = parse(content)
    assert config == TrialConfig.model_validate(content)
    assert TrialFolder.create(tmp_path, config).read_config() == config
    assert parse(json.loads(config.model_dump_json())) == config


def test_each_border_applies_the_rules_once(monkeypatch, tmp_path):
    applied: list[str] = []
    rules = config_rules.training_problems

    def counted(training):
        applied.append("training")
        return rules(training)

    monkeypatch.setattr(config_rules, "training_problems", counted)
    monkeypatch.setitem(config_rules.SECTION_RULES, "training", counted)
    config = trial_config.parse({"training": {"learning_rate": 1e-4}})
    assert applied == ["training"]
    folder = TrialFolder.create(tmp_path, config)
    folder.read_config()
    assert applied == ["training"] * 2
