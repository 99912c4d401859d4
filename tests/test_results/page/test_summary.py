"""The sentences of a report: what wins, ties, warnings, prices, stages, several objectives."""

from __future__ import annotations

import itertools
import math

from helpers.results import (
    SPEC,
    add_trial,
    charts,
    make_config,
    make_study,
    seed_study,
    zero_study,
)

from results import ReportOptions, recommended, trials_table, write, write_report


def test_the_answer_of_a_search_without_repeats(markdown):
    answer = markdown.split("## ")[0]
    assert "Rank 16 has the lowest eval loss" in answer
    assert "the noise is unknown" in answer
    assert "The best learning rate is 0.001 at every rank." in answer
    assert "5% pruned and 4% failed" in answer
    assert "1 trial ran out of memory" in answer


def test_the_answer_names_a_tie_and_takes_the_cheap_one(tmp_path):
    study = seed_study(tmp_path / "s", {4: 2.5, 16: 2.301, 64: 2.3}, noise=0.01)
    answer = write(study).read_text(encoding="utf-8").split("## ")[0]
    assert "No single winner: ranks 16 and 64 tie" in answer
    assert "take the cheapest, r 16 (trials 5" in answer
    assert "The best beats r 4" in answer
    assert "outside the noise" in answer


def test_the_answer_crowns_a_winner_with_its_margin(tmp_path):
    study = seed_study(tmp_path / "s", {4: 2.5, 16: 2.3})
    answer = write(study).read_text(encoding="utf-8").split("## ")[0]
    assert "**Rank 16 wins: r 16" in answer
    assert "paired t test over 5 shared seeds" in answer


def test_the_best_value_at_an_edge_says_widen(tmp_path):
    study = make_study(tmp_path / "s", {})
    for number, rate in enumerate((1e-5, 1e-4, 1e-3, 1e-2)):
        config = make_config(number, training__learning_rate=rate)
        add_trial(study, config, 3 - math.log10(rate) / 10)
    answer = write(study).read_text(encoding="utf-8").split("## ")[0]
    assert "The best learning rate, 0.01, lies at the upper end" in answer
    assert "(1e-5 to 0.01): widen it" in answer


def test_what_ties_over_the_whole_range_is_no_edge(tmp_path):
    study = seed_study(tmp_path / "s", {4: 2.3, 16: 2.301, 64: 2.302}, noise=0.01)
    answer = write(study).read_text(encoding="utf-8").split("## ")[0]
    assert "take the cheapest, r 4 " in answer
    assert "widen" not in answer


