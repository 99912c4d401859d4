"""Statistics against known answers: planted winners, none, ties, coverage by simulation."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from helpers.results import add_trial, make_config, make_study, seed_study
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from statsmodels.formula.api import ols

from results.analysis import significance
from results.analysis.leaderboard import cheapest, leaderboard
from results.analysis.significance import Group, compare
from results.data.trials_table import trials_table


@pytest.fixture(autouse=True)
def _no_collecting(monkeypatch):
    """statsmodels collects garbage in every correction: a tenth of a second beside torch."""
    monkeypatch.setattr("gc.collect", lambda *_: 0)


def group(values, seeds=None, device_seconds=10.0, trainable=1000, first=0):
    seeds = tuple(seeds if seeds is not None else range(len(values)))
    trials = tuple(range(first, first + len(values)))
    row = {"trainable_parameters": trainable}
    return Group(trials, seeds, tuple(map(float, values)), row, device_seconds)


def table_of_values(values: np.ndarray, direction: str = "minimize") -> pd.DataFrame:
    """A table of groups (rows of `values`) by seeds (its columns)."""
    groups, seeds = np.indices(values.shape)
    table = pd.DataFrame({
        "number": range(values.size), "state": "complete", "value": values.ravel(),
        "group": [f"g{index}" for index in groups.ravel()], "seed": seeds.ravel(),
        "warm_device_seconds": 10.0, "trainable_parameters": 1000,
    })  # fmt: skip
    table.attrs["objectives"] = [["eval_loss", direction]]
    return table


def test_a_planted_winner_wins_outside_the_noise(tmp_path):
    study = seed_study(tmp_path / "s", {4: 2.5, 16: 2.3, 64: 2.45}, noise=0.01)
    board = leaderboard(trials_table(study))
    assert [standing.tier for standing in board.standings] == [1, 2, 3]
    assert board.leader.row["lora.r"] == board.recommended.row["lora.r"] == 16
    first = board.beaten[0].comparison
    assert first.paired == 5
    assert first.interval.low < 0.15 < first.interval.high
    assert board.noise == pytest.approx(0.01, rel=0.5)


def test_ties_share_the_first_place_and_the_cheapest_is_taken(tmp_path):
    study = seed_study(tmp_path / "s", {4: 2.5, 16: 2.301, 64: 2.3}, noise=0.01)
    board = leaderboard(trials_table(study))
    tied = {standing.group.row["lora.r"] for standing in board.tied}
    assert tied == {16, 64}
    assert board.recommended.row["lora.r"] == 16
    assert [standing.group.row["lora.r"] for standing in board.beaten] == [4]


def test_shared_seed_effects_are_paired_away(tmp_path):
    """A difference far smaller than the noise between seeds, but the same for every seed."""
    study = seed_study(tmp_path / "s", {4: 2.31, 16: 2.3}, noise=0.001, shared=0.2)
    board = leaderboard(trials_table(study))
    assert board.noise > 0.05
    assert [standing.tier for standing in board.standings] == [1, 2]


def test_without_shared_seeds_welch_is_used():
    mine, other = group([2.4, 2.42, 2.41], seeds=(0, 1, 2)), group([2.3, 2.31], seeds=(5, 6))
    test = compare(mine, other)
    assert test.paired == 0
    assert test.difference == pytest.approx(0.105)
    # By hand: t = 0.105 / sqrt(1e-4 / 3 + 5e-5 / 2), Welch-Satterthwaite freedom 2.77.
    assert test.p == pytest.approx(0.0014, abs=0.0015)
    assert not test.tied


def test_a_paired_difference_has_the_textbook_interval():
    """Differences 1, 2, 3: mean 2, standard error 1 / sqrt(3), t(0.975, 2) = 4.302653."""
    test = compare(group([2, 4, 6]), group([1, 2, 3]))
    half = 4.302653 / math.sqrt(3)
    assert (test.interval.low, test.interval.high) == pytest.approx((2 - half, 2 + half))


def test_one_run_each_means_that_the_noise_is_unknown(tmp_path):
    study = seed_study(tmp_path / "s", {4: 2.5, 16: 2.3}, seeds=1)
    board = leaderboard(trials_table(study))
    assert board.noise is None
    assert [standing.tier for standing in board.standings] == [None, None]
    assert all(standing.group.interval is None for standing in board.standings)
    assert board.recommended.row["lora.r"] == 16


def test_single_runs_never_outrank_what_was_repeated(tmp_path):
    study = seed_study(tmp_path / "s", {16: 2.3, 64: 2.6}, seeds=4, noise=0.01)
    add_trial(study, make_config(90, lora__r=4, training__seed=0), 2.295)
    add_trial(study, make_config(91, lora__r=8, training__seed=0), 2.9)
    board = leaderboard(trials_table(study))
    assert board.leader.row["lora.r"] == 16
    single = {s.group.row["lora.r"]: s.within_noise for s in board.standings if s.tier is None}
    assert single == {4: True, 8: False}


def test_the_run_that_got_picked_is_left_out_of_a_confirmed_mean(tmp_path):
    study = make_study(tmp_path / "s")
    add_trial(study, make_config(0, lora__r=16, training__seed=0), 1.0)
    add_trial(study, make_config(1, lora__r=4, training__seed=0), 2.6)
    for seed in (1, 2, 3):
        config = make_config(1 + seed, lora__r=16, training__seed=seed)
        origin = config.origin.model_copy(update={"confirms": 0})
        add_trial(study, config.model_copy(update={"origin": origin}), 2.3)
    leader = leaderboard(trials_table(study)).leader
    assert leader.trials == (2, 3, 4)
    assert leader.mean == pytest.approx(2.3)


def test_equal_runs_tie_and_constant_differences_do_not():
    assert compare(group([2.0, 2.0]), group([2.0, 2.0])).tied
    assert not compare(group([2.5, 2.5]), group([2.0, 2.0])).tied


def test_a_seed_run_twice_is_no_repeat(tmp_path):
    study = make_study(tmp_path / "s")
    for number in range(3):
        add_trial(study, make_config(number, lora__r=4, training__seed=7), 2.0 + number)
    board = leaderboard(trials_table(study))
    assert board.standings[0].group.values == (2.0,)
    assert board.noise is None


def test_high_values_win_when_they_should():
    values = np.array([[1.0, 1.1, 0.9], [5.0, 5.1, 5.2]])
    board = leaderboard(table_of_values(values, "maximize"))
    assert board.leader.mean == pytest.approx(5.1)
    assert board.beaten[0].comparison.difference > 0


def test_holm_is_what_the_book_says():
    """Sorted p times the number of hypotheses left, never falling."""
    draw = np.random.default_rng(1)
    values = 2.3 + 0.01 * draw.standard_normal((5, 6)) + np.linspace(0, 0.03, 5)[:, None]
    board = leaderboard(table_of_values(values))
    tests = [s.comparison for s in board.standings if s.comparison]
    raw = sorted(test.p for test in tests)
    by_hand = np.minimum(np.maximum.accumulate([p * (4 - i) for i, p in enumerate(raw)]), 1)
    assert sorted(test.adjusted for test in tests) == pytest.approx(list(by_hand))


def test_intervals_cover_the_truth_as_often_as_they_say():
    draw = np.random.default_rng(0)
    runs = 2.3 + 0.01 * draw.standard_normal((3000, 5))
    ends = [group(values).interval for values in runs]
    covered = np.mean([end.low <= 2.3 <= end.high for end in ends])
    assert covered == pytest.approx(significance.LEVEL, abs=4 * math.sqrt(0.05 * 0.95 / 3000))


def test_paired_intervals_cover_the_true_difference():
    draw = np.random.default_rng(2)
    covered = []
    for _ in range(1000):
        shared = 0.1 * draw.standard_normal(4)
        mine, other = (at + shared + 0.01 * draw.standard_normal(4) for at in (2.35, 2.3))
        interval = compare(group(mine), group(other)).interval
        covered.append(interval.low <= 0.05 <= interval.high)
    assert np.mean(covered) == pytest.approx(
        significance.LEVEL, abs=4 * math.sqrt(0.05 * 0.95 / 1000)
    )


@pytest.mark.parametrize("groups", [2, 5])
def test_no_winner_is_crowned_inside_the_noise(groups):
    """Equal configurations: a sole winner appears in at most one study of twenty."""
    draw = np.random.default_rng(3)
    crowned = [
        len(leaderboard(table_of_values(2.3 + 0.01 * draw.standard_normal((groups, 3)))).tied) == 1
        for _ in range(300)
    ]
    assert np.mean(crowned) <= significance.ALPHA + 3 * math.sqrt(0.05 * 0.95 / 300)


def few_seeds(draw, configurations: int, runs: int) -> np.ndarray:
    """Values without any difference: a seed effect that all share, and noise."""
    shared = 0.05 * draw.standard_normal(runs)
    return 2.3 + shared + 0.01 * draw.standard_normal((configurations, runs))


def test_few_seeds_share_their_noise_as_an_analysis_of_variance_does():
    """Every difference, its interval and its p against statsmodels' linear model."""
    values = few_seeds(np.random.default_rng(5), 4, 3) + np.array([[0], [0.01], [0.03], [0.05]])
    board = leaderboard(table_of_values(values))
    groups, seeds = np.indices(values.shape)
    rows = pd.DataFrame({"y": values.ravel(), "c": groups.ravel(), "s": seeds.ravel()})
    first = board.leader.trials[0] // 3
    fitted = ols(f"y ~ C(c, Treatment({first})) + C(s)", rows).fit()
    for standing in board.standings[1:]:
        name = f"C(c, Treatment({first}))[T.{standing.group.trials[0] // 3}]"
        test = standing.comparison
        assert test.pooled == 4
        assert test.difference == pytest.approx(fitted.params[name])
        assert test.p == pytest.approx(fitted.pvalues[name])
        ends = fitted.conf_int().loc[name]
        assert (test.interval.low, test.interval.high) == pytest.approx(tuple(ends))


