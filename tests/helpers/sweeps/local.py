"""Sweeps that train in the process of the test: a real driver and study, without Ray."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from helpers.sweeps.fakes import RecordingView
from helpers.training.train import Material

from sweep.driver.disk_guard import DiskGuard
from sweep.driver.driver import Driver
from sweep.driver.executor import Evaluated, Event, Finished, Interrupted, Job, Started
from sweep.driver.interfaces import SweepOutcome
from sweep.driver.progress import SweepProgress
from sweep.spec.dimension import Choices
from sweep.spec.spec import SweepSpec
from sweep.storage.open import open_storage
from sweep.study.decider import OptunaDecider
from trial.store.control import NullControl, StopReason
from trial.store.failure_kinds import cause_of
from trial.store.folders import StudyFolder, TrialFolder
from trial.store.records import Evaluation, Result, StudyRecord
from trial.train import train
from trial.training.process_cache import ProcessCache


def make_spec(material: Material, *, pack: int = 1, steps: int = 8) -> SweepSpec:
    """A grid of two trials that evaluate, and write a checkpoint, every second step."""
    config = material.config(training={"max_steps": steps, "eval_steps": 2, "logging_steps": 2})
    content = config.model_dump(mode="json", exclude={"origin", "version", "keep_checkpoint"})
    return SweepSpec(
        name="study",
        base={**content, "packed": False},
        space={"lora.r": (Choices(choices=(4, 2)),)},
        sampler={"name": "grid"},
        resources={"pack": pack, "min_free_gb": 0},
    )


def begin_study(study: StudyFolder, spec: SweepSpec) -> None:
    """Write the record of a new study."""
    study.write_record(StudyRecord(name=spec.name, spec=spec.content()))


def run_study(
    study: StudyFolder, cache: Callable[[], ProcessCache], leave_at: tuple[int, int] | None = None
) -> SweepOutcome:
    """Run a study to its end, or until a trial has been evaluated at a step: `leave_at`."""
    spec = SweepSpec.from_content(study.read_record().spec)
    executor = LocalExecutor(cache, leave_at)
    driver = Driver(
        study,
        OptunaDecider(spec, spec.name, open_storage(study, repair=True)),
        executor,
        spec.stop,
        RecordingView(),
        SweepProgress(),
        failures=spec.failures,
        disk=DiskGuard(study, spec.resources),
        ask_ahead=0,
        packed=spec.resources.pack != 1,
    )
    executor.leave = driver.interrupt
    return driver.run()


@dataclass
class LocalExecutor:
    """Trains one trial at a time, within the call of `events`."""

    cache: Callable[[], ProcessCache]
    leave_at: tuple[int, int] | None = None
    """Number of a trial and a step: the sweep is interrupted once it is evaluated there."""
    leave: Callable[[], None] = lambda: None
    waiting: list[Job] = field(default_factory=list)

    def start(self) -> None: ...

    def capacity(self) -> int:
        return 1

    def describe(self) -> str:
        return "this process"

    def submit(self, job: Job) -> None:
        self.waiting.append(job)

    def events(self, timeout: float) -> list[Event]:
        return [event for job in self._taken() for event in self._train(job)]

    def _taken(self) -> list[Job]:
        waiting, self.waiting = self.waiting, []
        return waiting

    def _train(self, job: Job) -> list[Event]:
        (trial,) = job.trials
        folder, control = TrialFolder(trial.folder), _Control(trial.number, self)
        try:
            result = train(folder, control, self.cache())
        except Exception as error:  # As the worker does.
            result = Result(state="failed", cause=cause_of(error, None))
            folder.write_result(result)
        end = Finished(trial.number, result) if result else Interrupted(trial.number)
        return [*control.events, end]

    def stop(self, number: int, reason: StopReason) -> None: ...

    def close(self, *, wait: bool = True) -> None: ...


class _Control(NullControl):
    def __init__(self, number: int, executor: LocalExecutor) -> None:
        self.number, self.executor = number, executor
        self.events: list[Event] = []
        self.reason: StopReason | None = None

    def started(self, folder: TrialFolder, device: str, max_steps: int) -> None:
        self.events.append(Started(self.number, device, max_steps))

    def evaluated(self, folder: TrialFolder, evaluation: Evaluation) -> None:
        self.events.append(Evaluated(self.number, evaluation))
        if self.executor.leave_at == (self.number, evaluation.step):
            self.reason = "interrupt"
            self.executor.leave()

    def stop_reason(self, folder: TrialFolder) -> StopReason | None:
        return self.reason


def numbers_of(study: StudyFolder) -> dict[int, dict[str, Any]]:
    """What each trial of a study came to: result, curve, configuration, bytes of its weights."""
    found = {}
    for number, folder in study.all_trials():
        result = folder.read_result()
        assert result is not None
        weights = sorted(folder.adapter.glob("*.safetensors"))
        found[number] = {
            "state": result.state,
            "eval_loss": result.eval_loss,
            "steps": result.steps,
            "tokens": result.tokens,
            "curve": {row.step: row.eval_loss for row in folder.read_evaluations()},
            "fingerprint": folder.read_config().fingerprint(),
            "weights": [path.read_bytes() for path in weights],
        }
    return found
