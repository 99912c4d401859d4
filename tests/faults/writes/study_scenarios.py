"""A whole study (ask, folder, result, tell), and what must hold after a kill at any point."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import optuna
from faults.writes.trial_scenarios import Scenario, nothing, require
from helpers.sweeps import fakes

from sweep.driver.disk_guard import DiskGuard
from sweep.driver.driver import Driver
from sweep.driver.executor import Job
from sweep.driver.progress import SweepProgress
from sweep.spec.dimension import Choices
from sweep.spec.spec import FailuresSpec, PrunerSpec, ResourceSpec, SamplerSpec, StopSpec, SweepSpec
from sweep.storage.open import open_storage
from sweep.study.decider import OptunaDecider
from sweep.study.verify import verify
from trial.store.folders import StudyFolder, TrialFolder
from trial.store.records import Cause, Result, StudyRecord


class OutOfMemoryExecutor(fakes.ScriptedExecutor):
    """Trials fail for want of memory until their micro-batch is halved; one row fails for good."""

    def advance(self, number):  # type: ignore[no-untyped-def]
        path, _, _ = self.running[number]
        config = TrialFolder(path).read_config()
        if config.lora.r == 4 and config.training["per_device_train_batch_size"] > 4:
            cause = Cause(kind="out_of_memory", message="out of memory")
            return [self.finish(number, Result(state="failed", cause=cause))]
        return super().advance(number)

    def submit(self, job: Job) -> None:
        folder = TrialFolder(job.trials[0].folder)
        require(folder.read_result() is None, f"{folder.path} is trained again")
        super().submit(job)


def curve(number: int) -> list[float | None]:
    return [5.0 + number, 4.0 + number, 3.0 + number]


def study_spec(sampler: str) -> SweepSpec:
    return SweepSpec(
        name="study",
        space={"lora.r": (Choices(choices=(2, 4, 8)),)},
        sampler=SamplerSpec(name=sampler, seed=0),
        pruner=PrunerSpec(name="none"),
        enqueue=({"lora.r": 8}, {"lora.r": 4}),
        stop=StopSpec(trials=3),
        resources=ResourceSpec(min_free_gb=0),
    )


STORAGE: list[str] = []
"""The URL of the storage, when it is not the journal; {path} in it is the study's own folder."""


def url(path: Path) -> str | None:
    return STORAGE[0].format(path=path) if STORAGE else None


def study_name(path: Path) -> str:
    """Studies share a server: each has a name of its own there."""
    return "-".join(path.parts[-2:])


def counted(storage: optuna.storages.BaseStorage) -> optuna.storages.BaseStorage:
    """The storage; for one that is not the journal, each writing call counts as an operation."""
    if not STORAGE:
        return storage
    inner = getattr(storage, "_backend", storage)
    for name in dir(inner):
        if name.startswith(("create_new", "set_")):
            setattr(inner, name, _announced(getattr(inner, name)))
    return storage


def _announced(call: Callable[..., object]) -> Callable[..., object]:
    def announced(*values: object, **named: object) -> object:
        sys.audit("storage.write")
        return call(*values, **named)

    return announced


def run_study(sampler: str) -> Callable[[Path], None]:
    def run(path: Path) -> None:
        spec, folder = study_spec(sampler), StudyFolder(path / "study")
        if not folder.exists():
            folder.write_record(StudyRecord(name=study_name(path), spec=spec.content()))
        decider = OptunaDecider(spec, study_name(path), counted(open_storage(folder, url(path))))
        Driver(
            folder,
            decider,
            OutOfMemoryExecutor(curve),
            spec.stop,
            fakes.RecordingView(),
            SweepProgress(planned=3),
            failures=FailuresSpec(),
            disk=DiskGuard(folder, spec.resources),
        ).run()

    return run


def study_holds(sampler: str) -> Callable[[Path, bool], None]:
    def holds(path: Path, whole: bool) -> None:
        folder = StudyFolder(path / "study")
        if not whole:
            if folder.exists() and (STORAGE or folder.journal.exists()):
                storage = open_storage(folder, url(path), repair=False)
                if study_name(path) in optuna.get_all_study_names(storage):
                    wrong = [str(f) for f in verify(folder, storage) if f.wrong]
                    require(not wrong, wrong)
            return
        storage = open_storage(folder, url(path))
        findings = [str(finding) for finding in verify(folder, storage)]
        require(not findings, findings)
        trials = optuna.load_study(study_name=study_name(path), storage=storage).trials
        trained = [trial for trial in trials if "duplicate_of" not in trial.user_attrs]
        require([t.number for t in trials] == list(range(len(trials))), "numbers")
        require(sorted(t.params["lora.r"] for t in trained) == [2, 4, 8], trials)
        require({t.state.name for t in trained} == {"COMPLETE"}, trials)
        require(trials[0].params["lora.r"] == 8, "the enqueued points come first")
        for trial in trained:
            three = dict(enumerate(curve(trial.number), 1))
            require(trial.intermediate_values == three, trial.intermediate_values)
            changes = folder.trial(trial.number).read_config().origin.changes
            failures = folder.trial(trial.number).read_failures()
            halved = trial.params["lora.r"] == 4
            require(len(changes) == halved, f"halved: {changes}")
            require(len(failures) >= halved, f"failures: {failures}")
        left = [p.name for p in folder.path.rglob("*.tmp")]
        require(not left, left)

    return holds


SCENARIOS = {
    "grid": Scenario(nothing, run_study("grid"), study_holds("grid")),
    "random": Scenario(nothing, run_study("random"), study_holds("random")),
}
