"""The best trial as results come in, against the groups and the ranking of a report's table."""

from __future__ import annotations

import random

import pandas as pd
import pytest

from results.data.best_trials import BestTrials
from results.data.measured import measured_alike, measured_groups
from results.data.naming import ranked_trials
from results.data.trials_table import MEASURED_ON
from trial.store import metrics
from trial.store.records import DataSummary, Result


def result_of(on: str, loss: float | None, *, earlier: bool = False) -> Result:
    """A trial that was measured on a set; by an earlier version, which noted no hash of that."""
    data = DataSummary(train_rows=1, eval_rows=1, eval_hash="" if earlier else f"eval {on}")
    given = {"data": data, "data_hash": f"all {on}"} if on else {}
    return Result(state="pruned" if loss is None else "complete", eval_loss=loss, **given)


def table_of(results: dict[int, Result], direction: str) -> pd.DataFrame:
    on = metrics.measured_on(results, ["eval_loss"])
    rows = [
        {"number": n, "state": r.state, "value": r.eval_loss, MEASURED_ON: on[n]}
        for n, r in results.items()
    ]
    table = pd.DataFrame(rows)
    table.attrs["objectives"] = [["eval_loss", direction]]
    return table


@pytest.mark.parametrize("seed", range(40))
def test_after_each_result_the_best_trial_is_the_one_a_report_would_name(seed):
    draw = random.Random(seed)
    maximize = seed % 2 == 1
    found = BestTrials(["eval_loss"], maximize)
    results: dict[int, Result] = {}
    numbers = list(range(25))
    draw.shuffle(numbers)  # Trials end in another order than they start.
    for number in numbers:
        on = draw.choice(["a", "a", "b", "c"])
        loss = draw.choice([None, round(draw.uniform(0, 9), 6), round(draw.uniform(0, 9), 6)])
        results[number] = result_of(on, loss, earlier=draw.random() < 0.3)
        found.add(number, results[number], {}, repeat=False)
        table = table_of(results, "maximize" if maximize else "minimize")
        complete = ranked_trials(measured_alike(table))
        assert found.groups == len(measured_groups(table))
        assert found.largest.complete == len(complete)
        assert found.complete == (table["state"] == "complete").sum()
        if len(complete):
            assert found.largest.best is not None
            assert found.largest.best.number == complete.iloc[0]["number"]


SCRIPTS = [
    # what trials were measured on and their losses, repeats, best of the largest group, since when
    ([("a", 2.0), ("a", 1.0), ("a", 1.5), ("a", None), ("", None)], (), 1, 3),
    # Each group has improvements of its own; its first trial is none.
    ([("a", 2.0), ("b", 0.5), ("a", 1.0)], (), 2, 0),
    ([("a", 2.0), ("a", 1.0), ("b", 0.5), ("b", 0.4)], (), 1, 0),
    ([("a", 2.0), ("a", 1.0), ("b", 0.5), ("b", 0.6), ("c", 0.1)], (), 1, 3),
    # Where every trial has an eval set of its own nothing improves: the sweep must end.
    ([("a", 2.0), ("b", 1.0), ("c", 0.5), ("d", 0.4)], (), 0, 3),
    ([("", None), ("a", None), ("a", 2.0), ("a", 2.0)], (), 2, 1),
    # A repeat adds to its group and is never the best.
    ([("b", 3.0), ("a", 2.0), ("a", 1.0)], (2,), 1, 1),
]


@pytest.mark.parametrize(("script", "repeats", "best", "since"), SCRIPTS)
def test_the_best_of_the_largest_group_and_trials_without_improvement(script, repeats, best, since):
    found = BestTrials(["eval_loss"])
    for number, (on, loss) in enumerate(script):
        found.add(number, result_of(on, loss), {}, repeat=number in repeats)
    assert (found.largest.best.number, found.since_best) == (best, since)


def test_what_no_eval_set_decides_is_compared_whatever_was_measured():
    found = BestTrials(["seconds"])
    for number, on in enumerate("abca"):
        found.add(number, result_of(on, 1.0), {}, repeat=False)
    assert (found.groups, found.complete) == (1, 4)
