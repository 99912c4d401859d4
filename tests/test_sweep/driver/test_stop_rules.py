"""Stop conditions of a sweep: the rules over its progress, and the driver that obeys them."""

from __future__ import annotations

import math

import pytest
from helpers.sweeps import fakes

from sweep.driver.progress import BestTrial, SweepProgress
from sweep.driver.stop_rules import stop_decision
from sweep.spec.spec import FailuresSpec, StopSpec
from trial.store.records import Cause, Result


def test_a_sweep_whose_trials_all_fail_alike_stops_and_says_why(tmp_path):
    decider = fakes.ScriptedDecider()
    executor = fakes.ScriptedExecutor(lambda n: [math.nan], width=1)
    outcome = fakes.make_driver(tmp_path, decider, executor, trials=50).run()
    assert outcome.failed
    assert "failed alike: diverged: loss is NaN" in outcome.reason
    assert len(decider.told) == 3
    # Somebody goes on with it: as many again may fail, and once mended all is well.
    fakes.make_driver(tmp_path, decider, executor, trials=50).run()
    assert len(decider.told) == 6
    outcome = fakes.make_driver(
        tmp_path, decider, fakes.ScriptedExecutor(fakes.falling), trials=8
    ).run()
    assert not outcome.failed
    assert [result.state for result in decider.told.values()] == ["failed"] * 6 + ["complete"] * 2


def test_failures_are_the_same_that_differ_in_process_and_actor_ids_alone():
    progress = SweepProgress()
    for pid, actor in ((17, "61ae33b101000000"), (4242, "0ddf46ef"), (5, "18d8d552b59d")):
        cause = Cause(kind="lost", message=f"worker {actor} (pid={pid}) died: no module deepspeed")
        progress.add_result(pid, Result(state="failed", cause=cause))
    assert progress.same_failure == ("lost: worker # (pid=#) died: no module deepspeed", 3)


BUSY = {"planned": 9, "same_failure": ("error: boom", 2), "since_best": 2}
"""A progress that no rule ends."""


@pytest.mark.parametrize(
    ("stop", "progress", "reason", "interrupt", "failed"),
    [
        ({}, {}, None, False, False),
        ({}, {"same_failure": ("error: boom", 3)}, "failed alike: error: boom", True, True),
        ({}, {"same_failure": ("error: boom", 3), "capacity": 4}, None, False, False),
        ({}, {"same_failure": ("error: boom", 4), "capacity": 4}, "4 trials", True, True),
        ({"target": 1.0}, {"best": 1.0}, "the target 1 is reached", True, False),
        ({"target": 1.0}, {"best": 1.1}, None, False, False),
        ({"target": 1.0}, {"best": None}, None, False, False),
        ({"target": 1.0}, {"best": 1.1, "maximize": True}, "the target", True, False),
        ({"target": 1.0}, {"best": 0.9, "maximize": True}, None, False, False),
        ({"hours": 1.0}, {"elapsed": 3599}, None, False, False),
        ({"hours": 1.0}, {"elapsed": 3600}, "1 hours are over", True, False),
        ({"device_hours": 2.0}, {"device_seconds_done": 7199}, None, False, False),
        ({"device_hours": 2.0}, {"device_seconds_done": 7200}, "2 device-hours", True, False),
        ({"no_improvement": 3}, {"best": 1.0}, None, False, False),
        ({"no_improvement": 2}, {"best": 1.0}, "no improvement in 2 trials", False, False),
        ({"no_improvement": 2}, {"best": None}, None, False, False),
        ({}, {"ended": 9}, "all 9 trials are done", False, False),
        ({}, {"ended": 8, "waiting": {8}}, "all 9 trials are done", False, False),
        ({}, {"ended": 9, "repeats": {8}}, None, False, False),
        ({}, {"ended": 50, "planned": None}, None, False, False),
        # What has gone wrong comes before what is finished.
        ({}, {"ended": 9, "same_failure": ("error: boom", 3)}, "failed alike", True, True),
    ],
)
def test_rules(stop, progress, reason, interrupt, failed):
    given = {**BUSY, **progress}
    best, ended, elapsed = (given.pop(name, None) for name in ("best", "ended", "elapsed"))
    now = [0.0]
    state = SweepProgress(clock=lambda: now[0], **given)
    now[0] = elapsed or 0.0
    state.best = None if best is None else BestTrial(0, best, {})
    state.states["complete"] = ended or 0
    decision = stop_decision(StopSpec(**stop), state)
    if reason is None:
        assert decision is None
    else:
        assert reason in decision.reason
        assert (decision.interrupt, decision.failed) == (interrupt, failed)


@pytest.mark.parametrize(
    ("kind", "told"), [("error", 4), ("lost", 4), ("diverged", 9), ("out_of_memory", 9)]
)
def test_failures_caused_by_parameters_end_no_sweep_with_a_complete_trial(tmp_path, kind, told):
    class Bad(fakes.ScriptedExecutor):
        def advance(self, number):
            if number == 0:
                return super().advance(number)
            cause = Cause(kind=kind, message="the same")
            return [self.finish(number, Result(state="failed", cause=cause))]

    decider = fakes.ScriptedDecider()
    failures = FailuresSpec(lost_retries=0, out_of_memory_retries=0)
    executor = Bad(fakes.falling, width=1)
    outcome = fakes.make_driver(tmp_path, decider, executor, failures=failures, trials=9).run()
    assert outcome.failed is (told == 4)
    assert len(decider.told) == told


@pytest.mark.parametrize(
    ("stop", "started", "reason"),
    [
        ({"no_improvement": 3, "trials": 50}, 4, "no improvement in 3 trials"),
        ({"target": 1.0, "trials": 50}, 1, "the target 1 is reached"),
        ({"trials": 2}, 2, "all 2 trials are done"),
    ],
)
def test_stop_conditions(tmp_path, stop, started, reason):
    executor = fakes.ScriptedExecutor(fakes.falling, width=1)
    outcome = fakes.make_driver(tmp_path, fakes.ScriptedDecider(), executor, **stop).run()
    assert (len(executor.submitted), outcome.reason) == (started, reason)


@pytest.mark.parametrize("limit", ["hours", "device_hours"])
def test_a_spent_budget_interrupts_the_running_trials(tmp_path, limit):
    now = [0.0]

    class Slow(fakes.ScriptedExecutor):
        def events(self, timeout):
            now[0] += 600.0
            return super().events(timeout)

    executor = Slow(lambda n: [3.0] * 100, width=2)
    decider = fakes.ScriptedDecider()
    outcome = fakes.make_driver(
        tmp_path, decider, executor, clock=lambda: now[0], **{limit: 1.0}
    ).run()
    assert sorted(executor.stopped) == [(0, "interrupt"), (1, "interrupt")]
    assert decider.told == {}
    assert now[0] == {"hours": 4200.0, "device_hours": 2400.0}[limit]
    assert "1 " in outcome.reason
