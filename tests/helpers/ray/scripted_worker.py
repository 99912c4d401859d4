"""Workers for the Ray tests: the real actor around a training that only writes the folder."""

from __future__ import annotations

import os
import signal
import threading

from sweep.ray_backend.worker import TrialWorker, WorkerControl
from trial.store.folders import TrialFolder
from trial.store.records import Evaluation, Result


class ScriptedCache:
    """A process cache that says whether the worker may be used again."""

    def __init__(self, reusable: bool) -> None:
        self.reusable = reusable


class ScriptedWorker(TrialWorker):
    """Trains by what the trial's `lora.r` says: 1 completes, 2 waits to be stopped, ..."""

    def __init__(self, environment: dict[str, str], device: str, hang_seconds: float) -> None:
        super().__init__(environment, preload=None, hang_seconds=hang_seconds)

    def train(self, folder: TrialFolder, control: WorkerControl) -> Result | None:
        scripts = (complete, until_stopped, die, spoil, explode, hang, freeze)
        self.process_cache = self.process_cache or ScriptedCache(True)
        return scripts[folder.read_config().lora.r - 1](self, folder, control)


class UnfitWorker(ScriptedWorker):
    """Cannot start, as on a node that lacks a package."""

    def __init__(self, *_: object) -> None:
        raise ModuleNotFoundError("No module named 'peft'")


def complete(worker: ScriptedWorker, folder: TrialFolder, control: WorkerControl) -> Result:
    control.started(folder, "scripted", 2)
    for step in (1, 2):
        evaluation = Evaluation(step=step, eval_loss=1 / step)
        folder.append(evaluation)
        control.evaluated(folder, evaluation)
    metrics = {"pid": float(os.getpid()), "threads": float(os.environ["OMP_NUM_THREADS"])}
    result = Result(state="complete", eval_loss=0.5, steps=2, metrics=metrics)
    folder.write_result(result)
    return result


def until_stopped(
    worker: ScriptedWorker, folder: TrialFolder, control: WorkerControl
) -> Result | None:
    control.started(folder, "scripted", 10**6)
    step = 0
    while (reason := control.stop_reason(folder)) is None:
        step += 1
    if reason == "interrupt":
        return None
    result = Result(state="pruned", steps=step)
    folder.write_result(result)
    return result


def die(worker: ScriptedWorker, folder: TrialFolder, control: WorkerControl) -> None:
    control.started(folder, "scripted", 1)
    os.kill(os.getpid(), signal.SIGKILL)


def spoil(worker: ScriptedWorker, folder: TrialFolder, control: WorkerControl) -> Result:
    worker.process_cache.reusable = False
    return complete(worker, folder, control)


def explode(worker: ScriptedWorker, folder: TrialFolder, control: WorkerControl) -> None:
    raise MemoryError("cannot allocate")


def hang(worker: ScriptedWorker, folder: TrialFolder, control: WorkerControl) -> None:
    control.started(folder, "scripted", 1)
    threading.Event().wait()


def freeze(worker: ScriptedWorker, folder: TrialFolder, control: WorkerControl) -> None:
    """The whole process stands still, as it does in a library that holds the GIL."""
    control.started(folder, "scripted", 1)
    os.kill(os.getpid(), signal.SIGSTOP)