def test_two_seeds_of_five_configurations_can_tell_a_large_difference():
    """By the two runs' own noise alone they could not: one degree of freedom each."""
    draw = np.random.default_rng(6)
    means = np.array([2.3, 2.31, 2.5, 2.5, 2.5])[:, None] - 2.3
    boards = [leaderboard(table_of_values(few_seeds(draw, 5, 2) + means)) for _ in range(60)]
    found = [sum(standing.tier == 1 for standing in board.standings) <= 2 for board in boards]
    assert np.mean(found) > 0.9


@pytest.mark.parametrize(("configurations", "runs"), [(5, 2), (3, 3), (8, 3)])
def test_the_best_stays_in_the_first_place_whoever_leads(configurations, runs):
    """The leader is picked from the same runs: the truly best must be lost in one of twenty."""
    draw = np.random.default_rng(7)
    means = np.linspace(0, 0.02, configurations)[:, None]
    kept = []
    for _ in range(150):
        board = leaderboard(table_of_values(few_seeds(draw, configurations, runs) + means))
        kept.append(0 in [standing.group.trials[0] for standing in board.tied])
    assert np.mean(kept) >= significance.LEVEL - 3 * math.sqrt(0.05 * 0.95 / 150)


@pytest.mark.parametrize("runs", [2, 3])
def test_few_seeds_crown_no_winner_inside_the_noise(runs):
    draw = np.random.default_rng(8)
    crowned = [
        len(leaderboard(table_of_values(few_seeds(draw, 5, runs))).tied) == 1 for _ in range(150)
    ]
    assert np.mean(crowned) <= significance.ALPHA + 3 * math.sqrt(0.05 * 0.95 / 150)


