"""The pieces of the report: curves, costs, stages, fronts, limits, units."""

from __future__ import annotations

import json
import math
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from helpers.results import add_trial, make_config, make_study, rank_study, zero_study
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from results.analysis import cost, zero_stages
from results.analysis.importance import ENOUGH, importance
from results.analysis.study_analysis import analyse
from results.analysis.worker_time import spans
from results.data import format
from results.data.folders import read_curve, read_study
from results.data.trials_table import trials_table
from results.page.chart import Axis, Chart, Series, Thinning, robust_limits
from results.page.charts_lora import pareto
from results.render.matplotlib_svg import svg
from results.render.plotly_figure import figure, figure_json
from trial.store.records import Attempt

# Reading


def line(step: int, loss: float, time: float) -> str:
    return json.dumps({"kind": "eval", "step": step, "eval_loss": loss, "time": time}) + "\n"


def test_a_step_evaluated_again_counts_once_and_costs_twice(tmp_path):
    path = tmp_path / "metrics.jsonl"
    rows = [
        (10, 3.0, 100.0),
        (20, 2.5, 110.0),
        (30, 2.2, 120.0),
        (20, 2.4, 200.0),
        (30, 2.1, 210.0),
    ]
    path.write_text(
        "".join(line(*row) for row in rows) + '{"kind": "train", "step": 1, "loss": 2}\n'
    )
    curve = read_curve(path)
    assert list(curve.step) == [10, 20, 30]
    assert list(curve.eval_loss) == [3.0, 2.4, 2.1]
    # From step 10 (kept) to step 30 (lost): twenty seconds were done again.
    assert curve.repeated_seconds == 20.0


def test_an_uninterrupted_curve_repeats_nothing(tmp_path):
    study = make_study(tmp_path / "s")
    folder = add_trial(study, make_config(0), 2.0)
    curve = read_curve(folder.metrics)
    assert curve.repeated_seconds == 0.0
    assert list(curve.eval_loss) == [row.eval_loss for row in folder.read_evaluations()]


# Cost


def test_device_time_adds_up_whatever_it_bought(tmp_path):
    table = trials_table(rank_study(tmp_path / "s"))
    spent = cost.seconds_by_use(table)
    assert spent.sum(axis=1).sum() == pytest.approx(table["device_seconds"].sum())
    assert (spent >= 0).all().all()
    failed = table["state"] == "failed"
    assert spent.loc[failed, "failed"].sum() == pytest.approx(
        table.loc[failed, "device_seconds"].sum()
    )
    assert spent.loc[failed, "train"].sum() == 0


def test_retried_work_is_taken_out_of_training():
    table = pd.DataFrame([{
        "state": "complete", "devices": 2, "device_seconds": 30.0, "repeated_seconds": 4.0,
        "seconds_train": 10.0, "seconds_eval": 3.0, "seconds_save": 1.0, "seconds_startup": 1.0,
    }]).assign(seconds_load=0.0, seconds_first_step=0.0)  # fmt: skip
    spent = cost.total_by_use(table)
    assert spent["retried"] == 8.0
    assert spent["train"] == 12.0
    assert sum(spent.values()) == 30.0


@pytest.mark.parametrize(
    ("spec", "given_price", "expected"),
    [
        ({}, None, None),
        ({"resources": {"price_per_device_hour": 2.5}}, None, 2.5),
        ({"resources": {"price_per_device_hour": 3}}, 7.0, 7.0),
        ({"resources": {"price_per_device_hour": "3"}}, None, None),
        ({"resources": None}, None, None),
    ],
)
def test_where_the_price_comes_from(spec, given_price, expected):
    price = cost.price_of(spec, given_price, "EUR")
    assert (price.per_device_hour if price else None) == expected


# ZeRO


def test_stages_are_measured_and_audited(tmp_path):
    found = analyse(read_study(zero_study(tmp_path / "s", drift=0.05)))
    stages = zero_stages.stages(found.table).set_index("stage")
    assert list(stages.index) == ["ZeRO-0", "ZeRO-1", "ZeRO-2", "ZeRO-3"]
    assert stages.loc["ZeRO-3", "peak_memory_bytes"] == 300_000_000
    assert [(pair.reference, pair.other, pair.agrees) for pair in found.parity] == [
        (0, 1, True), (0, 2, True), (0, 3, False),
    ]  # fmt: skip
    worst = zero_stages.disagreements(found.parity)[0]
    assert worst.worst == pytest.approx(0.05 / 2.5)
    assert worst.at_step == 100


def test_stages_are_compared_only_where_all_else_is_equal(tmp_path):
    study = make_study(tmp_path / "s")
    add_trial(study, make_config(0, zero_stage=0, lora__r=4), 2.0)
    add_trial(study, make_config(1, zero_stage=1, lora__r=8), 3.0)
    add_trial(study, make_config(2, zero_stage=1, lora__r=4, training__seed=1), 3.0)
    assert zero_stages.audit(read_study(study)) == []


