"""Where every worker's time went: known sums, and that nothing is lost or counted twice."""

from __future__ import annotations

import itertools

import pytest
from helpers.results import START, add_trial, make_config, make_study
from hypothesis import given
from hypothesis import strategies as st

from results import write_report
from results.analysis.worker_time import (
    IDLE,
    KINDS,
    LOST,
    OPEN,
    OTHER,
    WAIT,
    covered_seconds,
    lanes,
    spans,
    worker_time_breakdown,
)
from results.analysis.worker_time import START as STARTUP
from results.data.folders import StudyRead, TrialRead, read_study
from trial.store.folders import TrialFolder
from trial.store.records import Attempt, Evaluation, Result, Seconds


def ran(study, number, starts, finished, seconds=None, evaluated=()):
    """One trial: starts are (time, process, cold), all in seconds since the study was made."""
    folder = TrialFolder.create(study.trial(number).path, make_config(number))
    for time, pid, cold in starts:
        folder.append_attempt(
            Attempt(started=START + time, host="h", pid=pid, device="cpu", cold=cold)
        )
    for step, time in evaluated:
        folder.append(Evaluation(step=step, eval_loss=2.0, time=START + time))
    if finished is not None:
        result = Result(state="complete", eval_loss=2.0, seconds=seconds, finished=START + finished)
        folder.write_result(result)


def test_every_second_of_a_small_sweep_is_where_it_was_spent(tmp_path):
    study = make_study(tmp_path / "s")
    seconds = Seconds(startup=4, load=1, first_step=1, train=5, eval=2, save=0.5)
    ran(study, 0, [(10, 1, True)], 20, seconds)
    ran(study, 1, [(11, 2, True)], 21, seconds)
    ran(study, 2, [(22, 1, False)], 32, Seconds(load=1, train=9))
    found = worker_time_breakdown(read_study(study))
    assert found.makespan == 32
    assert found.apart == 0
    first, second = (dict(worker.seconds) for worker in found.workers)
    assert (first[STARTUP], first[WAIT], first[IDLE], first[OTHER]) == (10, 2, 0, 0.5)
    assert (first["model and data"], first["train"], first["eval"]) == (2, 14, 2)
    assert (second[STARTUP], second[WAIT], second[IDLE]) == (11, 0, 11)
    assert sum(first.values()) == sum(second.values()) == 32


def test_a_killed_worker_is_replaced_and_its_work_counts_as_lost(tmp_path):
    study = make_study(tmp_path / "s")
    ran(study, 0, [(5, 1, True), (30, 3, True)], 40, Seconds(startup=6, train=8), [(10, 20)])
    ran(study, 1, [(5, 2, True)], 45, Seconds(startup=3, train=40))
    found = worker_time_breakdown(read_study(study))
    assert len(found.workers) == 2
    first = found.workers[0].seconds
    # 15 seconds of the first attempt were seen, 10 of the second: 8 of them are in the result.
    assert first[LOST] == pytest.approx(25 - 8)
    assert first["train"] == pytest.approx(8)
    assert first[STARTUP] == pytest.approx(5 + 10)
    assert first[IDLE] == pytest.approx(5)


def test_the_night_between_two_runs_is_left_out(tmp_path):
    study = make_study(tmp_path / "s")
    ran(study, 0, [(5, 1, True)], 10, Seconds(startup=5, train=5))
    ran(study, 1, [(40_000, 7, True)], 40_010, Seconds(startup=4, train=10))
    found = worker_time_breakdown(read_study(study))
    assert len(found.workers) == 1
    assert found.makespan == 10 + 14
    assert found.apart == pytest.approx(40_000 - 4 - 10)
    assert sum(found.workers[0].seconds.values()) == pytest.approx(24)


def test_trials_that_share_a_worker_share_its_time(tmp_path):
    study = make_study(tmp_path / "s")
    for number in range(4):
        ran(study, number, [(10, 1, number == 0)], 30, Seconds(load=2, train=18))
    found = worker_time_breakdown(read_study(study))
    assert len(found.workers) == 1
    assert found.workers[0].seconds["train"] == pytest.approx(18)
    assert sum(found.workers[0].seconds.values()) == pytest.approx(30)


def test_phases_of_packed_trials_are_shares_already(tmp_path):
    """Four at once for 20 seconds: each result holds a quarter of what the worker spent."""
    study = make_study(tmp_path / "s")
    for number in range(4):
        ran(study, number, [(10, 1, number == 0)], 30, Seconds(load=0.5, train=4))
    spent = worker_time_breakdown(read_study(study)).workers[0].seconds
    assert spent["train"] == pytest.approx(16)
    assert spent["model and data"] == pytest.approx(2)
    assert spent[OTHER] == pytest.approx(2)
    assert sum(spent.values()) == pytest.approx(30)


def test_packed_trials_lie_side_by_side_in_the_timeline(tmp_path):
    study = make_study(tmp_path / "s")
    for number, (start, end) in enumerate(((10, 30), (10, 20), (22, 30), (40, 50))):
        ran(study, number, [(start, 1, number == 0)], end, Seconds(train=8))
    own = worker_time_breakdown(read_study(study)).workers[0].spans
    assert lanes(own) == [0, 1, 1, 0]
    assert covered_seconds(own) == 30
    text = write_report(study).with_suffix(".md").read_text(encoding="utf-8")
    assert "thin bars side by side are trials that shared it); 75% of their time" in text


def test_what_still_runs_is_said_to(tmp_path):
    study = make_study(tmp_path / "s")
    ran(study, 0, [(5, 1, True)], None, evaluated=[(10, 9)])
    assert worker_time_breakdown(read_study(study)).workers[0].seconds[OPEN] == pytest.approx(4)
    assert worker_time_breakdown(read_study(make_study(tmp_path / "empty"))) is None


SPAN = st.tuples(
    st.integers(0, 2_000), st.integers(1, 60), st.sampled_from("ab"), st.integers(1, 4),
    st.booleans(), st.floats(0, 80),
)  # fmt: skip


@given(st.lists(SPAN, min_size=1, max_size=25))
def test_a_workers_parts_add_up_and_no_two_processes_share_a_place(drawn):
    trials = []
    for number, (start, length, host, pid, cold, train) in enumerate(drawn):
        attempt = Attempt(started=START + start, host=host, pid=pid, device="cpu", cold=cold)
        seconds = Seconds(startup=3.0, train=train)
        result = Result(state="complete", seconds=seconds, finished=START + start + length)
        trials.append(TrialRead(number, None, "complete", result=result, attempts=(attempt,)))
    record = type("Record", (), {"created": START})()
    found = worker_time_breakdown(StudyRead(None, record, tuple(trials)))
    assert found.makespan + found.apart <= 2_070
    for worker in found.workers:
        whole = sum(worker.seconds.values())
        assert set(worker.seconds) == set(KINDS)
        assert min(worker.seconds.values()) >= 0
        assert whole <= found.makespan + 1e-6
        if not found.apart:
            assert whole == pytest.approx(found.makespan)
    assert sum(len(worker.spans) for worker in found.workers) == len(drawn)
    for worker in found.workers:
        assert len({span.attempt.host for span in worker.spans}) == 1
        lives = [(own[0].start, max(span.end for span in own)) for own in worker.processes]
        assert all(one[1] <= two[0] for one, two in itertools.pairwise(lives))


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