def test_a_confirmed_mean_is_not_flattered_by_the_search():
    """The luckiest of ten equal configurations is picked; its fresh seeds know nothing of that."""
    draw = np.random.default_rng(9)
    picked, covered = [], []
    for _ in range(150):
        searched, fresh = 0.01 * draw.standard_normal(10), 0.01 * draw.standard_normal(3)
        values = np.concatenate([searched, fresh])
        table = pd.DataFrame({
            "number": range(13), "state": "complete", "value": values, "seed": [0] * 10 + [1, 2, 3],
            "group": [f"g{n}" for n in range(10)] + [f"g{searched.argmin()}"] * 3,
            "confirms": [None] * 10 + [float(searched.argmin())] * 3,
            "warm_device_seconds": 10.0, "trainable_parameters": 1000,
        })  # fmt: skip
        leader = leaderboard(table).leader
        picked.append(leader.mean)
        covered.append(leader.interval.low <= 0 <= leader.interval.high)
    assert abs(np.mean(picked)) < 4 * 0.01 / math.sqrt(3 * 150)
    assert np.mean(covered) == pytest.approx(
        significance.LEVEL, abs=4 * math.sqrt(0.05 * 0.95 / 150)
    )


def test_a_real_difference_is_found():
    draw = np.random.default_rng(4)
    means = np.array([2.3, 2.34, 2.35])[:, None]
    wins = [
        len(leaderboard(table_of_values(means + 0.01 * draw.standard_normal((3, 5)))).tied) == 1
        for _ in range(100)
    ]
    assert np.mean(wins) > 0.8