def test_no_deepspeed_is_the_first_stage(tmp_path):
    study = make_study(tmp_path / "s")
    for number, stage in enumerate((2, None)):
        add_trial(study, make_config(number, zero_stage=stage), 2.0)
    found = analyse(read_study(study))
    assert list(zero_stages.stages(found.table)["stage"]) == ["no DeepSpeed", "ZeRO-2"]
    assert [(pair.reference, pair.other) for pair in found.parity] == [(1, 0)]


# Fronts, limits

coordinates = arrays(float, st.integers(1, 30), elements=st.integers(0, 8).map(float))


@given(coordinates, st.randoms())
def test_the_front_is_what_nothing_beats(costs, random):
    losses = np.array([float(random.randrange(8)) for _ in costs])
    front = set(pareto(costs, losses).tolist())
    for point in range(len(costs)):
        beaten = any(
            costs[other] <= costs[point]
            and losses[other] <= losses[point]
            and (costs[other] < costs[point] or losses[other] < losses[point])
            for other in range(len(costs))
        )
        if point in front:
            assert not beaten
        elif not beaten:
            twin = [o for o in front if (costs[o], losses[o]) == (costs[point], losses[point])]
            assert twin


def test_far_off_values_do_not_stretch_an_axis():
    values = np.array([2.0, 2.1, 2.2, 2.3, 900.0, math.nan, math.inf])
    low, high = robust_limits(values)
    assert 1.9 < low < 2.0
    assert 2.3 < high < 2.4
    assert robust_limits(np.array([math.nan])) is None
    assert robust_limits(np.array([5.0]))[0] < 5.0


@given(st.integers(0, 5000), st.integers(3, 600), st.integers(0, 1))
def test_thinning_keeps_the_best_and_says_so(count, most, best):
    thinning = Thinning(what="trials")
    kept = thinning.indices(count, most, always=best)
    assert len(kept) <= most
    assert len(set(kept.tolist())) == len(kept)
    if count:
        assert kept[0] == 0
        assert kept[-1] == count - 1
    assert (thinning.note == "") == (len(kept) == count)


# Importance


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


# Drawing


def chart(**changed) -> Chart:
    series = (
        Series("dots <b>", [1.0, 10.0], [2.0, math.nan], hover=["a<br><i>b</i>", "c"]),
        Series("line", [1.0, 2.0], [1.0, 2.0], kind="step", tone="best", low=[0.5, 1], high=[2, 3]),
        Series("bars", [1.0, 2.0], [1.0, 2.0], kind="bar", base=[0.1, 0.2], index=9),
    )
    axes = Axis("x $1", log=True, limits=(0.1, 100.0)), Axis("y", labels=((1.0, "$one$"),))
    return Chart("key", "Title & <more>", "How to read.", *axes, series, **changed)


def test_a_figure_escapes_and_has_no_nan():
    text = figure_json(chart())
    assert "<" not in text
    assert "NaN" not in text
    made = json.loads(text)
    assert made["data"][0]["text"][0] == "a<br>&lt;i&gt;b&lt;/i&gt;"
    assert made["data"][0]["y"] == [2, None]
    assert made["layout"]["xaxis"]["range"] == [-1, 2]
    assert made["data"][1]["error_y"]["array"] == [1, 1]
    assert figure(chart())["data"][2]["marker"]["color"] == "$c1"


def test_a_picture_is_the_same_every_time():
    first, again = svg(chart()), svg(chart())
    assert first == again
    text = " ".join(ElementTree.fromstring(first).itertext())
    assert "Title & <more>" in text
    assert "$one$" in text


def test_a_retried_trial_has_two_bars_in_the_timeline(tmp_path):
    study = make_study(tmp_path / "s")
    folder = add_trial(study, make_config(0), 2.0)
    first = folder.read_attempts()[0]
    later = Attempt(started=first.started + 8, host="other", pid=9, device="cpu", resumed_from=50)
    folder.append_attempt(later)
    found = spans(read_study(study).trials)
    told = [(span.attempt.host, span.trial.number) for span in found]
    assert told == [("bench", 0), ("other", 0)]
    assert found[0].end <= later.started
    assert found[1].end == folder.read_result().finished


# Units


@pytest.mark.parametrize(
    ("write", "value", "text"),
    [
        (format.seconds, 0, "0 s"),
        (format.seconds, 0.84, "0.8 s"),
        (format.seconds, 59.4, "59 s"),
        (format.seconds, 200, "3 min 20 s"),
        (format.seconds, 7500, "2 h 05 min"),
        (format.seconds, 3 * 86400 + 4 * 3600, "3 d 4 h"),
        (format.seconds, None, format.MISSING),
        (format.size, 350e6, "350 MB"),
        (format.size, 1.234e9, "1.23 GB"),
        (format.size, 999, "999 B"),
        (format.count, 512, "512"),
        (format.count, 86_000, "86 k"),
        (format.count, 7_213_000, "7.21 M"),
        (format.number, 1e-4, "1e-4"),
        (format.number, 0.00012345, "1.23e-4"),
        (format.number, 2.34567, "2.346"),
        (format.number, 16, "16"),
        (format.number, True, "True"),
        (format.number, pd.NA, format.MISSING),
        (format.loss, 2.30194, "2.3019"),
        (format.loss, 1e-7, "1.000e-07"),
    ],
)
def test_units(write, value, text):
    assert write(value) == text
