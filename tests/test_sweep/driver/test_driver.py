"""The driver's loop with scripted trials: no Optuna, no Ray, no training."""

from __future__ import annotations

import subprocess
import sys
import time

from helpers.sweeps import fakes

from sweep.driver.executor import ExecutorLostError, Lost
from sweep.driver.interfaces import OutcomeKind
from sweep.spec.spec import FailuresSpec
from trial.config.trial_config import TrialConfig
from trial.store.folders import StudyFolder, TrialFolder
from trial.store.records import Evaluation, Result


def test_runs_the_planned_trials_each_once(tmp_path):
    decider, executor = fakes.ScriptedDecider(), fakes.ScriptedExecutor(fakes.falling, width=3)
    outcome = fakes.make_driver(tmp_path, decider, executor, trials=7).run()
    assert executor.submitted == list(range(7))
    assert sorted(decider.told) == list(range(7))
    assert [decider.told[n].eval_loss for n in range(7)] == [1.0 + n for n in range(7)]
    assert outcome.reason == "all 7 trials are done"
    assert outcome.kind is OutcomeKind.DONE


def test_best_is_the_lowest(tmp_path):
    driver = fakes.make_driver(
        tmp_path, fakes.ScriptedDecider(), fakes.ScriptedExecutor(fakes.falling), trials=4
    )
    driver.run()
    assert driver.progress.best.number == 0
    assert driver.progress.best.params == {"number": 0}
    assert driver.progress.since_best == 3


def test_a_pruned_trial_is_stopped_once_and_told_as_pruned(tmp_path):
    decider = fakes.ScriptedDecider(prune=lambda number, step: number % 2 == 1 and step >= 1)
    executor = fakes.ScriptedExecutor(lambda n: [3.0, 2.5, 2.0, 1.5])
    fakes.make_driver(tmp_path, decider, executor, trials=4).run()
    assert executor.stopped == [(1, "prune"), (3, "prune")]
    assert {n: r.state for n, r in decider.told.items()} == {
        0: "complete", 1: "pruned", 2: "complete", 3: "pruned",
    }  # fmt: skip
    assert (1, 2) not in decider.reported


def test_duplicates_and_impossible_draws_are_recorded_and_not_trained(tmp_path):
    decider = fakes.ScriptedDecider(duplicates={1: 0, 2: 0}, impossible={3})
    executor = fakes.ScriptedExecutor(fakes.falling)
    fakes.make_driver(tmp_path, decider, executor, trials=4).run()
    assert executor.submitted == [0, 4, 5]
    states = {number: result.state for number, result in decider.told.items()}
    assert states == {
        0: "complete", 1: "duplicate", 2: "duplicate", 3: "failed", 4: "complete", 5: "complete",
    }  # fmt: skip
    study = StudyFolder(tmp_path / "study")
    assert study.trial(1).read_result().duplicate_of == 0
    assert study.trial(3).read_result().cause.message == "alpha must be > 0"


def test_the_next_run_resumes_the_trials_that_an_interrupt_stopped(tmp_path):
    decider = fakes.ScriptedDecider()

    class Impatient(fakes.ScriptedExecutor):
        def events(self, timeout):
            found = super().events(timeout)
            if len(decider.told) == 2 and not self.stopped:
                driver.interrupt()
            return found

    executor = Impatient(fakes.falling)
    driver = fakes.make_driver(tmp_path, decider, executor, trials=10)
    outcome = driver.run()
    assert outcome.kind is OutcomeKind.INTERRUPTED
    in_flight = [n for n in executor.submitted if n not in decider.told]
    assert in_flight
    decider.left = in_flight
    again = fakes.ScriptedExecutor(fakes.falling)
    fakes.make_driver(tmp_path, decider, again, trials=10).run()
    assert again.submitted[: len(in_flight)] == in_flight
    assert sorted(decider.told) == list(range(10))


def test_a_result_written_before_a_kill_is_told_and_not_trained_again(tmp_path):
    study = StudyFolder(tmp_path / "study")
    folder = TrialFolder.create(study.trial(0).path, TrialConfig())
    folder.append(Evaluation(step=1, eval_loss=2.0))
    folder.write_result(Result(state="complete", eval_loss=2.0))
    decider = fakes.ScriptedDecider(left=[0], asked=1)
    executor = fakes.ScriptedExecutor(fakes.falling)
    fakes.make_driver(tmp_path, decider, executor, trials=2).run()
    assert executor.submitted == [1]
    assert decider.told[0].eval_loss == 2.0