@pytest.mark.parametrize(
    ("costs", "sizes", "taken"),
    [
        ((10.0, 20.0), (64, 4), 0),
        ((10.0, 11.0), (64, 4), 1),
        ((10.0, 11.0), (4, 64), 0),
    ],
)
def test_the_cheapest(costs, sizes, taken):
    groups = [
        group([1.0], device_seconds=cost, trainable=size, first=10 * index)
        for index, (cost, size) in enumerate(zip(costs, sizes, strict=True))
    ]
    assert cheapest(groups) is groups[taken]


def test_times_that_overlap_do_not_make_one_cheaper():
    """Ranks of 10 to 30 and 15 to 35 s: the smaller adapter is the cheaper, not the luckier."""
    large = replace(group([1.0, 1.0], device_seconds=20.0, trainable=64), costs=(10.0, 30.0))
    small = replace(group([1.0, 1.0], device_seconds=25.0, trainable=4), costs=(15.0, 35.0))
    assert cheapest([large, small]) is small
    dear = replace(small, device_seconds=45.0, costs=(40.0, 50.0))
    assert cheapest([large, dear]) is large


def test_equal_work_costs_the_same_and_the_best_of_it_is_taken():
    fast = replace(group([2.0, 2.0], device_seconds=10.0), work=("8",))
    best = replace(group([1.0, 1.0], device_seconds=99.0), work=("8",))
    dear = replace(group([0.0, 0.0], device_seconds=200.0), work=("64",))
    assert cheapest([fast, best, dear]) is best
    assert cheapest([fast, best, dear], sign=-1.0) is fast


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(st.integers(1, 6), st.integers(1, 4), st.integers(0, 10_000))
def test_every_configuration_has_exactly_one_place(groups, seeds, random):
    values = np.random.default_rng(random).standard_normal((groups, seeds)).round(1)
    board = leaderboard(table_of_values(values))
    assert len({standing.group.trials for standing in board.standings}) == groups
    tiers = [standing.tier for standing in board.standings if standing.tier]
    assert tiers == sorted(tiers)
    assert board.recommended in [standing.group for standing in board.standings]
