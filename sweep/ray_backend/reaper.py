"""Ends what a killed driver leaves behind: `python -m sweep.ray_backend.reaper PID FOLDER`.

Ray's own agents outlive a driver that got SIGKILL. This small process notes the driver's
descendants while the driver lives, learns of its death from the end of its standard input, and
ends those that remain. It is started by the Ray executor for a Ray of its own, never for a cluster.

A worker that was just starting is nobody's descendant any more and has not been noted. It waits for
the Ray that is gone, up to half a minute, and then makes Ray's folder anew. So every process of Ray
that names the folder in its command line is ended too, and the folder removed until it stays away.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import sys
import time

import psutil

LOOK_EVERY = 1.0
"""Seconds between two looks at the driver's descendants."""

PATIENCE = 2.0
"""Seconds that Ray gets to end by itself once the driver is gone."""

RAY = "/ray/"
"""In the path of all that Ray starts."""

ROUNDS = 20
"""Looks for what makes the folder anew, before it is given up."""


def main(driver_pid: int, folder: str) -> None:
    """Wait for the driver's end, then clean up after it."""
    # Ctrl-C in a terminal reaches this process too; only the driver's end ends it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    seen: set[psutil.Process] = set()
    while (closed := _closed()) is None:
        with contextlib.suppress(psutil.Error):
            seen |= set(psutil.Process(driver_pid).children(recursive=True))
    if not closed:
        _end(seen - {psutil.Process()}, PATIENCE)
    remove(folder)


def remove(folder: str) -> None:
    """Remove Ray's folder, and end the processes that would make it anew."""
    for _ in range(ROUNDS):
        late = naming(folder)
        _end(late, 0.0)
        shutil.rmtree(folder, ignore_errors=True)
        if not late and not os.path.lexists(folder):
            return
        time.sleep(0.05)


def naming(folder: str) -> set[psutil.Process]:
    """Ray's processes with the folder in their command line; nobody's pager, for that matter."""
    found = set()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            line = "\0".join(process.cmdline())
            if folder in line and RAY in line and process.pid != os.getpid():
                found.add(process)
    return found


def _end(processes: set[psutil.Process], patience: float) -> None:
    """Give processes a while to end by themselves, then end them."""
    until = time.monotonic() + patience
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
    """A zombie is not: its parent may take its time."""
    with contextlib.suppress(psutil.Error):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def _closed() -> bool | None:
    """None while the driver lives; True when it said that Ray is down, False when it just died.

    A driver that closed in order may have other children, which are none of our business.
    """
    ready, _, _ = select.select([sys.stdin], [], [], LOOK_EVERY)
    return bool(os.read(sys.stdin.fileno(), 1)) if ready else None


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
