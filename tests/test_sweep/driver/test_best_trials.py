"""The best trial as results come in, against the groups and the ranking of a report's table."""

from __future__ import annotations

import random

import pandas as pd
import pytest

from results.data.measured import measured_alike, measured_groups
from results.data.naming import ranked_trials
from results.data.trials_table import MEASURED_ON
from sweep.driver.best_trials import BestTrials
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


def added(*script: tuple[str, float | None], repeats: tuple[int, ...] = ()) -> BestTrials:
    found = BestTrials(["eval_loss"])
    for number, (on, loss) in enumerate(script):
        found.add(number, result_of(on, loss), {}, repeat=number in repeats)
    return found


def test_trials_of_other_groups_do_not_count_as_without_improvement():
    found = added(("a", 2.0), ("a", 1.0), ("b", 3.0), ("b", None), ("a", 1.5), ("a", None))
    assert (found.largest.best.number, found.since_best) == (1, 2)


def test_a_trial_that_ended_before_its_data_were_read_counts_in_every_group():
    found = added(("b", 3.0), ("", None), ("a", 2.0), ("", None), ("a", 2.5))
    assert (found.largest.best.number, found.since_best) == (2, 2)
    found = added(("b", 3.0), ("", None), ("a", 2.0), ("", None), ("b", 3.5))
    assert (found.largest.best.number, found.since_best) == (0, 3)


def test_a_repeat_adds_to_its_group_and_is_never_the_best():
    found = added(("b", 3.0), ("a", 2.0), ("a", 1.0), repeats=(2,))
    assert (found.largest.best.number, found.since_best) == (1, 0)


def test_what_no_eval_set_decides_is_compared_whatever_was_measured():
    found = BestTrials(["seconds"])
    for number, on in enumerate("abca"):
        found.add(number, result_of(on, 1.0), {}, repeat=False)
    assert (found.groups, found.complete) == (1, 4)
