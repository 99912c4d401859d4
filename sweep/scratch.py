"""Ray's temporary folder: held while its driver lives, removed by the next one when it died alone.

The reaper removes the folder of a killed driver; where the reaper was killed too, the next driver
on this machine does.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from filelock import FileLock, Timeout

PREFIX = "gs-"
"""Short: Ray's socket names must stay within 107 bytes."""

HELD = ".held"


def make() -> tuple[str, FileLock]:
    """A new folder, and the lock that says it is in use until this process ends."""
    remove_dead()
    folder = tempfile.mkdtemp(prefix=PREFIX)
    lock = FileLock(Path(folder, HELD))
    lock.acquire(timeout=0)
    return folder, lock


def remove_dead() -> None:
    """Remove the folders of drivers that are gone."""
    for held in Path(tempfile.gettempdir()).glob(f"{PREFIX}*/{HELD}"):
        lock = FileLock(held)
        try:
            lock.acquire(timeout=0)
        except (Timeout, OSError):
            continue
        shutil.rmtree(held.parent, ignore_errors=True)
        lock.release()
