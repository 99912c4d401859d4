"""Ray's temporary folder: held while its driver lives, removed by the next one when it died alone.

The reaper removes the folder of a killed driver; where the reaper was killed too, the next driver
on this machine does.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path

from filelock import FileLock, Timeout

PREFIX = "gs-"
"""Short: Ray's socket names must stay within 107 bytes."""

HELD = ".held"

BARE_SECONDS = 3600.0
"""Age at which a folder without a lock is nobody's: a worker that outlived its Ray made it."""


def make() -> tuple[str, FileLock]:
    """A new folder, and the lock that says it is in use until this process ends."""
    remove_dead()
    folder = tempfile.mkdtemp(prefix=PREFIX)
    lock = FileLock(Path(folder, HELD))
    lock.acquire(timeout=0)
    return folder, lock


def remove_dead() -> None:
    """Remove the folders of drivers that are gone."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        if not (folder / HELD).exists() and _age(folder) > BARE_SECONDS:
            shutil.rmtree(folder, ignore_errors=True)
    for held in Path(tempfile.gettempdir()).glob(f"{PREFIX}*/{HELD}"):
        lock = FileLock(held)
        try:
            lock.acquire(timeout=0)
        except (Timeout, OSError):
            continue
        shutil.rmtree(held.parent, ignore_errors=True)
        lock.release()


def _age(folder: Path) -> float:
    try:
        return time.time() - folder.lstat().st_mtime
    except OSError:
        return 0.0
