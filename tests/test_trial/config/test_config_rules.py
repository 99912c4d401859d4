"""Starts of the adapter that a configuration may name."""

import pytest

from trial.config.trial_config import problems_of


def test_a_start_that_loading_draws_again_is_refused_with_the_one_that_is_not():
    (problem,) = problems_of({"lora": {"init_lora_weights": "pissa_niter_16"}})
    assert (problem.key, problem.near) == ("lora.init_lora_weights", "pissa")
    assert problems_of({"lora": {"init_lora_weights": "pissa"}}) == []


@pytest.mark.parametrize("start", ["corda", "loftq", "lora_ga"])
def test_a_start_that_needs_more_than_its_name_is_refused(start):
    (problem,) = problems_of({"lora": {"init_lora_weights": start}})
    assert (problem.key, problem.near) == ("lora.init_lora_weights", "eva")
    assert start in problem.expected


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("arrow_config", {"top_k": 2}),
        ("monteclora_config", {"num_samples": 4}),
        ("use_qalora", True),
        ("corda_config", {}),
    ],
)
def test_a_key_that_a_trial_cannot_keep_is_refused_and_null_is_not(key, value):
    found = [problem.key for problem in problems_of({"lora": {key: value}})]
    assert found == ([f"lora.{key}"] if value else [])


def test_eva_runs_the_base_model_which_stage_3_has_partitioned():
    lora = {"init_lora_weights": "eva"}
    assert [p.key for p in problems_of({"lora": lora, "zero_stage": 3})] == ["zero_stage"]
    assert problems_of({"lora": lora, "zero_stage": 2}) == []
