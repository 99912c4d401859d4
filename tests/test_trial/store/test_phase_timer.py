"""Seconds of a trial by phase, with a clock that the test sets."""

from __future__ import annotations

from trial.store.phase_timer import PhaseTimer, SharedPhaseTimer
from trial.store.records import Seconds


class Time:
    """A clock in seconds."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds

    def pass_(self, seconds: float) -> None:
        self.seconds += seconds


def test_every_second_belongs_to_one_phase():
    time = Time()
    timer = PhaseTimer(now=time)
    time.pass_(1)
    assert timer.switch("train") == "load"
    time.pass_(2)
    with timer.during("eval"):
        time.pass_(4)
        with timer.during("save"):
            time.pass_(8)
        time.pass_(16)
    time.pass_(32)
    assert timer.read() == Seconds(load=1, train=34, eval=20, save=8)
    assert timer.read().total == 63


def test_earlier_attempts_are_added():
    time = Time()
    timer = PhaseTimer(Seconds(train=5, startup=1), now=time)
    time.pass_(1)
    timer.restore(Seconds(train=10))
    assert timer.read() == Seconds(load=1, train=15, startup=1)


def test_a_shared_timer_counts_its_own_blocks_and_its_shares():
    time = Time()
    timer = SharedPhaseTimer(now=time)
    time.pass_(1)
    with timer.during("eval"):
        time.pass_(2)
        with timer.during("save"):
            time.pass_(4)
    time.pass_(8)
    timer.charge("train", 0.5)
    assert timer.read() == Seconds(eval=2, save=4, train=0.5)
