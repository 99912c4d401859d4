"""Which parameters matter, on studies where that is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from helpers.results import add_trial, make_config, make_study, rank_study

from results.analysis.importance import ENOUGH, importance
from results.analysis.study_analysis import analyse
from results.data.folders import read_study
from results.data.trials_table import trials_table


def test_the_planted_parameter_dominates(tmp_path):
    study, draw = make_study(tmp_path / "s"), np.random.default_rng(0)
    for number in range(40):
        rate, dropout = 10 ** draw.uniform(-5, -2), float(draw.uniform(0, 0.3))
        config = make_config(number, training__learning_rate=rate, lora__lora_dropout=dropout)
        add_trial(study, config, 2 + (math.log10(rate) + 3.5) ** 2 + 0.01 * dropout, evaluations=2)
    found = analyse(read_study(study))
    shares = found.importance
    assert shares.names[0] == "training.learning_rate"
    assert shares.fanova[0] > 0.8
    assert sum(shares.fanova) == pytest.approx(1)
    assert sum(shares.ped_anova) == pytest.approx(1)
    assert not shares.few
    from results.page.summary import sentences

    assert any("Learning rate dominates" in text for text in sentences(found))


def test_few_trials_are_said_to_be_few(tmp_path):
    shares = importance(trials_table(rank_study(tmp_path / "s")))
    assert shares.trials == 13 < ENOUGH
    assert shares.few


def test_one_parameter_has_no_importance(tmp_path):
    study = make_study(tmp_path / "s")
    for number in range(5):
        add_trial(study, make_config(number, lora__r=4 + number), 2.0 + number)
    assert importance(trials_table(study)) is None


def test_many_choices_are_ranked_and_found_important(tmp_path):
    """28 base models: fANOVA's time doubles with each choice that it is given as such."""
    study, draw = make_study(tmp_path / "s"), np.random.default_rng(0)
    for number in range(56):
        base = number % 28
        config = make_config(
            number,
            model__name_or_path=f"/models/{(base * 11) % 28}",
            lora__lora_dropout=float(draw.uniform(0, 0.3)),
        )
        add_trial(study, config, 2 + 0.1 * base, evaluations=1)
    shares = importance(trials_table(study))
    assert shares.names[0] == "model.name_or_path"
    assert shares.fanova[0] > 0.8