def test_rates_that_tie_cost_the_same_and_the_best_is_taken(tmp_path):
    """A busy machine makes equal work look dearer: the times say nothing of the rates."""
    study, seeds = make_study(tmp_path / "s"), range(3)
    for number, (rate, seed) in enumerate(itertools.product((1e-4, 2e-4, 1e-2), seeds)):
        config = make_config(number, training__learning_rate=rate, training__seed=seed)
        loss = {1e-4: 2.300, 2e-4: 2.301, 1e-2: 2.9}[rate] + 0.01 * ((seed + number // 3) % 3)
        add_trial(study, config, loss, seconds_a_step=0.1 if rate == 2e-4 else 0.2)
    text = write(study).read_text(encoding="utf-8")
    assert "they cost the same, so take learning rate 1e-4" in text.split("## ")[0]
    assert "the machine's doing" in text


def test_the_only_rate_of_a_rank_is_not_called_its_best(tmp_path):
    study = make_study(tmp_path / "s")
    tried = [(4, 1e-3), (4, 1e-2), (16, 1e-3), (16, 1e-2), (64, 1e-5)]
    for number, (rank, rate) in enumerate(tried):
        loss = 2 + rate + (rank == 64)
        add_trial(study, make_config(number, lora__r=rank, training__learning_rate=rate), loss)
    answer = write(study).read_text(encoding="utf-8").split("## ")[0]
    assert "The best learning rate is 0.001 at r 4 and 0.001 at r 16." in answer


def test_rates_side_by_side_are_not_joined_from_dot_to_dot(tmp_path):
    """Six near rates of a bowl: a parabola, not a zigzag through their noise."""
    study = make_study(tmp_path / "s")
    for number, rate in enumerate((1e-4, 9e-4, 1e-3, 1.01e-3, 1.2e-3, 1e-2)):
        config = make_config(number, training__learning_rate=rate)
        loss = 2.3 + 0.1 * (math.log10(rate) + 3) ** 2 + 0.01 * (-1) ** number
        add_trial(study, config, loss)
    figure = charts(write_report(study).read_text(encoding="utf-8"))["rates"]
    line = next(trace for trace in figure["data"] if trace["mode"] == "lines")
    assert len(line["x"]) == 60


def test_a_pruned_trial_that_led_its_rank_is_pointed_out(tmp_path):
    study = make_study(tmp_path / "s")
    for number, (rank, loss, state) in enumerate(
        [(4, 2.5, "complete"), (4, 2.4, "pruned"), (16, 2.3, "complete"), (16, 2.35, "pruned")]
    ):
        config = make_config(number, lora__r=rank, training__learning_rate=1e-4 * (number + 1))
        add_trial(study, config, loss, state)
    answer = write(study).read_text(encoding="utf-8").split("## ")[0]
    assert "Pruning may have wronged rank 4:" in answer
    assert "(trial 1)" in answer


def test_a_price_turns_device_time_into_money(tmp_path):
    spec = {**SPEC, "resources": {"price_per_device_hour": 3600.0}}
    study = make_study(tmp_path / "s", spec)
    spent = add_trial(study, make_config(0), 2.0).read_result().seconds.total
    text = write_report(study, ReportOptions(currency="EUR")).with_suffix(".md").read_text()
    assert f"{spent:.2f} EUR" in text
    text = (
        write_report(study, ReportOptions(price_per_device_hour=7200.0))
        .with_suffix(".md")
        .read_text()
    )
    assert f"{2 * spent:.2f}" in text


def test_stages_that_disagree_are_warned_about(tmp_path):
    agree = write(zero_study(tmp_path / "a")).read_text(encoding="utf-8")
    apart = write(zero_study(tmp_path / "b", drift=0.05)).read_text(encoding="utf-8")
    assert "agree in eval loss to within rounding" in agree
    assert "Warning: ZeRO-3 and ZeRO-0 disagree in eval loss by 2%" in apart
    assert "ZeRO-0 is the fastest" in apart
    assert "ZeRO-3 needs the least memory, 300 MB a device against 900 MB with ZeRO-0" in apart
    assert agree.index("## ZeRO stages") < agree.index("## Leaderboard")


def test_memory_of_a_cpu_ranks_no_stage(tmp_path):
    """A warm worker's process grows from trial to trial: the order of the trials would win."""
    text = write(zero_study(tmp_path / "s", device="cpu")).read_text(encoding="utf-8")
    answer = text.split("## ")[0]
    assert "ZeRO-0 is the fastest" in answer
    assert "needs the least memory cannot be told here" in answer
    assert "300 MB" not in answer


def test_no_deepspeed_has_a_name_everywhere(tmp_path):
    goals = [{"metric": name} for name in ("seconds_per_step", "peak_memory_bytes")]
    study = make_study(tmp_path / "s", {"objectives": goals})
    for number, (stage, seed) in enumerate(itertools.product((None, 2), range(2))):
        config = make_config(number, zero_stage=stage, training__seed=seed)
        add_trial(study, config, 2.5, memory=600_000_000 + 10_000_000 * number)
    page = write_report(study)
    text = page.with_suffix(".md").read_text(encoding="utf-8")
    assert "the base" not in text
    assert "best peak memory: 605 MB" in text
    assert "± 7.07 MB" in text
    assert "peak memory bytes" not in text
    figures = charts(page.read_text(encoding="utf-8"))
    assert figures["objectives"]["layout"]["xaxis"]["tickformat"] == "~s"
    assert figures["slice_zero_stage"]["layout"]["xaxis"]["ticktext"] == ["ZeRO-2", "no DeepSpeed"]


def test_the_recommended_trial_is_the_reports(tmp_path):
    """Not the single lowest value: the best run of the cheapest of those that tie."""
    study = seed_study(tmp_path / "s", {4: 2.5, 16: 2.301, 64: 2.3}, noise=0.01)
    assert recommended(study) is None  # no trial has its weights
    for _, folder in study.all_trials():
        folder.adapter.mkdir()
    table = trials_table(study)
    assert recommended(study) == table[table["lora.r"] == 16].sort_values("value")["number"].iloc[0]


def test_several_objectives_show_their_front(tmp_path):
    goals = [
        {"metric": "eval_loss", "direction": "minimize"},
        {"metric": "rouge", "direction": "maximize"},
    ]
    study = make_study(tmp_path / "s", {"objectives": goals})
    points = [(2.0, 0.5), (2.1, 0.9), (2.2, 0.4)]
    for number, (loss, rouge) in enumerate(points):
        config = make_config(number, lora__r=4 + number)
        add_trial(study, config, loss, metrics={"rouge": rouge})
    page = write_report(study)
    front = next(
        trace for trace in charts(page.read_text(encoding="utf-8"))["objectives"]["data"]
        if trace["name"] == "Pareto front"
    )  # fmt: skip
    assert set(zip(front["x"], front["y"], strict=True)) == {(0.5, 2), (0.9, 2.1)}
    assert "the Pareto front of eval loss and rouge" in page.with_suffix(".md").read_text()


def test_stages_with_repeats_say_what_the_noise_hides(tmp_path):
    goals = [{"metric": "seconds_per_step", "direction": "minimize"}]
    study = make_study(tmp_path / "s", {"objectives": goals})
    for number, (stage, seed) in enumerate(itertools.product((0, 1, 3), range(3))):
        config = make_config(number, zero_stage=stage, training__seed=seed)
        pace = {0: 0.10, 1: 0.101, 3: 0.3}[stage] * (1 + 0.02 * ((seed + stage) % 3))
        add_trial(study, config, 2.5, seconds_a_step=pace)
    answer = write(study).read_text(encoding="utf-8").split("## ")[0]
    assert "is the fastest" not in answer
    assert "No single fastest stage: in seconds per step ZeRO-0 and ZeRO-1" in answer
    assert "±" in answer
