"""Start the ranks of one trial as processes of this machine: `python -m trial DIR --world-size 2`.

Each rank has a session of its own. Signals are passed to rank 0, which informs the others. When one
rank fails the others are killed after a grace period, and when this process dies they die too.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from trial.devices.detect import usable_cores
from trial.distributed.rank_group import LISTENER, rank_environment
from trial.store.control import stop_signals

PARENT = "GAUDI_SWEEP_PARENT"
GRACE_SECONDS = 10.0
"""How long the other ranks may go on by themselves once one has failed."""
SUCCESS_CODES = (0, 130)
"""Exit codes of a rank that has finished, or was interrupted at a checkpoint."""
PR_SET_PDEATHSIG = 1


def spawn(command: Sequence[str], size: int) -> int:
    """Run `command` as `size` ranks; returns the first failure's exit code, else rank 0's."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        started = [_start(command, rank, size, listener) for rank in range(size)]
    try:
        with _signals_to(started[0]):
            return _wait(started)
    finally:
        for process in started:
            process.kill()
            process.wait()


def run_process(command: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run a process that receives our signals and dies with us; returns its exit code."""
    variables = {**environment, PARENT: str(os.getpid())}
    process = subprocess.Popen(command, env=variables, start_new_session=True)
    try:
        with _signals_to(process):
            return process.wait()
    finally:
        process.kill()
        process.wait()


def _start(
    command: Sequence[str], rank: int, size: int, listener: socket.socket
) -> subprocess.Popen[bytes]:
    port = int(listener.getsockname()[1])
    variables = rank_environment(rank, ["here"] * size, "127.0.0.1", port)
    environment = {**os.environ, **variables, PARENT: str(os.getpid())}
    # By default every rank would start a thread on each core.
    environment.setdefault("OMP_NUM_THREADS", str(max(1, usable_cores() // size)))
    sockets = [listener.fileno()] if rank == 0 else []
    if sockets:
        environment[LISTENER] = str(sockets[0])
    return subprocess.Popen(command, env=environment, pass_fds=sockets, start_new_session=True)


@contextmanager
def _signals_to(process: subprocess.Popen[bytes]) -> Iterator[None]:
    names = stop_signals()
    before = [signal.signal(name, lambda sent, _: process.send_signal(sent)) for name in names]
    try:
        yield
    finally:
        for name, handler in zip(names, before, strict=True):
            signal.signal(name, handler)


def _wait(started: Sequence[subprocess.Popen[bytes]]) -> int:
    """Wait for all processes, or until `GRACE_SECONDS` after the first failure."""
    handles = {os.pidfd_open(process.pid): process for process in started}
    deadline: float | None = None
    failed: int | None = None
    while handles and (deadline is None or time.monotonic() < deadline):
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        for handle in select.select(list(handles), [], [], left)[0]:
            os.close(handle)
            process = handles.pop(handle)
            code = process.wait()
            if code not in SUCCESS_CODES and failed is None:
                failed, deadline = code, time.monotonic() + GRACE_SECONDS
                print(f"rank {started.index(process)} ended with code {code}", file=sys.stderr)
    for handle in handles:
        os.close(handle)
    first = started[0].poll()
    return int(first or 0) if failed is None else failed


def end_with_parent() -> None:
    """In a process that `spawn` or `run_process` started: die when the process that did dies."""
    parent = os.environ.pop(PARENT, None)
    if parent is None:
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(parent):
        os._exit(1)
