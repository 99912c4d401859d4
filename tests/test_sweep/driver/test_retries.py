"""Failed trials: the retry policy, and the driver that retries by it."""

from __future__ import annotations

import json
from itertools import count

import pytest
from helpers.sweeps import fakes

from sweep.driver.executor import Finished, Lost
from sweep.driver.interfaces import OutcomeKind
from sweep.driver.retry_policy import Retry, count_tries, halve_micro_batch, retry_action
from sweep.spec.spec import FailuresSpec
from trial.config.packing_rules import packing_key
from trial.config.sections import Origin
from trial.config.trial_config import TrialConfig
from trial.store.folders import StudyFolder, TrialFolder
from trial.store.records import Cause, Evaluation, Result


def test_a_lost_worker_is_retried_and_its_trial_keeps_its_number(tmp_path):
    executor = fakes.ScriptedExecutor(lambda n: [3.0, None, 2.0] if n == 1 else [3.0, 2.0])
    decider = fakes.ScriptedDecider()
    driver = fakes.make_driver(tmp_path, decider, executor, trials=3)
    driver.run()
    assert executor.submitted.count(1) == 2
    assert {n: r.state for n, r in decider.told.items()} == dict.fromkeys(range(3), "complete")
    assert any(
        "trial 1 is tried again after lost: killed by the script" in note
        for note in driver.view.notes
    )


def test_evaluations_that_a_lost_worker_did_not_send_are_reported(tmp_path):
    class Mute(fakes.ScriptedExecutor):
        """Its worker writes an evaluation and dies before it sends it; the next one goes on."""

        def advance(self, number):
            path, left, step = self.running[number]
            if number == 1 and step == 0:
                TrialFolder(path).append(Evaluation(step=1, eval_loss=left.popleft()))
                self.running[number] = (path, left, 1)
                if self.submitted.count(1) == 1:
                    del self.running[number]
                    return [Lost(number, "lost", "killed by the script")]
            return super().advance(number)

    decider = fakes.ScriptedDecider()
    fakes.make_driver(tmp_path, decider, Mute(fakes.falling), trials=2).run()
    assert decider.told[1].state == "complete"
    assert [step for number, step in decider.reported if number == 1] == [1, 2, 3]


def test_a_trial_that_kills_every_worker_is_given_up(tmp_path):
    class Deadly(fakes.ScriptedExecutor):
        def submit(self, job):
            self.killed.clear()
            super().submit(job)

    executor = Deadly(lambda n: [2.0, None, 1.0] if n == 0 else [2.0, 1.0])
    decider = fakes.ScriptedDecider()
    fakes.make_driver(tmp_path, decider, executor, trials=3).run()
    # The first try, and three in a row that came no further.
    assert executor.submitted.count(0) == 4
    assert decider.told[0].state == "failed"
    assert decider.told[0].cause.kind == "lost"
    assert decider.told[0].cause.step == 1
    assert decider.told[1].state == decider.told[2].state == "complete"


def failing(kind: str, times: int, message: str = "boom"):
    """A scripted executor whose trial 0 fails so often by `kind` before it completes."""

    class Failing(fakes.ScriptedExecutor):
        left = times

        def advance(self, number):
            if number or not self.left:
                return super().advance(number)
            self.left -= 1
            cause = Cause(kind=kind, message=message)
            return [self.finish(number, Result(state="failed", cause=cause))]

    return Failing(lambda n: [2.0, 1.0], width=1)


POLICY = FailuresSpec(
    out_of_memory_retries=1, lost_retries=3, hung_retries=1, device_busy_retries=10,
    device_busy_wait=60.0, error_retries=2,
)  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "tries", "action"),
    [
        ("diverged", 0, None),
        ("out_of_memory", 0, Retry(halve=True)),
        ("out_of_memory", 1, None),
        ("lost", 0, Retry()),
        ("lost", 2, Retry()),
        ("lost", 3, None),
        ("hung", 0, Retry()),
        ("hung", 1, None),
        ("device_busy", 9, Retry(wait=60.0)),
        ("device_busy", 10, None),
        ("error", 1, Retry()),
        ("error", 2, None),
    ],
)
def test_the_action_after_so_many_tries(kind, tries, action):
    assert retry_action(POLICY, kind, tries) == action


