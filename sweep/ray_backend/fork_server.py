"""A process that has imported what every worker imports, and whose children are the workers.

    server = ForkServerHandle(path, "cpu", environment)     # Ray may be told of it
    server.start()                                          # it imports while Ray starts
    ...                                                     # Ray starts `fork_client` for a worker
    server.close()

Importing torch, transformers and PEFT takes seconds of a core. Here it is done once for a
machine, while the driver still starts Ray, and a worker is there as fast as a process can be
forked. For a Ray of our own and trials on the CPU: the drivers of devices do not survive a fork.

`python -m sweep.ray_backend.fork_server FILE DEVICE` ends with its standard input, which its
driver holds.
"""

from __future__ import annotations

import contextlib
import json
import os
import runpy
import selectors
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sweep.ray_backend.fork_client import OOM_SCORE

CALLERS = 128
"""Workers that Ray starts at once at most, and that may have to wait."""
PATIENCE = 5.0
"""Seconds in which what a worker's start has to say must have come."""


class ForkServerHandle:
    """The driver's hold on it; from the first it listens at `path`, and who calls early waits."""

    def __init__(self, path: Path, device: str, environment: Mapping[str, str]) -> None:
        self.path = path
        self.process: subprocess.Popen[bytes] | None = None
        self._device = device
        self._environment = environment
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen(CALLERS)

    def start(self) -> None:
        """Let it begin to import."""
        with self._listener as listener:
            # -P: not what lies in the folder that the command was given in; that is for trials.
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    "-P",
                    "-m",
                    "sweep.ray_backend.fork_server",
                    str(listener.fileno()),
                    self._device,
                ],
                stdin=subprocess.PIPE,
                env={**os.environ, **self._environment},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[listener.fileno()],
                # Ctrl-C is the driver's to hear.
                start_new_session=True,
            )

    def close(self) -> None:
        """Let it end, and what is left of its workers; those are Ray's to end before."""
        self._listener.close()
        if self.process is not None:
            self.process.communicate()


@dataclass(slots=True)
class ForkServer:
    """The nursery itself: those who ask, and the children that they wait for."""

    listener: socket.socket
    ears: selectors.BaseSelector = field(default_factory=selectors.DefaultSelector)
    waiting: dict[int, socket.socket] = field(default_factory=dict)
    """Whoever waits for a child, by its process id."""
    waker: int = -1

    def dispatch(self, driver: int) -> None:
        """Start workers until `driver`, a file, ends."""
        wakes, self.waker = os.pipe()
        os.set_blocking(self.waker, False)
        signal.set_wakeup_fd(self.waker)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        for file in (self.listener, driver, wakes):
            self.ears.register(file, selectors.EVENT_READ)
        while True:
            for key, _ in self.ears.select():
                if key.fileobj == driver:
                    self._end()
                    return
                if key.fileobj is self.listener:
                    self._answer(self.listener.accept()[0])
                elif key.fileobj == wakes:
                    os.read(wakes, 4096)
                    self._bury()
                else:
                    self._let_go(key.data)

    def _answer(self, line: socket.socket) -> None:
        """Start a worker for whoever has called."""
        line.settimeout(PATIENCE)
        try:
            size, files, _, _ = socket.recv_fds(line, 4, 3)
            asked = json.loads(_read(line, int.from_bytes(size, "big")))
        except (OSError, ValueError):
            line.close()
            return
        child = os.fork()
        if not child:
            self._leave(line)
            _become(asked, files)
        for file in files:
            os.close(file)
        self.waiting[child] = line
        self.ears.register(line, selectors.EVENT_READ, child)
        with contextlib.suppress(OSError):
            line.sendall(b"+")

    def _leave(self, line: socket.socket) -> None:
        """A child holds none of this, and is no part of it: Ray ends a worker with its group."""
        os.setpgid(0, 0)
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for key in list(self.ears.get_map().values()):
            if key.fd != 0:
                os.close(key.fd)
        os.close(self.waker)
        self.ears.close()
        line.close()

    def _bury(self) -> None:
        """Tell of children that have ended."""
        with contextlib.suppress(ChildProcessError):
            while (found := os.waitpid(-1, os.WNOHANG))[0]:
                child, status = found
                if (line := self.waiting.pop(child, None)) is not None:
                    self.ears.unregister(line)
                    with contextlib.suppress(OSError), line:
                        code = os.waitstatus_to_exitcode(status)
                        line.sendall(bytes([code if code >= 0 else 128 - code]))

    def _let_go(self, child: int) -> None:
        """Who waits for a child has been ended: Ray wants it gone."""
        line = self.waiting.pop(child, None)
        if line is None:
            return  # Both have ended between two looks, and the child came first.
        with line:
            self.ears.unregister(line)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)

    def _end(self) -> None:
        """A worker whose driver was killed would wait for its Ray, and make its folder anew."""
        for child in self.waiting:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)


def _read(line: socket.socket, size: int) -> bytes:
    found = b""
    while len(found) < size:
        part = line.recv(size - len(found))
        if not part:
            raise OSError("who has called is gone")
        found += part
    return found


def _become(asked: Mapping[str, Any], files: Sequence[int]) -> None:
    """Be the worker that Ray has asked for; never returns."""
    code = 1
    try:
        for place, file in enumerate(files):
            os.dup2(file, place)
            os.close(file)
        Path(OOM_SCORE).write_text(asked["oom_score"])
        os.environ.clear()
        os.environ.update(asked["environment"])
        os.chdir(asked["folder"])
        sys.argv[:] = asked["words"]
        runpy.run_path(sys.argv[0], run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _import_all(device: str) -> None:
    """What a worker needs, so that it finds it there.

    But for Ray, which reads its environment when it is imported, and has a tenth of a second's
    work left once the others are there.
    """
    from sweep.ray_backend.worker import import_trial
    from trial import preload

    import_trial(device)
    # Nobody waited for them, and no trial pays.
    preload.discard_import_seconds()


def main(listener: int, device: str) -> None:
    """Import everything, then hear who calls; `listener` is a file that the driver has opened."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with socket.socket(fileno=listener) as ear:
        _import_all(device)
        ForkServer(ear).dispatch(0)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
