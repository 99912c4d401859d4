"""A worker ends when its driver, or the Ray that started it, is gone.

Nobody observes what such a worker trains, and the next driver resumes its trials in the same
folders. Two rules end it:

- The kernel sends it SIGKILL when its parent process ends: Ray's raylet or the fork server, which
  end with the driver (`end_with_parent`; Linux).
- On another host than the driver's, whose raylet lives on: the driver renews a lease every few
  seconds, and a worker whose lease has run out ends itself (`Lease`).
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Callable

LEASE_SECONDS = 60.0
"""How long a lease lasts: a driver that does not get to renew it for so long is taken for dead."""

RENEWAL_SECONDS = 5.0
"""Seconds between two renewals."""

PR_SET_PDEATHSIG = 1
"""Linux's `prctl`: the signal that a process gets when its parent ends."""


def end_with_parent() -> None:
    """Let the kernel end this process with its parent; does nothing but on Linux."""
    if sys.platform != "linux":
        return
    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # It ended before the kernel knew.
        end_now()


def end_now() -> None:
    """End this process at once, whatever its threads do: what is on disk is whole at any moment."""
    os.kill(os.getpid(), signal.SIGKILL)


class Lease:
    """A promise of the driver to be there, which runs out unless it is renewed."""

    def __init__(
        self, seconds: float = LEASE_SECONDS, expired: Callable[[], None] = end_now
    ) -> None:
        self._seconds = seconds
        self._expired = expired
        self._renewed = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def renew(self) -> None:
        """Begin the lease, or let it last `seconds` from now."""
        self._renewed.set()
        if self._thread.ident is None:
            self._thread.start()

    def _watch(self) -> None:
        while self._renewed.wait(self._seconds):
            self._renewed.clear()
        self._expired()
