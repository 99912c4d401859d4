"""Ends what a killed driver leaves behind: `python -m sweep.reaper PID FOLDER`.

Ray's own agents outlive a driver that got SIGKILL. This small process notes the driver's
descendants while the driver lives, learns of its death from the end of its standard input, and
ends those that remain. It is started by the Ray executor for a Ray of its own, never for a cluster.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import sys

import psutil

LOOK_EVERY = 1.0
"""Seconds between two looks at the driver's descendants."""

PATIENCE = 5.0
"""Seconds that Ray gets to end by itself once the driver is gone."""


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
        _end(seen - {psutil.Process()})
    shutil.rmtree(folder, ignore_errors=True)


def _end(processes: set[psutil.Process]) -> None:
    """Give processes a while to end by themselves, then end them."""
    _, alive = psutil.wait_procs([p for p in processes if p.is_running()], timeout=PATIENCE)
    for process in alive:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(alive, timeout=PATIENCE)


def _closed() -> bool | None:
    """None while the driver lives; True when it said that Ray is down, False when it just died.

    A driver that closed in order may have other children, which are none of our business.
    """
    ready, _, _ = select.select([sys.stdin], [], [], LOOK_EVERY)
    return bool(os.read(sys.stdin.fileno(), 1)) if ready else None


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
