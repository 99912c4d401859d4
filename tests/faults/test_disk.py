"""A disk that fills up: trials stop before, nothing is lost after, old checkpoints go."""

from __future__ import annotations

import errno
import shutil
import subprocess
import tempfile
from collections import namedtuple
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from faults import kill_sweeps
from helpers.sweeps import fakes

from sweep.driver import disk_guard as sweep_disk
from sweep.driver.disk_guard import GB, DiskGuard
from sweep.driver.driver import Driver
from sweep.driver.interfaces import OutcomeKind
from sweep.driver.progress import SweepProgress
from sweep.spec.spec import ObjectiveSpec, ResourceSpec, StopSpec
from trial.store.disk_full import DiskFullError, is_full, refuse_if_full
from trial.store.folders import StudyFolder, TrialFolder
from trial.store.records import Cause, DataSummary, Result

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def study(tmp_path) -> StudyFolder:
    folder = StudyFolder(tmp_path / "study")
    folder.path.mkdir()
    return folder


# Best checkpoints


def with_checkpoint(study: StudyFolder, number: int) -> TrialFolder:
    folder = study.trial(number)
    (folder.checkpoints / "checkpoint-10").mkdir(parents=True)
    (folder.checkpoints / "checkpoint-10" / "optimizer.pt").write_bytes(bytes(1000))
    return folder


KEPT = [
    # values in the order they come in, how many are kept, direction, who keeps a checkpoint
    ([3.0, 2.0, 1.0], 1, "minimize", [2]),
    ([1.0, 2.0, 3.0], 1, "minimize", [0]),
    ([1.0, 2.0, 3.0], 1, "maximize", [2]),
    ([3.0, 1.0, 2.0, 4.0], 2, "minimize", [1, 2]),
    ([1.0, 1.0], 1, "minimize", [0]),
    ([1.0, 2.0], 0, "minimize", []),
    ([1.0, 2.0], 9, "minimize", [0, 1]),
    (["pruned", 2.0, "failed"], 3, "minimize", [1]),
]


@pytest.mark.parametrize(("values", "keep", "direction", "kept"), KEPT)
def test_the_best_keep_their_checkpoint(values, keep, direction, kept, study):
    resources = ResourceSpec(keep_checkpoints=keep)
    disk = DiskGuard(study, resources, (ObjectiveSpec(direction=direction),))
    for number, value in enumerate(values):
        with_checkpoint(study, number)
        cause = Cause(kind="error", message="boom")
        results = {
            "pruned": Result(state="pruned", eval_loss=0.0),
            "failed": Result(state="failed", cause=cause),
        }
        disk.trial_ended(number, results.get(value) or Result(state="complete", eval_loss=value))
    found = [number for number in range(len(values)) if study.trial(number).checkpoints.exists()]
    assert found == kept
    assert disk.largest >= 1000


UNLIKE = [
    # what trials are measured on, their losses, who keeps a checkpoint
    ("aba", [2.0, 1.0, 3.0], [0, 1]),
    ("abab", [2.0, 5.0, 1.0, 4.0], [2, 3]),
    # One group more than may keep checkpoints, the smallest: it has none.
    ("aabbccddeeffgghhi", [*range(16), 0.0], [0, 2, 4, 6, 8, 10, 12, 14]),
    ("abcdefghij", [*range(10)], [0, 1, 2, 3, 4, 5, 6, 7]),
]


@pytest.mark.parametrize(("on", "losses", "kept"), UNLIKE)
def test_the_best_of_each_group_measured_alike_keep_theirs(on, losses, kept, study):
    disk = DiskGuard(study)
    for number, (group, loss) in enumerate(zip(on, losses, strict=True)):
        with_checkpoint(study, number)
        data = DataSummary(train_rows=1, eval_rows=1, eval_hash=group)
        disk.trial_ended(number, Result(state="complete", eval_loss=loss, data=data))
    found = [number for number in range(len(losses)) if study.trial(number).checkpoints.exists()]
    assert found == kept


# Low space


def drive(study: StudyFolder, disk: DiskGuard, total: int) -> tuple[Driver, fakes.ScriptedExecutor]:
    executor = fakes.ScriptedExecutor(lambda number: [2.0, 1.0], width=1)
    decider = fakes.ScriptedDecider(total=total)
    progress = SweepProgress(planned=total)
    stop = StopSpec(trials=total)
    view = fakes.RecordingView()
    # Waits for every draw, however busy the machine, so that disk checks can be counted.
    driver = Driver(
        study, decider, executor, stop, view, progress, disk=disk, ask_ahead=0, patience=None
    )
    return driver, executor


