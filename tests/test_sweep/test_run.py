"""The command that goes on with a study, and what signals do to a sweep."""

from __future__ import annotations

import signal

import pytest

from sweep.run import resume_command
from sweep.signals import graceful_interrupt


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["run", "smoke"], "gaudi-sweep run smoke"),
        (["run", "smoke", "--fresh"], "gaudi-sweep run smoke"),
        (["run", "smoke", "--fork", "new"], "gaudi-sweep run smoke --study new"),
        (["resume", "a study"], "gaudi-sweep resume 'a study'"),
        (
            ["run", "x", "--storage", "postgresql://me:sesame@h/db"],
            "gaudi-sweep run x --storage 'postgresql://me:***@h/db'",
        ),
    ],
)
def test_the_command_that_goes_on(words, expected):
    assert resume_command(["/some/where/sweep/__main__.py", *words]) == expected


class Recorder:
    """A driver and a view that note what they are told."""

    def __init__(self) -> None:
        self.interrupts = 0
        self.notes: list[str] = []

    def interrupt(self) -> None:
        self.interrupts += 1

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_the_driver_and_the_second_stops_at_once(number):
    before = {name: signal.getsignal(name) for name in (signal.SIGINT, signal.SIGTERM)}
    recorder = Recorder()
    with graceful_interrupt(recorder, recorder):
        signal.raise_signal(number)
        assert recorder.interrupts == 1
        assert "once more stops at once" in recorder.notes[0]
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
    assert recorder.interrupts == 1
    assert {name: signal.getsignal(name) for name in before} == before
