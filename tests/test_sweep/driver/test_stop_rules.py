"""Stop conditions of a sweep: the rules over its progress, and the driver that obeys them."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from helpers.sweeps import fakes

from results.data.best_trials import BestTrial
from sweep.driver.interfaces import OutcomeKind, SweepOutcome, SweepState
from sweep.driver.progress import SweepProgress
from sweep.driver.stop_rules import judged, stop_decision
from sweep.spec.spec import FailuresSpec, StopSpec
from trial.store.records import Cause, DataSummary, Result


def test_a_sweep_whose_trials_all_fail_alike_stops_and_says_why(tmp_path):
    decider = fakes.ScriptedDecider()
    executor = fakes.ScriptedExecutor(lambda n: [math.nan], width=1)
    outcome = fakes.make_driver(tmp_path, decider, executor, trials=50).run()
    assert outcome.kind is OutcomeKind.FAILED
    assert "failed alike: diverged: loss is NaN" in outcome.reason
    assert len(decider.told) == 3
    # Somebody goes on with it: as many again may fail, and once mended all is well.
    fakes.make_driver(tmp_path, decider, executor, trials=50).run()
    assert len(decider.told) == 6
    outcome = fakes.make_driver(
        tmp_path, decider, fakes.ScriptedExecutor(fakes.falling), trials=8
    ).run()
    assert outcome.kind is OutcomeKind.DONE
    assert [result.state for result in decider.told.values()] == ["failed"] * 6 + ["complete"] * 2


def test_failures_are_the_same_that_differ_in_process_and_actor_ids_alone():
    progress = SweepProgress()
    for pid, actor in ((17, "61ae33b101000000"), (4242, "0ddf46ef"), (5, "18d8d552b59d")):
        cause = Cause(kind="lost", message=f"worker {actor} (pid={pid}) died: no module deepspeed")
        progress.add_result(pid, Result(state="failed", cause=cause))
    assert progress.same_failure == ("lost: worker # (pid=#) died: no module deepspeed", 3)


CLOSING, STOPPING = SweepState.CLOSING, SweepState.STOPPING
DONE, FAILED = OutcomeKind.DONE, OutcomeKind.FAILED
BASES = tuple(f"base {number}" for number in range(28))


class FailsOn(fakes.ScriptedExecutor):
    """Every trial of some base models fails alike; a base model has three trials in a row."""

    def __init__(self, bad, **arguments):
        super().__init__(fakes.falling, **arguments)
        self.bad = bad

    def advance(self, number):
        if BASES[number // 3] not in self.bad:
            return super().advance(number)
        cause = Cause(kind="error", message=f"{number}: no LM head")
        return [self.finish(number, Result(state="failed", cause=cause))]


class OverBases(fakes.ScriptedDecider):
    """Proposes three trials for each base model."""

    def ask(self):
        proposal = super().ask()
        config = proposal.config
        model = config.model.model_copy(update={"name_or_path": BASES[proposal.number // 3]})
        return replace(proposal, config=config.model_copy(update={"model": model}))


@pytest.mark.parametrize(
    ("bad", "told", "kind"),
    [
        # One or two bad base models are no reason to leave the others untried.
        (BASES[4:5], 84, DONE),
        (BASES[4:6], 84, DONE),
        # The third in a row is: it is not the base model that they share.
        (BASES[4:7], 12 + 2 * 3 + 1, FAILED),
        (BASES, 2 * 3 + 1, FAILED),
    ],
)
def test_equal_failures_of_one_base_model_end_no_sweep_over_many(tmp_path, bad, told, kind):
    decider, executor = OverBases(), FailsOn(bad, width=1)
    driver = fakes.make_driver(tmp_path, decider, executor, trials=84)
    driver.progress.base_models = len(BASES)
    ending = driver.run()
    assert (len(decider.told), ending.kind) == (told, kind)


def test_a_sweep_over_two_base_models_that_both_fail_ends_early(tmp_path):
    decider, executor = OverBases(), FailsOn(BASES[:2], width=1)
    driver = fakes.make_driver(tmp_path, decider, executor, trials=6)
    driver.progress.base_models = 2
    assert driver.run().kind is FAILED
    assert len(decider.told) == 4


BUSY = {"planned": 9, "same_failure": ("error: boom", 2), "since_best": 2}
"""A progress that no rule ends."""


@pytest.mark.parametrize(
    ("stop", "progress", "reason", "state", "kind"),
    [
        ({}, {}, None, None, None),
        ({}, {"same_failure": ("error: boom", 3)}, "failed alike: error: boom", STOPPING, FAILED),
        ({}, {"same_failure": ("error: boom", 3), "capacity": 4}, None, None, None),
        ({}, {"same_failure": ("error: boom", 4), "capacity": 4}, "4 trials", STOPPING, FAILED),
        ({"target": 1.0}, {"best": 1.0}, "the target 1 is reached", STOPPING, DONE),
        ({"target": 1.0}, {"best": 1.1}, None, None, None),
        ({"target": 1.0}, {"best": None}, None, None, None),
        ({"target": 1.0}, {"best": 1.1, "maximize": True}, "the target", STOPPING, DONE),
        ({"target": 1.0}, {"best": 0.9, "maximize": True}, None, None, None),
        ({"hours": 1.0}, {"elapsed": 3599}, None, None, None),
        ({"hours": 1.0}, {"elapsed": 3600}, "1 hours are over", STOPPING, DONE),
        ({"device_hours": 2.0}, {"device_seconds_done": 7199}, None, None, None),
        ({"device_hours": 2.0}, {"device_seconds_done": 7200}, "2 device-hours", STOPPING, DONE),
        ({"no_improvement": 3}, {"best": 1.0}, None, None, None),
        ({"no_improvement": 2}, {"best": 1.0}, "no improvement in 2 trials", CLOSING, DONE),
        ({"no_improvement": 2}, {"best": None}, None, None, None),
        ({}, {"ended": 9}, "all 9 trials are done", CLOSING, DONE),
        ({}, {"ended": 8, "waiting": {8}}, "all 9 trials are done", CLOSING, DONE),
        ({}, {"ended": 9, "repeats": {8}}, None, None, None),
        ({}, {"ended": 50, "planned": None}, None, None, None),
        # What has gone wrong comes before what is finished.
        ({}, {"ended": 9, "same_failure": ("error: boom", 3)}, "failed alike", STOPPING, FAILED),
    ],
)
def test_rules(stop, progress, reason, state, kind):
    given = {**BUSY, **progress}
    best, ended, elapsed = (given.pop(name, None) for name in ("best", "ended", "elapsed"))
    now = [0.0]
    seen = SweepProgress(clock=lambda: now[0], **given)
    now[0] = elapsed or 0.0
    seen.best = None if best is None else BestTrial(0, best, {})
    seen.states["complete"] = ended or 0
    decision = stop_decision(StopSpec(**stop), seen)
    if reason is None:
        assert decision is None
    else:
        assert reason in decision.outcome.reason
        assert (decision.state, decision.outcome.kind) == (state, kind)


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
    assert outcome.kind is (OutcomeKind.FAILED if told == 4 else OutcomeKind.DONE)
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


END = ("a", 0.0)
"""A trial that is not reached."""


class MeasuredOn(fakes.ScriptedExecutor):
    """Trial by trial, the eval set that it is measured on and its eval loss."""

    def __init__(self, script):
        super().__init__(fakes.falling, width=1)
        self.script = script

    def advance(self, number):
        on, loss = self.script[number]
        data = DataSummary(train_rows=1, eval_rows=1, eval_hash=on)
        result = Result(state="complete", eval_loss=loss, data=data, data_hash=on)
        return [self.finish(number, result)]


@pytest.mark.parametrize(
    ("script", "stop", "reason"),
    [
        # The losses of b are lower numbers, and no improvement on those of a.
        (
            [("a", 3.0), ("a", 2.0), ("b", 0.5), ("a", 2.1), END],
            {"no_improvement": 2},
            "no improvement in 2 trials on trials measured on the same evaluation set",
        ),
        # The losses of b are higher numbers, and improve.
        (
            [("a", 3.0), ("a", 2.0), ("b", 6.0), ("b", 5.0), ("b", 5.5)],
            {"no_improvement": 2},
            "all 5 trials are done",
        ),
        ([("a", 3.0), ("a", 2.0), ("b", 0.5)], {"target": 1.0}, "all 3 trials are done"),
        (
            [("b", 3.0), ("a", 4.0), ("a", 0.9), END],
            {"target": 1.0},
            "the target 1 is reached in the largest group measured on the same evaluation set",
        ),
    ],
)
def test_rules_compare_trials_measured_alike(tmp_path, script, stop, reason):
    decider, executor = fakes.ScriptedDecider(), MeasuredOn(script)
    driver = fakes.make_driver(tmp_path, decider, executor, trials=len(script), **stop)
    assert driver.run().reason == reason
    assert len(decider.told) == len(script) - (END in script)


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


NO_NUMBER = Result(state="complete", eval_loss=math.nan)
DIVERGED = Result(state="failed", cause=Cause(kind="diverged", message="loss is NaN"))
BROKEN = Result(state="failed", cause=Cause(kind="error", message="no such file"))
PRUNED, SOUND = Result(state="pruned"), Result(state="complete", eval_loss=2.0)


@pytest.mark.parametrize(
    ("results", "said"),
    [
        ([DIVERGED, DIVERGED], "none of 2 trials has a value of eval_loss: 2 x diverged: loss is"),
        ([NO_NUMBER, NO_NUMBER], "none of 2 trials has a value of eval_loss: 2 x no finite eval_"),
        ([BROKEN, DIVERGED, BROKEN], ": 2 x error: no such file, and 1 other reason"),
        ([BROKEN, Result(state="duplicate", duplicate_of=0)], "none of 1 trials"),
        ([DIVERGED, SOUND], ""),
        ([BROKEN, PRUNED], ""),
        ([], ""),
    ],
)
def test_a_sweep_without_any_value_has_failed(results, said):
    progress = SweepProgress()
    for number, result in enumerate(results):
        progress.add_result(number, result)
    done = SweepOutcome("all trials are done")
    found = judged(done, progress)
    assert found.kind is (OutcomeKind.FAILED if said else OutcomeKind.DONE)
    assert found.reason.startswith("all trials are done")
    assert said in found.reason
    interrupted = SweepOutcome("interrupted", OutcomeKind.INTERRUPTED)
    assert judged(interrupted, progress) is interrupted


def test_every_objective_has_to_have_a_value():
    progress = SweepProgress(further_metrics=("mine",))
    progress.add_result(0, SOUND)
    assert "no finite mine" in judged(SweepOutcome("done"), progress).reason


@pytest.mark.parametrize("trials", [2, 3])
def test_a_driver_whose_trials_have_no_value_has_failed(tmp_path, trials):
    """Two failures are too few to end the sweep early."""
    curve = [[math.nan], [math.nan], [3.0]]
    decider, executor = fakes.ScriptedDecider(), fakes.ScriptedExecutor(curve.__getitem__)
    outcome = fakes.make_driver(tmp_path, decider, executor, trials=trials).run()
    assert outcome.kind is (OutcomeKind.FAILED if trials == 2 else OutcomeKind.DONE)
    # A run that finds nothing left to do says the same.
    executor = fakes.ScriptedExecutor(curve.__getitem__)
    assert fakes.make_driver(tmp_path, decider, executor, trials=trials).run() == outcome
    assert executor.submitted == []