def test_evaluations_written_before_a_kill_are_reported(tmp_path):
    study = StudyFolder(tmp_path / "study")
    folder = TrialFolder.create(study.trial(0).path, TrialConfig())
    folder.append(Evaluation(step=1, eval_loss=2.0))
    decider = fakes.ScriptedDecider(left=[0], asked=1)
    fakes.make_driver(tmp_path, decider, fakes.ScriptedExecutor(fakes.falling), trials=1).run()
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
    executor = fakes.ScriptedExecutor(fakes.falling, width=2)
    driver = fakes.make_driver(tmp_path, decider, executor, trials=3)
    outcome = driver.run()
    assert executor.submitted == [0, 1, 2, 100, 101, 102]
    assert outcome.reason == "all 3 trials are done"
    assert driver.progress.ended == driver.progress.total == 6
    assert driver.progress.best.number == 0


def test_an_interrupt_while_only_the_sampler_is_waited_for_is_an_interruption(tmp_path):
    class Slow(fakes.ScriptedDecider):
        def ask(self):
            driver.interrupt()
            time.sleep(0.2)
            return super().ask()

    decider, executor = Slow(), fakes.ScriptedExecutor(fakes.falling)
    driver = fakes.make_driver(tmp_path, decider, executor, patience=0.02, trials=3)
    assert driver.run().kind is OutcomeKind.INTERRUPTED
    assert executor.submitted == []
    assert decider.given_back == [0]


def test_nothing_is_repeated_after_an_interruption(tmp_path):
    decider = fakes.ScriptedDecider(repeats=[100])
    executor = fakes.ScriptedExecutor(lambda n: [3.0] * 50)
    driver = fakes.make_driver(tmp_path, decider, executor, trials=3)
    driver.interrupt()
    driver.run()
    assert executor.submitted == []


class EndingRay(fakes.ScriptedExecutor):
    """Gives every running trial back at its second step, as when Ray itself ends."""

    def __init__(self, *, for_good: bool) -> None:
        super().__init__(fakes.falling)
        self.for_good = for_good
        self.turns = 0

    def events(self, timeout):
        self.turns += 1
        if self.turns != 2:
            return super().events(timeout)
        if self.for_good:
            raise ExecutorLostError("the Ray cluster at x: its head has not answered")
        numbers = list(self.running)
        self.running.clear()
        return [Lost(n, "lost", "Ray is started again", again=True) for n in numbers]


def test_a_ray_that_is_started_again_is_no_failure_of_a_trial(tmp_path):
    decider, executor = fakes.ScriptedDecider(total=3), EndingRay(for_good=False)
    policy = FailuresSpec(lost_retries=0)
    driver = fakes.make_driver(tmp_path, decider, executor, failures=policy, trials=3)
    assert driver.run().kind is OutcomeKind.DONE
    assert executor.submitted == [0, 1, 0, 1, 2]
    assert {number: result.state for number, result in decider.told.items()} == dict.fromkeys(
        range(3), "complete"
    )
    assert [driver.study.trial(number).read_failures() for number in range(3)] == [[], [], []]
    assert any("goes on from its checkpoint" in note for note in driver.view.notes)


def test_a_result_that_was_on_disk_when_ray_ended_counts(tmp_path):
    class Finished(EndingRay):
        def events(self, timeout):
            events = super().events(timeout)
            if self.turns == 2:
                result = Result(state="complete", eval_loss=0.25, steps=9)
                driver.study.trial(events[0].number).write_result(result)
            return events

    decider, executor = fakes.ScriptedDecider(total=2), Finished(for_good=False)
    driver = fakes.make_driver(tmp_path, decider, executor, trials=2)
    driver.run()
    assert executor.submitted == [0, 1, 1]
    assert decider.told[0].eval_loss == 0.25


def test_a_cluster_that_is_gone_ends_the_run_and_the_next_one_goes_on(tmp_path):
    decider = fakes.ScriptedDecider(total=2)
    driver = fakes.make_driver(tmp_path, decider, EndingRay(for_good=True), trials=2)
    outcome = driver.run()
    assert (outcome.kind, outcome.resumable) == (OutcomeKind.FAILED, True)
    assert "its head has not answered" in outcome.reason
    assert decider.told == {}
    assert driver.study.trial(0).read_failures() == []


def test_a_trial_that_ray_gives_back_after_an_interrupt_is_left_for_the_next_run(tmp_path):
    class Late(EndingRay):
        def events(self, timeout):
            if self.turns == 1:
                driver.interrupt()
            return super().events(timeout)

        def stop(self, number, reason):
            """Ray is gone: nobody hears it."""

    decider, executor = fakes.ScriptedDecider(total=2), Late(for_good=False)
    driver = fakes.make_driver(tmp_path, decider, executor, trials=2)
    assert not driver.status.is_stopping()
    assert driver.run().kind is OutcomeKind.INTERRUPTED
    assert driver.status.is_stopping()
    assert executor.submitted == [0, 1]
