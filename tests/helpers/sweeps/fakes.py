"""Test doubles of executor, decider and view: trials follow a script, without waiting."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from sweep.driver.driver import Driver
from sweep.driver.executor import Evaluated, Event, Finished, Interrupted, Job, Lost, Started
from sweep.driver.interfaces import Proposal
from sweep.driver.progress import SweepProgress
from sweep.spec.spec import FailuresSpec, StopSpec
from trial.config.sections import Origin
from trial.config.trial_config import TrialConfig
from trial.store.folders import StudyFolder, TrialFolder
from trial.store.records import Cause, Evaluation, Result

REPEATS = 100
"""Numbers from here on are repeats of trial 0."""


def make_driver(
    tmp_path: Path,
    decider: ScriptedDecider,
    executor: ScriptedExecutor,
    *,
    failures: FailuresSpec | None = None,
    clock: Callable[[], float] | None = None,
    ask_ahead: int | None = 0,
    patience: float | None = None,
    **stop,
) -> Driver:
    """A driver of `tmp_path / "study"` that asks only when a device is free, unless told else."""
    spec = StopSpec(**stop)
    progress = SweepProgress(planned=spec.trials, **({"clock": clock} if clock else {}))
    return Driver(
        StudyFolder(tmp_path / "study"),
        decider,
        executor,
        spec,
        RecordingView(),
        progress,
        failures=failures or FailuresSpec(),
        ask_ahead=ask_ahead,
        patience=patience,
    )


def falling(number: int) -> list[float | None]:
    """Eval losses of a trial that ends the worse the higher its number."""
    return [3.0, 2.0, 1.0 + number]


@dataclass
class ScriptedExecutor:
    """Runs trials step by step: each call of `events` moves every running trial one evaluation on.

    `curve` gives a trial's eval losses; a `None` in it kills the worker there, once.
    """

    curve: Callable[[int], list[float | None]]
    width: int = 2
    submitted: list[int] = field(default_factory=list)
    stopped: list[tuple[int, str]] = field(default_factory=list)
    running: dict[int, tuple[Path, deque[float | None], int]] = field(default_factory=dict)
    _stopping: dict[int, str] = field(default_factory=dict)
    killed: set[int] = field(default_factory=set)
    closed: bool = False

    def start(self) -> None: ...

    def capacity(self) -> int:
        return self.width

    def describe(self) -> str:
        return f"{self.width} scripted workers"

    def submit(self, job: Job) -> None:
        (trial,) = job.trials
        if len(self.running) >= self.width:
            raise RuntimeError("more jobs than its capacity")
        self.submitted.append(trial.number)
        self.running[trial.number] = (trial.folder, deque(self.curve(trial.number)), 0)

    def stop(self, number: int, reason: str) -> None:
        self.stopped.append((number, reason))
        self._stopping[number] = reason

    def close(self, *, wait: bool = True) -> None:
        self.closed = True

    def events(self, timeout: float) -> list[Event]:
        return [event for number in list(self.running) for event in self.advance(number)]

    def advance(self, number: int) -> list[Event]:
        path, left, step = self.running[number]
        folder = TrialFolder(path)
        begun: list[Event] = [Started(number, "scripted", len(left))] if step == 0 else []
        reason = self._stopping.pop(number, None)
        if reason == "interrupt":
            del self.running[number]
            return [*begun, Interrupted(number)]
        if reason == "prune":
            return [*begun, self.finish(number, Result(state="pruned", steps=step))]
        loss = left.popleft()
        if loss is None and number not in self.killed:
            self.killed.add(number)
            del self.running[number]
            return [*begun, Lost(number, "lost", "killed by the script")]
        loss = left.popleft() if loss is None else loss
        if loss != loss:
            cause = Cause(kind="diverged", message="loss is NaN", step=step)
            return [*begun, self.finish(number, Result(state="failed", cause=cause, steps=step))]
        evaluation = Evaluation(step=step + 1, eval_loss=loss)
        folder.append(evaluation)
        self.running[number] = (path, left, step + 1)
        if left:
            return [*begun, Evaluated(number, evaluation)]
        result = Result(state="complete", eval_loss=loss, steps=step + 1)
        return [*begun, Evaluated(number, evaluation), self.finish(number, result)]

    def finish(self, number: int, result: Result) -> Finished:
        path, _, _ = self.running.pop(number)
        TrialFolder(path).write_result(result)
        return Finished(number, result)


@dataclass
class ScriptedDecider:
    """Proposes numbered trials; prunes where `prune` says so; keeps all reports and results."""

    total: int = 10**9
    prune: Callable[[int, int], bool] = lambda number, step: False
    duplicates: dict[int, int] = field(default_factory=dict)
    impossible: set[int] = field(default_factory=set)
    asked: int = 0
    reported: list[tuple[int, int]] = field(default_factory=list)
    told: dict[int, Result] = field(default_factory=dict)
    repeats: list[int] = field(default_factory=list)
    """Repeats to run once the search has ended."""
    left: list[int] = field(default_factory=list)
    """Trials in flight from an earlier run."""
    given_back: list[int] = field(default_factory=list)
    """Proposals that were not started: `ask` returns them first."""
    ask_seconds: float = 0.0

    def _proposal(self, number: int) -> Proposal:
        confirms = 0 if number >= REPEATS else None
        origin = Origin(study="study", number=number, confirms=confirms)
        config = None if number in self.impossible else TrialConfig(origin=origin)
        return Proposal(
            number,
            {"number": number},
            config,
            self.duplicates.get(number),
            "" if config else "alpha must be > 0",
        )

    def requeue(self, number: int) -> None:
        self.given_back.append(number)

    def ask(self) -> Proposal | None:
        if self.given_back:
            return self._proposal(self.given_back.pop(0))
        if self.asked >= self.total:
            return None
        self.asked += 1
        return self._proposal(self.asked - 1)

    def confirmations(self) -> list[Proposal]:
        repeats, self.repeats = self.repeats, []
        return [self._proposal(number) for number in repeats]

    def pending(self) -> list[Proposal]:
        return [self._proposal(number) for number in self.left]

    def finished(self) -> list[int]:
        return list(self.told)

    def again(self, number: int) -> Proposal:
        return self._proposal(number)

    def report(self, number: int, evaluation: Evaluation) -> bool:
        if (number, evaluation.step) not in self.reported:
            self.reported.append((number, evaluation.step))
        return self.prune(number, evaluation.step)

    def tell(self, number: int, result: Result) -> None:
        if number in self.told:
            raise RuntimeError(f"trial {number} told twice")
        self.told[number] = result


class RecordingView:
    """A view that shows nothing and keeps the notes and events."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.events: list[Event] = []

    @property
    def ended(self) -> list[int]:
        """Trials whose end was shown."""
        return [event.number for event in self.events if isinstance(event, Finished)]

    def update(self, progress: object) -> None: ...

    def on_event(self, event: Event, progress: object) -> None:
        self.events.append(event)

    def note(self, text: str) -> None:
        self.notes.append(text)
