"""Starts of the adapter that a configuration may name."""

from trial.config.trial_config import problems_of


def test_a_start_that_loading_draws_again_is_refused_with_the_one_that_is_not():
    (problem,) = problems_of({"lora": {"init_lora_weights": "pissa_niter_16"}})
    assert (problem.key, problem.near) == ("lora.init_lora_weights", "pissa")
    assert problems_of({"lora": {"init_lora_weights": "pissa"}}) == []
