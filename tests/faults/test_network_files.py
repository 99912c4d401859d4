"""A study on a network file system, where hosts see late what another writes, without locks too.

Two mounts of one directory stand for two hosts (`helpers.network_mount`): a real file system of the
kernel, served by a process of the test. Needs root and FUSE; skipped elsewhere.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import network_mount
from helpers.paths import ROOT
from helpers.sweeps.local import begin_study, make_spec, numbers_of, run_study
from helpers.training.train import Material

from sweep.storage.open import open_storage
from sweep.study import study_lock
from sweep.study.verify import verify
from trial.store.folders import StudyFolder

FLYING = 1
"""Number of the trial that is left in flight."""

pytestmark = pytest.mark.skipif(not network_mount.permitted(), reason="needs root and /dev/fuse")


@pytest.fixture(scope="module")
def material(tmp_path_factory) -> Material:
    return Material(tmp_path_factory.mktemp("network"))


@pytest.fixture(scope="module")
def undisturbed(material) -> dict:
    """What the study comes to on a local disk."""
    study = StudyFolder(material.root / "local" / "study")
    begin_study(study, make_spec(material))
    run_study(study, material.process_cache)
    return numbers_of(study)


def look_at(folder: Path) -> None:
    """Have a host's kernel remember every name and size below a folder, and what is absent."""
    for path, folders, files in os.walk(folder):
        for name in (*folders, *files, "COMPLETE", "result.json", "adapter", "checkpoints"):
            (Path(path) / name).exists()


@contextlib.contextmanager
def watching(folder: Path) -> Iterator[None]:
    """Look at the folder all the time, in a thread: what its host remembers is up to 3 s old."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.2):
            with contextlib.suppress(OSError):
                look_at(folder)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def test_the_mount_shows_late_what_another_host_writes(tmp_path):
    (tmp_path / "disk").mkdir()
    with (
        network_mount.mounted(tmp_path / "disk", tmp_path / "a", 3.0, "local") as first,
        network_mount.mounted(tmp_path / "disk", tmp_path / "b", 3.0, "local") as second,
    ):
        (first / "known").write_text("one")
        assert (second / "known").stat().st_size == 3
        assert not (second / "absent").exists()
        begun = time.monotonic()
        (first / "known").write_text("one, two")
        (first / "absent").write_text("three")
        late = (second / "known").stat().st_size == 3, not (second / "absent").exists()
        # A machine that was busy for so long proves nothing.
        assert late == (True, True) or time.monotonic() - begun > 2
        assert (second / "known").read_text() == "one, two"
        time.sleep(3.1)
        assert (second / "absent").read_text() == "three"


@pytest.mark.parametrize("locks", ["none", pytest.param("local", marks=pytest.mark.faults)])
def test_a_study_goes_on_from_another_host(material, undisturbed, tmp_path, locks):
    disk = tmp_path / "disk"
    disk.mkdir()
    with (
        network_mount.mounted(disk, tmp_path / "a", 3.0, locks) as first,
        network_mount.mounted(disk, tmp_path / "b", 3.0, locks) as second,
    ):
        here, there = StudyFolder(first / "study"), StudyFolder(second / "study")
        begin_study(here, make_spec(material))
        with watching(second):
            run_study(here, material.process_cache, leave_at=(FLYING, 6))
        # Sooner, a host may act on what it remembers: docs/recovery.md says how long to wait.
        time.sleep(3.1)
        run_study(there, material.process_cache)
        assert numbers_of(there) == undisturbed
        time.sleep(3.1)
        found = verify(here, open_storage(here), deep=True)
        assert [str(finding) for finding in found if finding.wrong] == []
        assert numbers_of(here) == undisturbed
    shutil.copytree(disk / "study", tmp_path / "copy")
    assert numbers_of(StudyFolder(tmp_path / "copy")) == undisturbed


HOLDER = """
import sys
from pathlib import Path
from sweep.study import study_lock
from trial.store.folders import StudyFolder
with study_lock.hold(StudyFolder(Path(sys.argv[1]))):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def without_locks(tmp_path):
    (tmp_path / "disk").mkdir()
    with network_mount.mounted(tmp_path / "disk", tmp_path / "mount", 3.0, "none") as mount:
        yield StudyFolder(mount / "study")


def hold(study: StudyFolder) -> subprocess.Popen[bytes]:
    """A process that holds the study's lock until its standard input ends."""
    words = [sys.executable, "-c", HOLDER, str(study.path)]
    held = subprocess.Popen(
        words,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert held.stdout is not None
    assert held.stdout.readline() == b"held\n"
    return held


def test_without_locks_one_driver_runs_a_study(without_locks):
    with hold(without_locks) as held:
        with pytest.raises(study_lock.StudyBusyError, match=f"process {held.pid} on "):
            study_lock.hold(without_locks).__enter__()
        held.communicate()
    with study_lock.hold(without_locks):
        pass


def test_without_locks_a_killed_driver_of_this_host_is_followed(without_locks):
    with hold(without_locks) as held:
        held.kill()
    with study_lock.hold(without_locks):
        pass
    assert not list(without_locks.path.parent.glob(".*.held"))


def test_without_locks_a_driver_of_another_host_is_not(without_locks):
    with hold(without_locks) as held:
        held.kill()
    (mark,) = without_locks.path.parent.glob(".*.held")
    mark.write_text("another-host 1:2")
    with pytest.raises(study_lock.StudyBusyError, match=f"remove {mark}"):
        study_lock.hold(without_locks).__enter__()
    mark.unlink()
    with study_lock.hold(without_locks):
        pass
