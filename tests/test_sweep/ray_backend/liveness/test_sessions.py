"""Processes are found by their session, also when they have left their parent and group."""

from __future__ import annotations

import subprocess
import sys

import psutil

from sweep.ray_backend.liveness.sessions import kill_sessions

LEADER = """
import subprocess, sys
program = "import os, sys; os.setpgid(0, 0); print(os.getpid(), flush=True); sys.stdin.read()"
words = [sys.executable, "-c", program]
process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
print(process.stdout.readline().decode(), flush=True)
sys.stdin.read()
"""


def leader() -> tuple[subprocess.Popen[bytes], psutil.Process]:
    """A process with a session of its own, and its child, which has a group of its own."""
    made = subprocess.Popen(
        [sys.executable, "-c", LEADER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    return made, psutil.Process(int(made.stdout.readline()))


def test_everything_in_the_sessions_ends_and_nothing_else():
    (dead, orphan), (alive, child), (other, stranger) = leader(), leader(), leader()
    dead.kill()
    dead.wait()
    assert orphan.is_running()
    kill_sessions([dead, alive])
    for process in (orphan, child):
        assert not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    assert alive.wait(30) == -9
    assert other.poll() is None
    assert stranger.is_running()
    kill_sessions([other])
    for process in (dead, alive, other):
        process.communicate()
