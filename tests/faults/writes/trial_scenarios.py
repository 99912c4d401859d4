"""Writing the files of one trial, and what must hold after a kill at any point."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from trial.config.trial_config import TrialConfig
from trial.store.folders import TrialFolder
from trial.store.records import Cause, Evaluation, Result
from trial.training.checkpoints import COMPLETE, Checkpoints, Measurement, TrialProgress


@dataclass
class Scenario:
    """Work on a folder, and a check that holds after a kill and (`whole`) after the end."""

    prepare: Callable[[Path], None]
    work: Callable[[Path], None]
    check: Callable[[Path, bool], None]


def require(holds: object, what: object) -> None:
    if not holds:
        raise SystemExit(f"lost: {what}")


CONFIG = TrialConfig(lora={"r": 4})
RESULT = Result(state="complete", eval_loss=2.5, steps=8)
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
    best = Measurement(step=step, eval_loss=1.0)
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
        # The one before stays, in case that the newest is damaged.
        require(left == {"checkpoint-4", "best-4", "checkpoint-8", "best-8"}, left)
        require((newest / COMPLETE).exists(), "not declared")


SCENARIOS = {
    "create": Scenario(nothing, create, created),
    "append": Scenario(two_rows, append, appended),
    "result": Scenario(create, write_result, written),
    "set aside": Scenario(failed, set_aside, aside),
    "checkpoint": Scenario(one_checkpoint, complete_next, one_whole),
}
