"""SIGKILL between every pair of file operations: `python tests/faults/kill_writes.py SCENARIO`.

A child process counts what it is about to do to the disk (open for writing, fsync, rename, unlink,
make or remove a folder) and kills itself before the n-th of them, for n = 1, 2, ... until it comes
through untouched. Every fsync is two places to die at: before the bytes are whole (the end of the
file is cut off), and after. After each death the folder is checked, and a process that nobody
disturbs finishes the work. Prints how often it died.

Forking is cheap here and needs a process without threads: that is why this is a script.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import random
import shutil
import signal
import stat
import sys
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import optuna
from helpers import fakes

from sweep.driver.disk_guard import DiskGuard
from sweep.driver.driver import Driver
from sweep.driver.executor import Job
from sweep.driver.progress import SweepProgress
from sweep.spec.dimension import Choices
from sweep.spec.spec import FailuresSpec, PrunerSpec, ResourceSpec, SamplerSpec, StopSpec, SweepSpec
from sweep.storage.open import open_storage
from sweep.study.decider import OptunaDecider
from sweep.study.verify import verify
from trial.config.trial_config import TrialConfig
from trial.store.folders import StudyFolder, TrialFolder
from trial.store.records import Cause, Evaluation, Result, StudyRecord
from trial.training.checkpoints import COMPLETE, Checkpoints, Measurement, TrialProgress

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
EVENTS = (
    "storage.write",
    "os.rename",
    "os.remove",
    "os.mkdir",
    "os.rmdir",
    "os.truncate",
    "os.link",
)


class Reaper:
    """Kills this process before its n-th operation on the disk."""

    def __init__(self, at: int) -> None:
        self.left = at
        self._fsync = os.fsync

    def arm(self) -> None:
        """From now on operations count."""
        os.fsync = self._torn_fsync
        sys.addaudithook(self._hook)

    def _count(self) -> bool:
        self.left -= 1
        return self.left == 0

    def _hook(self, event: str, args: tuple[object, ...]) -> None:
        writes = event == "open" and isinstance(args[2], int) and args[2] & WRITING
        if (writes or event in EVENTS) and self._count():
            die()

    def _torn_fsync(self, descriptor: int) -> None:
        found = os.fstat(descriptor)
        writable = fcntl.fcntl(descriptor, fcntl.F_GETFL) & (os.O_WRONLY | os.O_RDWR)
        if stat.S_ISREG(found.st_mode) and writable and self._count():
            os.ftruncate(descriptor, max(0, found.st_size - 7))
            die()
        if self._count():
            die()
        self._fsync(descriptor)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def in_child(work: Callable[[], None], at: int = 0) -> bool:
    """Run `work` in a fork that dies before its `at`-th operation; whether it came through."""
    child = os.fork()
    if not child:
        code = 1
        try:
            if at:
                Reaper(at).arm()
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return False
    if os.WEXITSTATUS(status):
        raise SystemExit(f"a child failed at {at}")
    return True


@dataclass
class Scenario:
    """What is done to a folder, and what must hold whenever it was cut short or has ended."""

    prepare: Callable[[Path], None]
    work: Callable[[Path], None]
    check: Callable[[Path, bool], None]


def require(holds: object, what: object) -> None:
    if not holds:
        raise SystemExit(f"lost: {what}")


# One trial's files

CONFIG = TrialConfig(lora={"r": 4})
RESULT = Result(state="complete", value=2.5, steps=8)
FAILED = Result(state="failed", cause=Cause(kind="lost", message="gone"))
ROWS = [Evaluation(step=step, eval_loss=3.0 / step, time=0.0) for step in (1, 2, 3)]


def nothing(path: Path) -> None: ...


def create(path: Path) -> None:
    TrialFolder.create(path, CONFIG)


def created(path: Path, whole: bool) -> None:
    folder = TrialFolder(path)
    require(not folder.config.exists() or folder.read_config() == CONFIG, "config")
    require(not whole or folder.config.exists(), "config")


def two_rows(path: Path) -> None:
    for row in ROWS[:2]:
        TrialFolder.create(path, CONFIG).append(row)


def append(path: Path) -> None:
    TrialFolder(path).append(ROWS[2])


def appended(path: Path, whole: bool) -> None:
    found = TrialFolder(path).read_evaluations()
    require(found in ((ROWS,) if whole else (ROWS[:2], ROWS)), found)


def write_result(path: Path) -> None:
    TrialFolder(path).write_result(RESULT)


def written(path: Path, whole: bool) -> None:
    require(TrialFolder(path).read_result() in ((RESULT,) if whole else (None, RESULT)), "result")


def failed(path: Path) -> None:
    TrialFolder.create(path, CONFIG).write_result(FAILED)


def set_aside(path: Path) -> None:
    TrialFolder(path).move_result_to_failures()


def aside(path: Path, whole: bool) -> None:
    folder = TrialFolder(path)
    result, failures = folder.read_result(), folder.read_failures()
    require(failures in ([], [FAILED]), failures)
    require(result == FAILED or failures == [FAILED], "the failure is nowhere")
    require(not whole or (result is None and failures == [FAILED]), (result, failures))


def at_step(step: int) -> TrialProgress:
    best = Measurement(step=step, value=1.0)
    return TrialProgress(step=step, best=best, last=best)


def saved(path: Path, step: int) -> None:
    """What the trainer has written before the checkpoint is declared whole."""
    checkpoints = Checkpoints(TrialFolder(path))
    for folder in (checkpoints.at(step), checkpoints.best(step)):
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("adapter_model.safetensors", "optimizer.pt"):
            (folder / name).write_bytes(bytes(64))


def one_checkpoint(path: Path) -> None:
    saved(path, 4)
    Checkpoints(TrialFolder(path)).complete(at_step(4))


def complete_next(path: Path) -> None:
    saved(path, 8)
    Checkpoints(TrialFolder(path)).complete(at_step(8))


def one_whole(path: Path, whole: bool) -> None:
    checkpoints = Checkpoints(TrialFolder(path))
    newest = checkpoints.newest()
    require(newest is not None, "no whole checkpoint is left")
    progress = checkpoints.read_progress(newest)
    require(newest == checkpoints.at(progress.step), progress)
    best = checkpoints.best(progress.best.step)
    for folder in (newest, best):
        sizes = [(folder / n).stat().st_size for n in ("adapter_model.safetensors", "optimizer.pt")]
        require(sizes == [64, 64], f"{folder} {sizes}")
    if whole:
        require(progress.step == 8, progress)
        left = {entry.name for entry in checkpoints.path.iterdir()}
        require(left == {"checkpoint-8", "best-8"}, left)
        require((newest / COMPLETE).exists(), "not declared")


# A whole study: ask, folder, result, tell


class Ooming(fakes.ScriptedExecutor):
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
    """With a storage of other files than ours, its writing calls are places to die at."""
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
            Ooming(curve),
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
    "create": Scenario(nothing, create, created),
    "append": Scenario(two_rows, append, appended),
    "result": Scenario(create, write_result, written),
    "set aside": Scenario(failed, set_aside, aside),
    "checkpoint": Scenario(one_checkpoint, complete_next, one_whole),
    "grid": Scenario(nothing, run_study("grid"), study_holds("grid")),
    "random": Scenario(nothing, run_study("random"), study_holds("random")),
}


def at_every_operation(scenario: Scenario, root: Path, first: int, stride: int) -> int:
    """Die at every operation in turn (or every `stride`-th); about how many there are."""
    at = first
    while True:
        path = root / str(at)
        scenario.prepare(path)
        through = in_child(lambda path=path: scenario.work(path), at)
        checked(scenario, path, through)
        if through:
            return at - 1
        in_child(lambda path=path: scenario.work(path))
        checked(scenario, path, True)
        shutil.rmtree(path)
        at += stride


def at_random_operations(
    scenario: Scenario, root: Path, last: int, courses: int, dice: random.Random
) -> int:
    """Die again and again, at random operations of each attempt, until one comes through."""
    deaths = 0
    beyond = last + min(20, last)  # Some attempts come through, and some die.
    for course in range(courses):
        path = root / f"course{course}"
        scenario.prepare(path)
        while not in_child(lambda path=path: scenario.work(path), dice.randint(1, beyond)):
            deaths += 1
            checked(scenario, path, False)
        checked(scenario, path, True)
        shutil.rmtree(path)
    return deaths


def checked(scenario: Scenario, path: Path, whole: bool) -> None:
    """Check in a process of its own: connections do not survive a fork."""
    in_child(lambda: scenario.check(path, whole))


def main() -> None:
    """Run one scenario; ends with a message and 1 when anything is lost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scenario", choices=SCENARIOS)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--stride", type=int, default=1)
    parser.add_argument("--courses", type=int, default=20)
    given = parser.parse_args()
    if storage := os.environ.get("FAULTS_STORAGE"):
        STORAGE.append(storage)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    scenario, dice = SCENARIOS[given.scenario], random.Random(given.seed)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        operations = at_every_operation(scenario, root, dice.randint(1, given.stride), given.stride)
        again = at_random_operations(scenario, root, operations, given.courses, dice)
    print(json.dumps({"operations": operations, "random deaths": again, "seed": given.seed}))


if __name__ == "__main__":
    main()
