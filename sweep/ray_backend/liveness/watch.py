"""Notices that the Ray of this driver is gone: a thread that looks once a second.

Ray itself takes a minute for that and then ends the driver in C++ code. Of a local Ray the
processes are watched; of a cluster the raylet on this host, and whether its global control store
(GCS) can be reached. The same thread renews the leases of the workers.
"""

from __future__ import annotations

import logging
import queue
import subprocess
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import psutil

log = logging.getLogger(__name__)

POLL_SECONDS = 0.5
"""Seconds between two looks."""

GCS_GRACE_SECONDS = 45.0
"""How long a cluster's GCS may be out of reach: one that is kept alive elsewhere comes back."""

CALL_SECONDS = 60.0
"""How long Ray may take to answer a question of the driver's."""

CHECK_POLL_SECONDS = 0.1
"""Seconds between two looks at whether Ray is gone, while an answer is waited for."""


class RayLostError(RuntimeError):
    """The Ray that this driver is connected to is gone; its text says what ended."""


def of_processes(processes: Iterable[subprocess.Popen[bytes]]) -> Callable[[], str]:
    """A look at processes that this one has started: the reason when one has ended, else ""."""
    watched = list(processes)

    def look() -> str:
        for process in watched:
            if (code := process.poll()) is not None:
                name = Path(str(process.args[0])).name  # type: ignore[index]
                how = f"signal {-code}" if code < 0 else f"exit code {code}"
                return f"its {name} ended ({how})"
        return ""

    return look


def of_cluster(
    raylet_socket: str,
    reachable: Callable[[], bool],
    clock: Callable[[], float] = time.monotonic,
    grace: float | None = None,
) -> Callable[[], str]:
    """A look at a cluster that was joined: the reason when it is gone, else "".

    Args:
        raylet_socket: Path of the socket of the raylet on this host; a raylet that this process
            cannot see, as in another container, is not watched.
        reachable: Whether the GCS accepts connections.
        clock: Monotonic seconds.
        grace: Seconds for which the GCS may be out of reach; None: `GCS_GRACE_SECONDS`.
    """
    limit = GCS_GRACE_SECONDS if grace is None else grace
    raylet = raylet_of(raylet_socket)
    last = clock()

    def look() -> str:
        nonlocal last
        if raylet is not None and not _runs(raylet):
            return "the raylet on this host ended"
        now = clock()
        if reachable():
            last = now
        elif now - last > limit:
            return f"its head has not answered for {now - last:.0f} s"
        return ""

    return look


def raylet_of(socket: str) -> psutil.Process | None:
    """The raylet with this socket, if this process can see it."""
    for process in psutil.process_iter(["cmdline"]) if socket else ():
        command = process.info["cmdline"] or [""]
        if command[0].endswith("raylet") and any(socket in word for word in command):
            return process
    return None


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


class Watch:
    """Looks at Ray while it is connected, and asks it questions that cannot block for ever."""

    def __init__(
        self,
        look: Callable[[], str],
        beat: Callable[[], None] = lambda: None,
        *,
        quick: bool = True,
    ) -> None:
        self.lost = ""
        """Why Ray is gone; empty while it is there."""
        self._look = look
        self._quick = quick
        """Whether a look takes no time, so that others than the thread may take one."""
        self._beat = beat
        """Called at each look; its errors are logged."""
        self._closed = threading.Event()
        self._looking = threading.Lock()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def close(self) -> None:
        """Look no more; the thread has ended when this returns."""
        self._closed.set()
        if self._thread.ident is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def check(self, wait: float = 0.0) -> None:
        """Look now, and again for `wait` seconds.

        Raises:
            RayLostError: Ray is gone.
        """
        until = time.monotonic() + wait
        while True:
            if self._quick:
                self._look_once()
            if self.lost:
                raise RayLostError(self.lost)
            if time.monotonic() >= until:
                return
            time.sleep(CHECK_POLL_SECONDS)

    def give_up(self, reason: str) -> None:
        """Take Ray for gone.

        Raises:
            RayLostError: always.
        """
        self.lost = self.lost or reason
        raise RayLostError(self.lost)

    def call(self, question: Callable[[], Any], seconds: float = CALL_SECONDS) -> Any:
        """What `question` returns, asked in a thread of its own.

        Many of Ray's calls wait in C++ for a GCS that does not answer, and no signal wakes them.

        Raises:
            RayLostError: Ray is gone, or has not answered within `seconds`.
        """
        answers: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()

        def ask() -> None:
            try:
                answers.put((question(), None))
            except BaseException as error:
                answers.put((None, error))

        self.check()
        threading.Thread(target=ask, daemon=True).start()
        until = time.monotonic() + seconds
        while True:
            try:
                answer, error = answers.get(timeout=CHECK_POLL_SECONDS)
            except queue.Empty:
                self.check()
                if time.monotonic() > until:
                    self.give_up(f"it has not answered for {seconds:.0f} s")
                continue
            if error is not None:
                raise error
            return answer

    def _run(self) -> None:
        while not self.lost and not self._closed.wait(POLL_SECONDS):
            self._look_once()
            try:
                self._beat()
            except Exception as error:
                log.debug("a renewal failed: %s", error)
        if self.lost:
            log.warning("Ray is gone: %s", self.lost)

    def _look_once(self) -> None:
        with self._looking:
            self.lost = self.lost or self._look()