@pytest.mark.parametrize(
    ("rows", "accumulation", "halved"),
    [(8, 1, (4, 2)), (2, 4, (1, 8)), (6, 1, (3, 2)), (1, 8, None), (3, 1, None)],
)
def test_a_halved_micro_batch_keeps_the_effective_batch(rows, accumulation, halved):
    training = {"per_device_train_batch_size": rows, "gradient_accumulation_steps": accumulation}
    config = TrialConfig(origin=Origin(study="study", number=0))
    config = config.model_copy(update={"training": {**config.training, **training}})
    smaller = halve_micro_batch(config)
    if halved is None:
        assert smaller is None
    else:
        assert [smaller.training[name] for name in training] == list(halved)
        assert len(smaller.origin.changes) == 1


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
    # A device that is busy is waited for: in virtual time.
    clock = count(0.0, 10.0).__next__
    driver = fakes.make_driver(tmp_path, decider, executor, clock=clock, trials=1)
    driver.run()
    assert executor.submitted.count(0) == submissions
    assert decider.told[0].state == state
    # A try that is followed by another is not shown as the trial's end.
    ends = [event for event in driver.view.events if isinstance(event, Finished)]
    assert [event.result.state for event in ends] == [state]
    kept = StudyFolder(tmp_path / "study").trial(0).read_failures()
    assert [result.cause.kind for result in kept] == [kind] * (submissions - 1)


def test_out_of_memory_halves_the_micro_batch_and_keeps_the_effective_batch(tmp_path):
    driver = fakes.make_driver(
        tmp_path, fakes.ScriptedDecider(), failing("out_of_memory", 1), trials=1
    )
    driver.run()
    config = StudyFolder(tmp_path / "study").trial(0).read_config()
    assert config.training["per_device_train_batch_size"] == 4
    assert config.training["gradient_accumulation_steps"] == 2
    assert config.origin.changes == ["out of memory: micro-batch 8 -> 4, accumulation 1 -> 2"]


def test_a_trial_that_waits_for_its_retry_leaves_its_device(tmp_path):
    executor, decider = failing("device_busy", 1), fakes.ScriptedDecider()
    clock = count(0.0, 1.0).__next__
    fakes.make_driver(tmp_path, decider, executor, clock=clock, trials=2).run()
    assert executor.submitted == [0, 1, 0]
    assert decider.told[0].state == decider.told[1].state == "complete"


@pytest.mark.parametrize("kind", ["error", "out_of_memory", "device_busy", "lost", "hung"])
@pytest.mark.parametrize("seen", [True, False], ids=["with a result", "without"])
def test_tries_count_over_resumes(tmp_path, kind, seen):
    """A restarted driver does not count from zero."""
    policy = FailuresSpec(
        error_retries=2, out_of_memory_retries=2, device_busy_retries=2, device_busy_wait=0.0,
        lost_retries=2, hung_retries=2,
    )  # fmt: skip
    decider, starts = fakes.ScriptedDecider(total=1), []

    class Failing(fakes.ScriptedExecutor):
        def advance(self, number):
            starts.append(number)
            if len(starts) < 3:
                driver.interrupt()  # Each driver sees one failure, and the next one goes on.
            if not seen:
                del self.running[number]
                return [Lost(number, kind, "gone")]
            cause = Cause(kind=kind, message="gone")
            return [self.finish(number, Result(state="failed", cause=cause))]

    for _ in range(3):
        executor = Failing(lambda n: [1.0])
        driver = fakes.make_driver(tmp_path, decider, executor, failures=policy, trials=1)
        driver.run()
        decider.left = [0]
    assert len(starts) == 3
    assert decider.told[0].state == "failed"


def test_a_trial_that_is_given_up_with_its_worker_is_shown_once(tmp_path):
    class Dying(fakes.ScriptedExecutor):
        def advance(self, number):
            del self.running[number]
            return [Lost(number, "lost", "gone")]

    driver = fakes.make_driver(
        tmp_path,
        fakes.ScriptedDecider(),
        Dying(lambda n: [1.0]),
        failures=FailuresSpec(lost_retries=1),
        trials=2,
    )
    driver.run()
    assert driver.view.ended == [0, 1]


@pytest.mark.parametrize(("step", "tries"), [(0, 6), (5, 4), (9, 1), (10, 0)])
def test_losses_count_until_the_trial_has_got_further(step, tries):
    past = [Cause(kind="lost", message="", step=step) for step in (0, 0, 5, 5, 5, 9)]
    assert count_tries(past, Cause(kind="lost", message="", step=step)) == tries


def test_only_failures_of_the_same_kind_count():
    lost = Cause(kind="lost", message="", step=0)
    assert count_tries([lost, lost], Cause(kind="hung", message="", step=0)) == 0
    error = Cause(kind="error", message="", step=3)
    assert count_tries([error, error], error.model_copy(update={"step": 7})) == 2
    out_of_memory = Cause(kind="out_of_memory", message="", step=3)
    assert count_tries([out_of_memory], out_of_memory) == 0


