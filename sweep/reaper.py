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
    while not _driver_gone():
        with contextlib.suppress(psutil.Error):
            seen |= set(psutil.Process(driver_pid).children(recursive=True))
    seen.discard(psutil.Process())
    _, alive = psutil.wait_procs([p for p in seen if p.is_running()], timeout=PATIENCE)
    for process in alive:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(alive, timeout=PATIENCE)
    shutil.rmtree(folder, ignore_errors=True)


def _driver_gone() -> bool:
    """Whether standard input has ended; waits a little to find out."""
    ready, _, _ = select.select([sys.stdin], [], [], LOOK_EVERY)
    return bool(ready) and not os.read(sys.stdin.fileno(), 1)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
