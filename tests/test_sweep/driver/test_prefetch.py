"""Proposals drawn ahead: a slow sampler keeps no device waiting, N trials stay N draws."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from helpers.sweeps import fakes

from sweep.driver.driver import Driver
from sweep.driver.prefetch import Prefetcher, prefetch_count
from sweep.spec.dimension import Range
from sweep.spec.spec import SamplerSpec, StopSpec, SweepSpec
from sweep.storage.open import open_storage
from sweep.study.decider import OptunaDecider
from trial.store.folders import StudyFolder
from trial.store.records import Evaluation, Result

LONG = 20.0
"""Seconds after which a test that waits for nothing fails."""


def make_driver(tmp_path, decider, executor, ask_ahead, patience=None, **stop) -> Driver:
    return fakes.make_driver(
        tmp_path, decider, executor, ask_ahead=ask_ahead, patience=patience, **stop
    )


@dataclass
class Gated(fakes.ScriptedDecider):
    """Answers once for every permit."""

    permits: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))

    def ask(self):
        if not self.permits.acquire(timeout=LONG):
            raise TimeoutError("no permit: the driver waits for the sampler")
        return super().ask()


@dataclass
class Watched(fakes.ScriptedExecutor):
    """Records how many trials run at each turn of the driver, and calls `turn`."""

    turn: Callable[[], None] = lambda: None
    taken: list[int] = field(default_factory=list)

    def events(self, timeout):
        self.taken.append(len(self.running))
        self.turn()
        return super().events(timeout)


def test_a_slow_sampler_keeps_no_device_waiting(tmp_path):
    # A draw takes as long as one of a trial's four evaluations, and all trials end together: what
    # was not drawn before its slot fell free is never drawn, for the loop waits without end.
    decider = Gated()
    decider.permits.release(3)
    executor = Watched(lambda n: [4.0, 3.0, 2.0, 1.0], width=3, turn=decider.permits.release)
    make_driver(tmp_path, decider, executor, ask_ahead=3, trials=12).run()
    assert sorted(decider.told) == list(range(12))
    assert executor.taken == [3] * 16


def test_trials_are_reported_and_pruned_while_the_sampler_draws(tmp_path):
    decider = Gated(prune=lambda number, step: (number, step) == (1, 4))
    decider.permits.release(2)

    def turn():
        if executor.stopped:
            decider.permits.release(10)

    executor = Watched(lambda n: [3.0] if n == 0 else [3.0] * 9, width=2, turn=turn)
    make_driver(tmp_path, decider, executor, ask_ahead=0, patience=0.0, trials=3).run()
    # Trial 2 was let go only once trial 1 had been told to stop.
    assert executor.stopped == [(1, "prune")]
    assert decider.told[1].state == "pruned"
    assert sorted(decider.reported)[:5] == [(0, 1), (1, 1), (1, 2), (1, 3), (1, 4)]
    assert sorted(decider.told) == [0, 1, 2]


@pytest.mark.parametrize("ask_ahead", [0, 1, 3, 50, None])
def test_n_trials_are_n_draws(tmp_path, ask_ahead):
    decider = fakes.ScriptedDecider(duplicates={2: 0, 3: 0}, impossible={5})
    executor = fakes.ScriptedExecutor(lambda n: [2.0, 1.0], width=2)
    outcome = make_driver(tmp_path, decider, executor, ask_ahead, trials=7).run()
    assert executor.submitted == [0, 1, 4, 6, 7, 8]
    assert sorted(decider.told) == list(range(9))
    assert decider.given_back == []
    assert outcome.reason == "all 7 trials are done"


@pytest.mark.parametrize("ask_ahead", [0, 4])
def test_all_that_was_drawn_before_the_space_was_exhausted_is_trained(tmp_path, ask_ahead):
    decider = fakes.ScriptedDecider(total=5)
    executor = fakes.ScriptedExecutor(lambda n: [1.0], width=2)
    outcome = make_driver(tmp_path, decider, executor, ask_ahead).run()
    assert executor.submitted == list(range(5))
    assert "every configuration" in outcome.reason


def test_unstarted_proposals_are_requeued_and_proposed_again_after_a_resume(tmp_path):
    class Telling(fakes.ScriptedDecider):
        fourth = threading.Event()

        def ask(self):
            if self.asked == 3:
                self.fourth.set()
            return super().ask()

    decider = Telling()
    # The trial ends when the sampler has been asked for the third one after it.
    executor = Watched(lambda n: [2.0] * (n + 1), width=1, turn=lambda: decider.fourth.wait(LONG))
    make_driver(tmp_path, decider, executor, ask_ahead=3, target=2.0).run()
    assert executor.submitted == [0]
    assert decider.given_back == [1, 2, 3]
    assert not StudyFolder(tmp_path / "study").trial(1).path.exists()
    again = fakes.ScriptedExecutor(lambda n: [1.0], width=1)
    make_driver(tmp_path, decider, again, ask_ahead=3, trials=6).run()
    assert again.submitted == [1, 2, 3, 4, 5]


def test_an_exception_of_the_sampler_ends_the_run(tmp_path):
    class Broken(fakes.ScriptedDecider):
        def ask(self):
            if self.asked == 2:
                raise OSError("the storage is gone")
            return super().ask()

    executor = fakes.ScriptedExecutor(lambda n: [1.0])
    with pytest.raises(OSError, match="the storage is gone"):
        make_driver(tmp_path, Broken(), executor, ask_ahead=2, trials=9).run()


@pytest.mark.parametrize(
    ("ask_seconds", "trial_seconds", "capacity", "expected"),
    [
        (0.03, 60.0, 8, 0),  # 0.24 s of 60: not worth knowing less
        (0.1, 60.0, 8, 8),
        (5.0, 60.0, 1, 1),
        (5.0, 3600.0, 1, 0),
        (0.2, 60.0, 256, 256),
        (0.02, None, 2, 0),
        (3.0, None, 2, 2),
    ],
)
def test_proposals_are_prefetched_only_where_devices_would_wait(
    ask_seconds, trial_seconds, capacity, expected
):
    assert prefetch_count(ask_seconds, trial_seconds, capacity) == expected


def test_close_cancels_what_is_not_begun_and_keeps_what_is():
    begun, go = threading.Event(), threading.Event()

    def draw() -> int:
        begun.set()
        assert go.wait(LONG)
        return 7

    class Watched(Prefetcher[int]):
        def cancel(self) -> None:
            super().cancel()
            go.set()

    prefetcher = Watched(draw)
    prefetcher.request(3)
    assert begun.wait(LONG)
    assert prefetcher.take() == []
    assert prefetcher.close() == [7]
    assert prefetcher.requested == 0


RATE = Range(type="float", low=1e-5, high=1e-1, log=True)


class LockedDecider(OptunaDecider):
    """No `ask` runs while a test holds `asking`."""

    asking = threading.Lock()

    def ask(self):
        with self.asking:
            return super().ask()


def decide(folder: StudyFolder) -> OptunaDecider:
    spec = SweepSpec(
        name="study",
        space={"training.learning_rate": (RATE,)},
        sampler=SamplerSpec(name="random", seed=3),
        stop=StopSpec(trials=10),
    )
    return LockedDecider(spec, "study", open_storage(folder))


def test_a_journal_loses_nothing_while_one_thread_asks_and_another_reports(tmp_path):
    folder = StudyFolder(tmp_path / "study")
    decider = decide(folder)
    prefetcher = Prefetcher(decider.ask)
    prefetcher.request(40)
    expected = {}
    while prefetcher.requested:
        for proposal in prefetcher.take(None):
            expected[proposal.number] = {step: proposal.number + step / 10 for step in range(1, 4)}
            for step, loss in expected[proposal.number].items():
                decider.report(proposal.number, Evaluation(step=step, eval_loss=loss))
            value = expected[proposal.number][3]
            decider.tell(proposal.number, Result(state="complete", eval_loss=value, steps=3))
    prefetcher.close()
    trials = decide(folder).study.trials
    assert {trial.number: trial.intermediate_values for trial in trials} == expected
    assert {trial.number: trial.value for trial in trials} == {n: v[3] for n, v in expected.items()}


def test_a_killed_and_resumed_sweep_has_n_trials_each_trained_once(tmp_path):
    study = StudyFolder(tmp_path / "study")
    trained: list[int] = []

    class Cut(fakes.ScriptedExecutor):
        def events(self, timeout):
            if len(self.submitted) == 4:
                raise KeyboardInterrupt
            return super().events(timeout)

    for kind in (Cut, fakes.ScriptedExecutor):
        executor = kind(lambda n: [2.0, 1.0], width=2)
        driver = make_driver(tmp_path, decide(study), executor, ask_ahead=3, trials=10)
        if kind is Cut:
            with pytest.raises(KeyboardInterrupt):
                driver.run()
            # As after a kill: what was drawn is in flight, and has no folder.
            with LockedDecider.asking:
                states = [trial.state.name for trial in decide(study).study.trials]
            assert states.count("RUNNING") > 2
        else:
            driver.run()
        trained += executor.submitted
    trials = decide(study).study.trials
    assert [trial.state.name for trial in trials] == ["COMPLETE"] * 10
    assert len(study.all_trials()) == 10
    # The two that ran when it was cut are started again, under their numbers.
    assert sorted(trained) == sorted([*range(10), 2, 3])