def test_a_smaller_trial_keeps_its_new_packing_key_and_no_configuration_is_read_for_it(
    tmp_path, monkeypatch
):
    keys, reads, read = [], [], TrialFolder.read_config
    causes = ["out_of_memory", "lost", "lost"]

    class Failing(fakes.ScriptedExecutor):
        def submit(self, job):
            keys.append((job.key, packing_key(read(TrialFolder(job.trials[0].folder)))))
            super().submit(job)

        def advance(self, number):
            if not causes:
                return super().advance(number)
            cause = Cause(kind=causes.pop(0), message="boom")
            return [self.finish(number, Result(state="failed", cause=cause))]

    monkeypatch.setattr(TrialFolder, "read_config", lambda self: reads.append(self) or read(self))
    executor = Failing(lambda n: [2.0, 1.0], width=1)
    driver = fakes.make_driver(tmp_path, fakes.ScriptedDecider(), executor, trials=1)
    driver.packed = True
    driver.run()
    given, of_the_file = zip(*keys, strict=True)
    assert given == of_the_file
    assert [given[0] == key for key in given] == [True, False, False, False]
    # To compare it with the proposal, and to halve it.
    assert len(reads) == 2


def test_a_kill_before_the_smaller_configuration_was_written_costs_no_try(tmp_path):
    driver = fakes.make_driver(
        tmp_path, fakes.ScriptedDecider(), failing("out_of_memory", 1), trials=1
    )
    folder = driver.study.trial(0)
    folder.path.mkdir(parents=True)
    cause = Cause(kind="out_of_memory", message="out of memory")
    folder.append_failure(Result(state="failed", cause=cause))
    driver.run()
    assert driver.decider.told[0].state == "complete"
    assert len(folder.read_config().origin.changes) == 1


def test_a_full_disk_ends_the_sweep_and_no_trial(tmp_path):
    class Full(fakes.ScriptedExecutor):
        def advance(self, number):
            del self.running[number]
            return [Lost(number, "lost", "the disk of /x is full: No space left on device")]

    decider = fakes.ScriptedDecider()
    driver = fakes.make_driver(tmp_path, decider, Full(lambda n: [1.0], width=2), trials=4)
    outcome = driver.run()
    assert outcome.kind is OutcomeKind.FAILED
    assert "the disk of /x is full" in outcome.reason
    assert decider.told == {}
    assert driver.executor.submitted == [0, 1]
    assert driver.study.trial(0).read_failures() == []


def broken(folder: TrialFolder) -> None:
    folder.config.write_text('{"version": 1, "trai')


def edited(folder: TrialFolder) -> None:
    content = folder.read_config().model_dump(mode="json")
    content["training"]["learning_rate"] = 0.5
    folder.config.write_text(json.dumps(content))


@pytest.mark.parametrize("damage", [broken, edited])
def test_a_trial_that_failed_on_its_damaged_configuration_is_tried_again(tmp_path, damage):
    """Whatever the policy says of errors: the failure was not the trial's."""

    class Reading(fakes.ScriptedExecutor):
        def advance(self, number):
            path, _, _ = self.running[number]
            if self.submitted.count(number) > 1:
                return super().advance(number)
            damage(TrialFolder(path))
            cause = Cause(kind="error", message="config.json: content: invalid JSON")
            return [self.finish(number, Result(state="failed", cause=cause))]

    decider = fakes.ScriptedDecider()
    executor = Reading(fakes.falling, width=1)
    driver = fakes.make_driver(tmp_path, decider, executor, trials=1)
    driver.run()
    assert executor.submitted == [0, 0]
    assert decider.told[0].state == "complete"
    folder = driver.study.trial(0)
    proposed = fakes.ScriptedDecider()._proposal(0).config
    assert folder.read_config().fingerprint() == proposed.fingerprint()
    assert "config.json is made anew as the study proposed it: " in folder.log.read_text()


def test_a_damaged_configuration_in_flight_is_made_anew_in_halves(tmp_path):
    """Memory ran out once, the micro-batch was halved, and then the file was damaged."""
    decider = fakes.ScriptedDecider(left=[0])
    driver = fakes.make_driver(tmp_path, decider, fakes.ScriptedExecutor(fakes.falling), trials=1)
    folder, config = driver.study.trial(0), decider._proposal(0).config
    TrialFolder.create(folder.path, halve_micro_batch(config))
    halved = folder.config.read_text()
    cause = Cause(kind="out_of_memory", message="out of memory")
    folder.append_failure(Result(state="failed", cause=cause))
    broken(folder)
    driver.run()
    assert folder.config.read_text() == halved
    assert decider.told[0].state == "complete"
    assert "config.json is made anew" in folder.log.read_text()
