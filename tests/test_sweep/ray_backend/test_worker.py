"""How trials reach a packed job inside a worker, and how their ends are reported."""

from __future__ import annotations

import queue
import threading
from pathlib import Path
from typing import Any

import pytest

from sweep.driver.executor import (
    Evicted,
    Finished,
    Interrupted,
    Lost,
    SlotsChanged,
    Started,
    TrialRef,
)
from sweep.ray_backend.worker import ControlTable, EventQueue, WorkerTrialSource
from trial.store.records import Result

DONE = Result(state="complete", eval_loss=1.0)


class Source:
    """A source, and the queues at its two ends."""

    def __init__(self, *numbers: int) -> None:
        self.inbox: queue.SimpleQueue[TrialRef | None] = queue.SimpleQueue()
        self.events: EventQueue = queue.SimpleQueue()
        self.controls = ControlTable()
        trials = tuple(ref(number) for number in numbers)
        self.source = WorkerTrialSource(trials, self.inbox, self.controls, self.events)

    def number(self, wait: bool = False) -> int | None:
        entry = self.source.next(wait)
        return None if entry is None else entry.control.trial.number


def ref(number: int) -> TrialRef:
    return TrialRef(number, Path(f"trials/{number:05d}"))


def test_the_trials_of_the_job_come_first_then_those_that_join():
    made = Source(3, 4)
    made.inbox.put(ref(5))
    assert [made.number() for _ in range(4)] == [3, 4, 5, None]
    made.inbox.put(ref(6))
    assert made.number() == 6


def test_a_closed_source_has_what_joined_before_and_no_more():
    made = Source()
    made.inbox.put(ref(1))
    made.source.close()
    made.inbox.put(ref(2))
    assert [made.number(wait=True) for _ in range(3)] == [1, None, None]


def test_an_empty_source_waits_for_a_trial_if_it_is_to():
    made = Source()
    later = threading.Timer(0.05, made.inbox.put, [ref(1)])
    later.start()
    assert made.number() is None
    assert made.number(wait=True) == 1
    later.join()


@pytest.mark.parametrize(
    ("end", "event"),
    [
        (lambda source, entry: source.ended(entry, DONE), Finished(7, DONE)),
        (lambda source, entry: source.ended(entry, None), Interrupted(7)),
        (lambda source, entry: source.evicted(entry, alone=True), Evicted(7, True)),
        (
            lambda source, entry: source.abandoned(entry, OSError("disk\nfull")),
            Lost(7, "lost", "disk"),
        ),
    ],
)
def test_ends_of_a_trial_are_reported_once_it_is_forgotten(end, event):
    made = Source(7)
    entry: Any = made.source.next(False)
    assert [number for number, _ in made.controls.silent(0.0)] == [7]
    end(made.source, entry)
    assert made.events.get_nowait() == event
    assert made.controls.silent(0.0) == []


def test_the_number_of_slots_is_reported():
    made = Source()
    made.source.sized(4)
    assert made.events.get_nowait() == SlotsChanged(4)


def test_a_trial_has_a_control_from_the_moment_that_it_is_taken_up():
    """While it waits for a slot it gives no sign of life, and does not hang either."""
    made = Source(7)
    assert made.controls.silent(0.0) == []
    control = made.source.next(False).control
    control.started(None, "cpu", 3)
    assert made.events.get_nowait() == Started(7, "cpu", 3)
    assert control.stop_reason(None) is None
    made.controls.stop(7, "prune")
    assert control.stop_reason(None) == "prune"


def test_a_stop_that_comes_before_its_trial_is_remembered_once():
    controls, events = ControlTable(), queue.SimpleQueue()
    controls.stop(7, "interrupt")
    assert controls.open(ref(7), events).stop_reason(None) == "interrupt"
    controls.close(7)
    assert controls.open(ref(7), events).stop_reason(None) is None