def test_no_trial_is_started_below_the_threshold_which_is_noted_once(study, monkeypatch):
    free = iter([5 * GB, 5 * GB, 0.4 * GB, 0.4 * GB])
    monkeypatch.setattr(
        sweep_disk.shutil, "disk_usage", lambda path: Usage(9 * GB, 0, int(next(free)))
    )
    driver, executor = drive(study, DiskGuard(study, ResourceSpec(min_free_gb=1.0)), 6)
    outcome = driver.run()
    assert executor.submitted == [0, 1]
    assert outcome.kind is OutcomeKind.FAILED
    assert "0.4 GB" in outcome.reason
    assert "resources.min_free_gb keeps 1 GB" in outcome.reason
    assert len([note for note in driver.view.notes if "no further trial" in note]) == 1


def test_when_space_is_freed_meanwhile_the_sweep_goes_on(study, monkeypatch):
    free = iter([5, 0.1, 0.1, *[5] * 50])
    monkeypatch.setattr(
        sweep_disk.shutil, "disk_usage", lambda path: Usage(9 * GB, 0, int(next(free) * GB))
    )
    driver, executor = drive(study, DiskGuard(study, ResourceSpec(min_free_gb=1.0)), 3)
    driver.executor.width = 2
    assert driver.run().kind is OutcomeKind.DONE
    assert executor.submitted == [0, 1, 2]


@pytest.mark.parametrize(("free", "refused"), [(10**9, False), (10**9 - 1, True)])
def test_min_free_gb_is_in_gb_of_1000_million_bytes(free, refused, study, monkeypatch):
    monkeypatch.setattr(sweep_disk.shutil, "disk_usage", lambda path: Usage(2 * GB, 0, free))
    refusal = DiskGuard(study, ResourceSpec(min_free_gb=1.0)).refusal()
    assert bool(refusal) is refused


def test_min_free_gb_zero_never_refuses(study, monkeypatch):
    monkeypatch.setattr(sweep_disk.shutil, "disk_usage", lambda path: Usage(1, 1, 0))
    driver, executor = drive(study, DiskGuard(study, ResourceSpec(min_free_gb=0)), 2)
    assert driver.run().kind is OutcomeKind.DONE
    assert executor.submitted == [0, 1]


ERRORS = [
    (OSError(errno.ENOSPC, "No space left on device"), True),
    (OSError(errno.EDQUOT, "Disk quota exceeded"), True),
    (RuntimeError('IoError(Os { code: 28, kind: StorageFull, message: "..." })'), True),
    (OSError(errno.EACCES, "Permission denied"), False),
    (RuntimeError("basic_ios::clear: iostream error"), False),
    (ValueError("full of surprises"), False),
]


@pytest.mark.parametrize(("error", "full"), ERRORS)
def test_a_full_disk_is_told_from_other_failures(error, full, tmp_path):
    assert is_full(error, tmp_path) is full
    wrapped = RuntimeError("saving failed")
    wrapped.__cause__ = error
    assert is_full(wrapped, tmp_path) is full
    if full:
        with pytest.raises(DiskFullError, match="is full"):
            refuse_if_full(error, tmp_path)


# A real one


@contextmanager
def tmpfs(path: Path, size: str) -> Iterator[None]:
    """A small file system of memory at `path`."""
    words = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"mounting a tmpfs is not permitted here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


@pytest.fixture
def faults() -> Iterator[kill_sweeps.Faults]:
    # A short path: Ray's sockets lie below it.
    root = Path(tempfile.mkdtemp(prefix="gf"))
    yield kill_sweeps.Faults(0, root, rates=(1e-2,))
    shutil.rmtree(root)


def test_a_disk_that_fills_up_costs_nothing_once_there_is_room_again(faults):
    sweep = faults.sweep("full", resources={"concurrency": 1, "min_free_gb": 0})
    with tmpfs(sweep.runs, "40m"):
        filler = sweep.runs / "filler"
        # Room for some checkpoints and not for a whole sweep.
        filler.write_bytes(bytes(shutil.disk_usage(sweep.runs).free - 300_000))
        assert sweep.start().wait(240) in (1, 2)
        sweep.check_clean()
        said = sweep.output.read_text()
        assert "Traceback" not in said
        assert "full" in said or "No space left" in said
        sweep.check()
        filler.unlink()
        assert sweep.start().wait(240) == 0, sweep.output.read_text()
        sweep.check_clean()
        sweep.check()
        sweep.check_end(None)


@pytest.mark.faults
def test_low_space_is_noticed_before_the_disk_is_full(faults):
    resources = {"concurrency": 2, "min_free_gb": 0.02}
    sweep = faults.sweep("low", resources=resources)
    with tmpfs(sweep.runs, "21m"):
        filler = sweep.runs / "filler"
        filler.write_bytes(bytes(4_000_000))
        assert sweep.start().wait(240) == 1
        said = " ".join(sweep.output.read_text().split())
        assert "too little free disk space" in said
        assert sweep.study.all_trials() == []
        sweep.check()
