"""The driver alone: scripted trials, no Optuna, no Ray, no training."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import fakes

from sweep.driver.driver import Driver
from sweep.driver.executor import Finished, Lost
from sweep.driver.progress import SweepProgress
from sweep.driver.retry_policy import tries
from sweep.spec.spec import FailuresSpec, StopSpec
from trial.config.trial_config import TrialConfig
from trial.store.folders import StudyFolder, TrialFolder
from trial.store.records import Cause, Evaluation, Result


def make(tmp_path: Path, decider, executor, **stop) -> Driver:
    spec = StopSpec(**stop)
    progress = SweepProgress(planned=spec.trials)
    return Driver(
        StudyFolder(tmp_path / "study"),
        decider,
        executor,
        spec,
        fakes.Silent(),
        progress,
        ask_ahead=0,
        patience=None,
    )


def falling(number: int) -> list[float | None]:
    return [3.0, 2.0, 1.0 + number]


def test_runs_the_planned_trials_each_once(tmp_path):
    decider, executor = fakes.ScriptedDecider(), fakes.ScriptedExecutor(falling, width=3)
    ending = make(tmp_path, decider, executor, trials=7).run()
    assert executor.submitted == list(range(7))
    assert sorted(decider.told) == list(range(7))
    assert [decider.told[n].value for n in range(7)] == [1.0 + n for n in range(7)]
    assert ending.reason == "all 7 trials are done"
    assert not ending.failed
    assert not ending.interrupted


def test_best_is_the_lowest(tmp_path):
    driver = make(tmp_path, fakes.ScriptedDecider(), fakes.ScriptedExecutor(falling), trials=4)
    driver.run()
    assert driver.progress.best.number == 0
    assert driver.progress.best.params == {"number": 0}
    assert driver.progress.since_best == 3


def test_prunes_once_and_tells_the_truth(tmp_path):
    decider = fakes.ScriptedDecider(prune=lambda number, step: number % 2 == 1 and step >= 1)
    executor = fakes.ScriptedExecutor(lambda n: [3.0, 2.5, 2.0, 1.5])
    make(tmp_path, decider, executor, trials=4).run()
    assert executor.stopped == [(1, "prune"), (3, "prune")]
    assert {n: r.state for n, r in decider.told.items()} == {
        0: "complete", 1: "pruned", 2: "complete", 3: "pruned",
    }  # fmt: skip
    assert (1, 2) not in decider.reported


def test_duplicates_and_impossible_draws_are_recorded_and_not_trained(tmp_path):
    decider = fakes.ScriptedDecider(duplicates={1: 0, 2: 0}, impossible={3})
    executor = fakes.ScriptedExecutor(falling)
    make(tmp_path, decider, executor, trials=4).run()
    assert executor.submitted == [0, 4, 5]
    states = {number: result.state for number, result in decider.told.items()}
    assert states == {
        0: "complete", 1: "duplicate", 2: "duplicate", 3: "failed", 4: "complete", 5: "complete",
    }  # fmt: skip
    study = StudyFolder(tmp_path / "study")
    assert study.trial(1).read_result().duplicate_of == 0
    assert study.trial(3).read_result().cause.message == "alpha must be > 0"


def test_a_lost_worker_is_retried_and_its_trial_keeps_its_number(tmp_path):
    executor = fakes.ScriptedExecutor(lambda n: [3.0, None, 2.0] if n == 1 else [3.0, 2.0])
    decider = fakes.ScriptedDecider()
    driver = make(tmp_path, decider, executor, trials=3)
    driver.run()
    assert executor.submitted.count(1) == 2
    assert {n: r.state for n, r in decider.told.items()} == dict.fromkeys(range(3), "complete")
    assert any(
        "trial 1 is tried again after lost: killed by the script" in note
        for note in driver.view.notes
    )


def test_what_a_lost_worker_had_told_nobody_is_reported(tmp_path):
    class Mute(fakes.ScriptedExecutor):
        """Its worker writes an evaluation and dies before it has said so; the next one goes on."""

        def _advance(self, number):
            path, left, step = self._running[number]
            if number == 1 and step == 0:
                TrialFolder(path).append(Evaluation(step=1, eval_loss=left.popleft()))
                self._running[number] = (path, left, 1)
                if self.submitted.count(1) == 1:
                    del self._running[number]
                    return [Lost(number, "lost", "killed by the script")]
            return super()._advance(number)

    decider = fakes.ScriptedDecider()
    make(tmp_path, decider, Mute(falling), trials=2).run()
    assert decider.told[1].state == "complete"
    assert [step for number, step in decider.reported if number == 1] == [1, 2, 3]


def test_a_trial_that_kills_every_worker_is_given_up(tmp_path):
    class Deadly(fakes.ScriptedExecutor):
        def submit(self, job):
            self._killed.clear()
            super().submit(job)

    executor = Deadly(lambda n: [2.0, None, 1.0] if n == 0 else [2.0, 1.0])
    decider = fakes.ScriptedDecider()
    make(tmp_path, decider, executor, trials=3).run()
    # The first try, and three in a row that came no further.
    assert executor.submitted.count(0) == 4
    assert decider.told[0].state == "failed"
    assert decider.told[0].cause.kind == "lost"
    assert decider.told[0].cause.step == 1
    assert decider.told[1].state == decider.told[2].state == "complete"


def test_when_all_fail_alike_the_sweep_stops_and_says_why(tmp_path):
    decider = fakes.ScriptedDecider()
    executor = fakes.ScriptedExecutor(lambda n: [math.nan], width=1)
    ending = make(tmp_path, decider, executor, trials=50).run()
    assert ending.failed
    assert "failed alike: diverged: loss is NaN" in ending.reason
    assert len(decider.told) == 3
    # Somebody goes on with it: as many again may fail, and once mended all is well.
    make(tmp_path, decider, executor, trials=50).run()
    assert len(decider.told) == 6
    ending = make(tmp_path, decider, fakes.ScriptedExecutor(falling), trials=8).run()
    assert not ending.failed
    assert [result.state for result in decider.told.values()] == ["failed"] * 6 + ["complete"] * 2


def test_process_and_actor_ids_make_no_failure_another():
    progress = SweepProgress()
    for pid, actor in ((17, "61ae33b101000000"), (4242, "0ddf46ef"), (5, "18d8d552b59d")):
        cause = Cause(kind="lost", message=f"worker {actor} (pid={pid}) died: no module deepspeed")
        progress.add_result(pid, Result(state="failed", cause=cause), {})
    assert progress.same_failure == ("lost: worker # (pid=#) died: no module deepspeed", 3)


@pytest.mark.parametrize(
    ("kind", "told"), [("error", 4), ("lost", 4), ("diverged", 9), ("out_of_memory", 9)]
)
def test_what_the_sampler_learns_from_ends_no_sweep_that_has_a_complete_trial(tmp_path, kind, told):
    class Bad(fakes.ScriptedExecutor):
        def _advance(self, number):
            if number == 0:
                return super()._advance(number)
            cause = Cause(kind=kind, message="the same")
            return [self._finish(number, Result(state="failed", cause=cause))]

    decider = fakes.ScriptedDecider()
    driver = make(tmp_path, decider, Bad(falling, width=1), trials=9)
    driver.failures = FailuresSpec(lost_retries=0, out_of_memory_retries=0)
    ending = driver.run()
    assert ending.failed is (told == 4)
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
    executor = fakes.ScriptedExecutor(falling, width=1)
    ending = make(tmp_path, fakes.ScriptedDecider(), executor, **stop).run()
    assert (len(executor.submitted), ending.reason) == (started, reason)


@pytest.mark.parametrize("limit", ["hours", "device_hours"])
def test_a_spent_budget_interrupts_the_running_trials(tmp_path, limit):
    now = [0.0]

    class Slow(fakes.ScriptedExecutor):
        def events(self, timeout):
            now[0] += 600.0
            return super().events(timeout)

    executor = Slow(lambda n: [3.0] * 100, width=2)
    decider = fakes.ScriptedDecider()
    driver = make(tmp_path, decider, executor, **{limit: 1.0})
    driver.progress.clock = lambda: now[0]
    driver.progress.started_at = 0.0
    ending = driver.run()
    assert sorted(executor.stopped) == [(0, "interrupt"), (1, "interrupt")]
    assert decider.told == {}
    assert now[0] == {"hours": 4200.0, "device_hours": 2400.0}[limit]
    assert "1 " in ending.reason


def test_interrupt_leaves_trials_to_go_on_and_the_next_run_takes_them_up(tmp_path):
    decider = fakes.ScriptedDecider()

    class Impatient(fakes.ScriptedExecutor):
        def events(self, timeout):
            found = super().events(timeout)
            if len(decider.told) == 2 and not self.stopped:
                driver.interrupt()
            return found

    executor = Impatient(falling)
    driver = make(tmp_path, decider, executor, trials=10)
    ending = driver.run()
    assert ending.interrupted
    in_flight = [n for n in executor.submitted if n not in decider.told]
    assert in_flight
    decider.left = in_flight
    again = fakes.ScriptedExecutor(falling)
    make(tmp_path, decider, again, trials=10).run()
    assert again.submitted[: len(in_flight)] == in_flight
    assert sorted(decider.told) == list(range(10))


def test_a_result_that_beat_the_kill_is_told_and_not_trained_again(tmp_path):
    study = StudyFolder(tmp_path / "study")
    folder = TrialFolder.create(study.trial(0).path, TrialConfig())
    folder.append(Evaluation(step=1, eval_loss=2.0))
    folder.write_result(Result(state="complete", value=2.0))
    decider = fakes.ScriptedDecider(left=[0], asked=1)
    executor = fakes.ScriptedExecutor(falling)
    make(tmp_path, decider, executor, trials=2).run()
    assert executor.submitted == [1]
    assert decider.told[0].value == 2.0


def test_evaluations_that_beat_the_kill_are_reported(tmp_path):
    study = StudyFolder(tmp_path / "study")
    folder = TrialFolder.create(study.trial(0).path, TrialConfig())
    folder.append(Evaluation(step=1, eval_loss=2.0))
    decider = fakes.ScriptedDecider(left=[0], asked=1)
    make(tmp_path, decider, fakes.ScriptedExecutor(falling), trials=1).run()
    assert decider.reported == [(0, 1), (0, 2), (0, 3)]


def test_importing_the_command_leaves_torch_and_ray_unloaded():
    code = (
        "import sys, sweep.cli, sweep.driver.driver, sweep.loading.loader, results; "
        "print([m for m in ('torch', 'transformers', 'ray') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_repeats_run_after_the_search_and_only_then(tmp_path):
    decider = fakes.ScriptedDecider(repeats=[100, 101, 102])
    executor = fakes.ScriptedExecutor(falling, width=2)
    driver = make(tmp_path, decider, executor, trials=3)
    ending = driver.run()
    assert executor.submitted == [0, 1, 2, 100, 101, 102]
    assert ending.reason == "all 3 trials are done"
    assert driver.progress.ended == driver.progress.total == 6
    assert driver.progress.best.number == 0


def test_nothing_is_repeated_after_an_interruption(tmp_path):
    decider = fakes.ScriptedDecider(repeats=[100])
    executor = fakes.ScriptedExecutor(lambda n: [3.0] * 50)
    driver = make(tmp_path, decider, executor, trials=3)
    driver.interrupt()
    driver.run()
    assert executor.submitted == []


def failing(kind: str, times: int, message: str = "boom"):
    """A scripted executor whose trial 0 fails so often by `kind` before it completes."""

    class Failing(fakes.ScriptedExecutor):
        left = times

        def _advance(self, number):
            if number or not self.left:
                return super()._advance(number)
            self.left -= 1
            cause = Cause(kind=kind, message=message)
            return [self._finish(number, Result(state="failed", cause=cause))]

    return Failing(lambda n: [2.0, 1.0], width=1)


@pytest.mark.parametrize(
    ("kind", "failures", "submissions", "state"),
    [
        ("error", 1, 1, "failed"),
        ("diverged", 1, 1, "failed"),
        ("out_of_memory", 1, 2, "complete"),
        ("out_of_memory", 2, 2, "failed"),
        ("hung", 1, 2, "complete"),
        ("hung", 2, 2, "failed"),
        ("device_busy", 10, 11, "complete"),
        ("device_busy", 11, 11, "failed"),
    ],
)
def test_each_kind_of_failure_has_its_policy(tmp_path, kind, failures, submissions, state):
    executor, decider = failing(kind, failures), fakes.ScriptedDecider()
    driver = make(tmp_path, decider, executor, trials=1)
    # A device that is busy is waited for: in virtual time.
    now = [0.0]

    def clock() -> float:
        now[0] += 10.0
        return now[0]

    driver.progress.clock = clock
    driver.run()
    assert executor.submitted.count(0) == submissions
    assert decider.told[0].state == state
    # A try that is followed by another is not shown as the trial's end.
    ends = [event for event in driver.view.events if isinstance(event, Finished)]
    assert [event.result.state for event in ends] == [state]
    kept = StudyFolder(tmp_path / "study").trial(0).read_failures()
    assert [result.cause.kind for result in kept] == [kind] * (submissions - 1)


def test_out_of_memory_halves_the_micro_batch_and_keeps_the_effective_batch(tmp_path):
    driver = make(tmp_path, fakes.ScriptedDecider(), failing("out_of_memory", 1), trials=1)
    driver.run()
    config = StudyFolder(tmp_path / "study").trial(0).read_config()
    assert config.training["per_device_train_batch_size"] == 4
    assert config.training["gradient_accumulation_steps"] == 2
    assert config.origin.changes == ["out of memory: micro-batch 8 -> 4, accumulation 1 -> 2"]


def test_a_waiting_trial_does_not_keep_its_slot(tmp_path):
    executor, decider = failing("device_busy", 1), fakes.ScriptedDecider()
    driver = make(tmp_path, decider, executor, trials=2)
    now = [0.0]

    def clock() -> float:
        now[0] += 1.0
        return now[0]

    driver.progress.clock = clock
    driver.run()
    assert executor.submitted == [0, 1, 0]
    assert decider.told[0].state == decider.told[1].state == "complete"


@pytest.mark.parametrize("kind", ["error", "out_of_memory", "device_busy", "lost", "hung"])
@pytest.mark.parametrize("seen", [True, False], ids=["with a result", "without"])
def test_tries_count_over_resumes(tmp_path, kind, seen):
    """A driver that is started anew does not begin to count anew."""
    policy = FailuresSpec(
        error_retries=2, out_of_memory_retries=2, device_busy_retries=2, device_busy_wait=0.0,
        lost_retries=2, hung_retries=2,
    )  # fmt: skip
    decider, starts = fakes.ScriptedDecider(total=1), []

    class Failing(fakes.ScriptedExecutor):
        def _advance(self, number):
            starts.append(number)
            if len(starts) < 3:
                driver.interrupt()  # Each driver sees one failure, and the next one goes on.
            if not seen:
                del self._running[number]
                return [Lost(number, kind, "gone")]
            cause = Cause(kind=kind, message="gone")
            return [self._finish(number, Result(state="failed", cause=cause))]

    for _ in range(3):
        driver = make(tmp_path, decider, Failing(lambda n: [1.0]), trials=1)
        driver.failures = policy
        driver.run()
        decider.left = [0]
    assert len(starts) == 3
    assert decider.told[0].state == "failed"


def test_a_trial_that_is_given_up_with_its_worker_is_shown_once(tmp_path):
    class Dying(fakes.ScriptedExecutor):
        def _advance(self, number):
            del self._running[number]
            return [Lost(number, "lost", "gone")]

    driver = make(tmp_path, fakes.ScriptedDecider(), Dying(lambda n: [1.0]), trials=2)
    driver.failures = FailuresSpec(lost_retries=1)
    driver.run()
    assert driver.view.ended == [0, 1]


def test_losses_count_until_the_trial_has_come_further(tmp_path):
    steps = [0, 0, 5, 5, 5, 9]
    past = [Cause(kind="lost", message="", step=step) for step in steps]
    assert [tries(past, Cause(kind="lost", message="", step=step)) for step in (0, 5, 9, 10)] == [
        6, 4, 1, 0,
    ]  # fmt: skip
    assert tries(past, Cause(kind="hung", message="", step=0)) == 0
    error = Cause(kind="error", message="", step=3)
    assert tries([error, error], error.model_copy(update={"step": 7})) == 2


def test_a_kill_before_the_smaller_configuration_was_written_costs_no_try(tmp_path):
    driver = make(tmp_path, fakes.ScriptedDecider(), failing("out_of_memory", 1), trials=1)
    folder = driver.study.trial(0)
    folder.path.mkdir(parents=True)
    cause = Cause(kind="out_of_memory", message="out of memory")
    folder.note_failure(Result(state="failed", cause=cause))
    driver.run()
    assert driver.decider.told[0].state == "complete"
    assert len(folder.read_config().origin.changes) == 1


def test_a_full_disk_ends_the_sweep_and_no_trial(tmp_path):
    class Full(fakes.ScriptedExecutor):
        def _advance(self, number):
            del self._running[number]
            return [Lost(number, "lost", "the disk of /x is full: No space left on device")]

    decider = fakes.ScriptedDecider()
    driver = make(tmp_path, decider, Full(lambda n: [1.0], width=2), trials=4)
    ending = driver.run()
    assert ending.failed
    assert "the disk of /x is full" in ending.reason
    assert decider.told == {}
    assert driver.executor.submitted == [0, 1]
    assert driver.study.trial(0).read_failures() == []
