"""Kills a forked process before its n-th operation on the disk.

Counted are opening for writing, fsync, rename, unlink, making and removing a folder. Every fsync
counts twice: before the bytes are whole (the end of the file is cut off), and after.
"""

from __future__ import annotations

import fcntl
import os
import signal
import stat
import sys
import traceback
from collections.abc import Callable

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
EVENTS = (
    "storage.write",
    "os.rename",
    "os.remove",
    "os.mkdir",
    "os.rmdir",
    "os.truncate",
    "os.link",
)
"""Audit events (`sys.addaudithook`) that count as operations, beside `open` for writing."""


class Killer:
    """Kills this process before its n-th operation on the disk."""

    def __init__(self, at: int) -> None:
        self.left = at
        self._fsync = os.fsync

    def arm(self) -> None:
        """Begin to count operations."""
        os.fsync = self._torn_fsync
        sys.addaudithook(self._hook)

    def _count(self) -> bool:
        self.left -= 1
        return self.left == 0

    def _hook(self, event: str, args: tuple[object, ...]) -> None:
        writes = event == "open" and isinstance(args[2], int) and args[2] & WRITING
        if (writes or event in EVENTS) and self._count():
            die()

    def _torn_fsync(self, descriptor: int) -> None:
        found = os.fstat(descriptor)
        writable = fcntl.fcntl(descriptor, fcntl.F_GETFL) & (os.O_WRONLY | os.O_RDWR)
        if stat.S_ISREG(found.st_mode) and writable and self._count():
            os.ftruncate(descriptor, max(0, found.st_size - 7))
            die()
        if self._count():
            die()
        self._fsync(descriptor)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def in_child(work: Callable[[], None], at: int = 0) -> bool:
    """Run `work` in a fork that is killed before its `at`-th operation; whether it finished."""
    child = os.fork()
    if not child:
        code = 1
        try:
            if at:
                Killer(at).arm()
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return False
    if os.WEXITSTATUS(status):
        raise SystemExit(f"a child failed at {at}")
    return True
