"""What is left of a driver that got SIGKILL; the processes here stand in for Ray's."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sweep.ray_backend import reaper

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
        str(tmp_path / "gsweep-x"),
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
    reap(tmp_path / "gsweep-x", word)
    assert not (tmp_path / "gsweep-x").exists()
    assert late.wait(10) < 0


def test_others_are_left_alone(late, tmp_path):
    pager = [sys.executable, "-c", "input()", str(tmp_path / "gsweep-y")]
    with subprocess.Popen(pager, stdin=subprocess.PIPE) as looks:
        reap(tmp_path / "gsweep-y", b"")
        assert (late.poll(), looks.poll()) == (None, None)
        looks.communicate(b"\n")


def test_a_driver_that_closed_in_order_keeps_its_other_children(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    command = [
        sys.executable,
        "-m",
        "sweep.ray_backend.reaper",
        str(os.getpid()),
        str(tmp_path / "gsweep-z"),
    ]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as watcher:
        watcher.communicate(b".")
    assert child.poll() is None
    child.communicate(b"\n")


@pytest.mark.parametrize("name", reaper.IGNORED)
def test_no_signal_ends_it_not_even_in_its_first_moment(tmp_path, name):
    folder = tmp_path / "gsweep-s"
    folder.mkdir()
    watcher = reaper.start(folder)
    watcher.send_signal(name)
    # The reaper reads this only once it ignores the signal, which came before.
    watcher.communicate(b".")
    assert (watcher.returncode, folder.exists()) == (0, False)
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ()) & set(reaper.IGNORED)
