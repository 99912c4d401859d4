"""What is left of a driver that got SIGKILL; the processes here stand in for Ray's."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sweep.ray_backend import cluster, reaper

# Like a worker that was just starting: no descendant of the driver, and makes its folder anew.
LATE = """
import pathlib, sys
folder = pathlib.Path(sys.argv[1])
print("up", flush=True)
while True:
    (folder / "session" / "sockets").mkdir(parents=True, exist_ok=True)
"""


@pytest.fixture
def late(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    command = [
        sys.executable,
        "-c",
        LATE,
        str(tmp_path / "gs-x"),
        "lib/ray/_private/default_worker.py",
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    process.stdout.readline()
    yield process
    process.kill()
    process.communicate()


def reap(folder: Path, word: bytes) -> None:
    """Run the reaper of a driver that is gone (no input), or that closed in order (one byte)."""
    command = [
        sys.executable,
        "-m",
        "sweep.ray_backend.reaper",
        str(os.getpid() + 2**20),
        str(folder),
    ]
    subprocess.run(command, input=word, check=True, timeout=60)


@pytest.mark.parametrize("word", [b"", b"."])
def test_a_worker_that_starts_late_leaves_neither_itself_nor_the_folder(late, tmp_path, word):
    reap(tmp_path / "gs-x", word)
    assert not (tmp_path / "gs-x").exists()
    assert late.wait(10) < 0


def test_others_are_left_alone(late, tmp_path):
    pager = [sys.executable, "-c", "input()", str(tmp_path / "gs-y")]
    with subprocess.Popen(pager, stdin=subprocess.PIPE) as looks:
        reap(tmp_path / "gs-y", b"")
        assert (late.poll(), looks.poll()) == (None, None)
        looks.communicate(b"\n")


def test_a_driver_that_closed_in_order_keeps_its_other_children(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    command = [
        sys.executable,
        "-m",
        "sweep.ray_backend.reaper",
        str(os.getpid()),
        str(tmp_path / "gs-z"),
    ]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as watcher:
        watcher.communicate(b".")
    assert child.poll() is None
    child.communicate(b"\n")


def test_the_next_driver_removes_what_nobody_holds(tmp_path, monkeypatch):
    monkeypatch.setattr(cluster.tempfile, "tempdir", str(tmp_path))
    dead, bare, young = (tmp_path / f"gs-{name}" for name in ("dead", "bare", "young"))
    for folder in (dead, bare, young):
        (folder / "session").mkdir(parents=True)
    (dead / cluster.LOCK_FILE).touch()
    os.utime(bare, (0, 0))
    mine, lock = cluster.make_temp_folder()
    cluster.remove_dead_folders()
    assert sorted(tmp_path.iterdir()) == sorted([young, Path(mine)])
    lock.release()
    assert reaper.ray_processes(mine) == set()
