"""Learning curves as they are read from a trial's folder."""

from __future__ import annotations

import json

from helpers.results import add_trial, make_config, make_study

from results.data.folders import read_curve


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


def test_an_evaluation_whose_loss_is_text_is_skipped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(line(10, 3.0, 1.0) + line(20, "2.5", 2.0))
    assert list(read_curve(path).eval_loss) == [3.0]
