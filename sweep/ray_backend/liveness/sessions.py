"""The processes of a local Ray, which are all in the sessions that its first processes lead."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterable

import psutil

GONE_SECONDS = 10.0
"""Longest wait, in seconds, for the end of processes that got SIGKILL."""


def kill_sessions(leaders: Iterable[subprocess.Popen[bytes]]) -> None:
    """End every process in the sessions that these processes lead or led, and wait for their end.

    A session keeps its id while a process is in it, also when its leader is gone.
    """
    own = {leader.pid: leader for leader in leaders}
    while found := [process for process in psutil.process_iter() if _session(process) in own]:
        for process in found:
            with contextlib.suppress(psutil.Error):
                process.kill()
        # Of its own children `subprocess` must learn the end itself.
        for process in found:
            if process.pid in own:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    own[process.pid].wait(GONE_SECONDS)
        others = [process for process in found if process.pid not in own]
        if psutil.wait_procs(others, timeout=GONE_SECONDS)[1]:
            return


def _session(process: psutil.Process) -> int | None:
    with contextlib.suppress(psutil.Error, OSError):
        if process.status() != psutil.STATUS_ZOMBIE:
            return os.getsid(process.pid)
    return None
