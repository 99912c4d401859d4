"""Several objectives: the front is the answer, and each objective has its own leader."""

from __future__ import annotations

import itertools

import pytest
from helpers.results import SPEC, add_trial, make_config, make_study

from results import write_report
from results.analysis.study_analysis import analyse
from results.data.folders import read_study
from results.page.summary import sentences

FORGET = {"metric": "forget_loss", "direction": "maximize"}
SPEC_OF_TWO = {**SPEC, "objectives": [SPEC["objectives"][0], FORGET]}
POINTS = ((2.0, 1.0), (2.1, 3.0), (2.2, 2.9), (2.6, 3.2), (2.05, 0.9))
"""Eval loss (small is good) and forget loss (large is good): 0, 1 and 3 are the front."""


def study_of(path, points=POINTS, seeds=(0,), noise=0.0):
    study = make_study(path, SPEC_OF_TWO)
    runs = itertools.product(enumerate(points), seeds)
    for number, ((place, (loss, forget)), seed) in enumerate(runs):
        config = make_config(number, path.name, lora__r=2 ** (place + 1), training__seed=seed)
        shift = noise * (seed - 1) * (-1) ** place
        add_trial(study, config, loss + shift, metrics={"forget_loss": forget - shift})
    return study


def test_the_front_is_what_no_other_configuration_beats(tmp_path):
    found = analyse(read_study(study_of(tmp_path / "s")))
    assert [member.values for member in found.front.members] == [POINTS[0], POINTS[1], POINTS[3]]
    assert found.front.among == 5
    # Scaled to the front's range, (2.1, 3.0) is 0.17 and 0.09 from the best: the nearest by far.
    assert found.front.compromise.values == POINTS[1]


def test_every_objective_has_its_leader(tmp_path):
    found = analyse(read_study(study_of(tmp_path / "s", seeds=(0, 1, 2), noise=0.01)))
    loss, forget = found.front.goals
    assert loss.board.leader.row["lora.r"] == 2
    assert forget.board.leader.row["lora.r"] == 16
    assert forget.board.leader.mean == pytest.approx(3.2)
    assert forget.board.noise == pytest.approx(0.01)
    assert found.front.members[0].group.values == pytest.approx((1.99, 2.0, 2.01))


def test_the_answer_is_the_front_and_no_single_winner(tmp_path):
    told = " ".join(sentences(analyse(read_study(study_of(tmp_path / "s")))))
    assert told.startswith("3 of 5 configurations are worth choosing from")
    assert "The lowest eval loss, 2.0000, is that of r 2 (trial 0)." in told
    assert "The highest forget loss, 3.2000, is that of r 16 (trial 3)." in told
    assert "The most even compromise is r 4 (trial 1) with eval loss 2.1000 and forget loss" in told
    assert "the noise is unknown" in told
    assert "wins" not in told


def test_one_that_is_best_in_all_is_the_answer(tmp_path):
    told = sentences(analyse(read_study(study_of(tmp_path / "s", ((2.0, 9.0), *POINTS[1:])))))
    assert told[0].startswith("One configuration is best in eval loss and forget loss at once: r 2")


def test_a_trial_without_the_second_objective_is_not_on_the_front(tmp_path):
    study = study_of(tmp_path / "s")
    add_trial(study, make_config(9, lora__r=64), 1.0)
    found = analyse(read_study(study))
    assert found.front.among == 5
    assert 9 not in [n for member in found.front.members for n in member.group.trials]


def test_the_report_shows_both_objectives(tmp_path):
    page = write_report(study_of(tmp_path / "s", seeds=(0, 1), noise=0.01))
    text = page.with_suffix(".md").read_text()
    assert "**Pareto front: no configuration is better" in text
    assert "**Best in each objective alone**" in text
    assert "Configurations, best first, by eval loss alone" in text
    assert (page.parent / "figures" / "objectives.svg").exists()
    trials = text.partition("All trials, best first")[2].splitlines()[2]
    assert "eval loss" in trials
    assert "forget loss" in trials
