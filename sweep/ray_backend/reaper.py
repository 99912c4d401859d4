"""Ends what a killed driver leaves behind: `python -m sweep.ray_backend.reaper PID FOLDER`.

Ray's own agents outlive a driver that got SIGKILL. This small process notes the driver's
descendants while the driver lives, learns of its death from the end of its standard input, and
ends those that remain. It is started for a local Ray, never for a cluster that was joined.

A worker that was just starting is nobody's descendant any more and has not been noted. It waits for
the Ray that is gone, up to half a minute, and then makes Ray's folder anew. So every process of Ray
that names the folder in its command line is ended too, and the folder removed until it stays away.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

from sweep.ray_backend.compat import PROGRAM_FOLDERS
from sweep.ray_backend.local.temp_folder import remove_known

POLL_SECONDS = 1.0
"""Seconds between two looks at the driver's descendants."""

GRACE_SECONDS = 2.0
"""Seconds that Ray gets to end by itself once the driver is gone."""

MAX_ATTEMPTS = 20
"""How often the folder is removed again when some process makes it anew."""

IGNORED = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM)
"""Signals by which whole sessions, groups and services are ended; only the driver's end ends the
reaper."""


def start(folder: Path) -> subprocess.Popen[bytes]:
    """Start the reaper of this process; one byte to its standard input says that Ray is down."""
    command = [sys.executable, "-m", "sweep.ray_backend.reaper", str(os.getpid()), str(folder)]
    # A new process inherits what is blocked: no signal ends it before it ignores them.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, IGNORED)
    try:
        # In a session of its own: it is needed most when the whole process group is killed.
        return subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def main(driver_pid: int, folder: str) -> None:
    """Wait for the driver's end, then clean up after it."""
    for name in IGNORED:
        signal.signal(name, signal.SIG_IGN)
    seen: set[psutil.Process] = set()
    while (closed := _driver_closed()) is None:
        with contextlib.suppress(psutil.Error):
            seen |= set(psutil.Process(driver_pid).children(recursive=True))
    if not closed:
        _kill(seen - {psutil.Process()}, GRACE_SECONDS)
    remove(folder)


def remove(folder: str) -> None:
    """Remove Ray's folder, and end the processes that would make it anew."""
    for _ in range(MAX_ATTEMPTS):
        late = ray_processes(folder)
        _kill(late, 0.0)
        remove_known(Path(folder))
        if not late and not os.path.lexists(folder):
            return
        time.sleep(0.05)


def ray_processes(folder: str) -> set[psutil.Process]:
    """This user's processes of Ray with the folder in their command line; no others, as a pager."""
    found = set()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.uids().real != os.getuid():
                continue
            command = "\0".join(process.cmdline())
            is_ray = any(program in command for program in PROGRAM_FOLDERS)
            if folder in command and is_ray and process.pid != os.getpid():
                found.add(process)
    return found


def _kill(processes: set[psutil.Process], grace: float) -> None:
    """Give processes `grace` seconds to end by themselves, then kill them."""
    until = time.monotonic() + grace
    while alive := {process for process in processes if _is_alive(process)}:
        if time.monotonic() < until:
            time.sleep(0.05)
            continue
        for process in alive:
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(alive, timeout=1.0)
        return


def _is_alive(process: psutil.Process) -> bool:
    """Whether a process runs; a zombie does not, its parent may take its time."""
    with contextlib.suppress(psutil.Error):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def _driver_closed() -> bool | None:
    """None while the driver lives; True when it reported that Ray is down, False when it died.

    A driver that closed in order may have other children, which are left alone.
    """
    ready, _, _ = select.select([sys.stdin], [], [], POLL_SECONDS)
    return bool(os.read(sys.stdin.fileno(), 1)) if ready else None


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
