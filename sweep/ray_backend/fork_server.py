"""A process that has imported what every worker imports, and forks the workers.

    server = ForkServerHandle(path, "cpu", environment)     # Ray may be told of it
    server.start()                                          # it imports while Ray starts
    ...                                                     # Ray starts `fork_client` for a worker
    server.close()

Importing torch, transformers and PEFT takes seconds of a core. Here it is done once for a machine,
while the driver still starts Ray, and a worker is there as fast as a process can be forked. Only
for a local Ray and trials on the CPU: the drivers of devices do not survive a fork.

`python -m sweep.ray_backend.fork_server FD DEVICE` serves on the listening socket FD that it has
inherited, until its standard input ends: the driver holds the other end.
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

from sweep.ray_backend.fork_client import OOM_SCORE, is_same_user

MAX_QUEUED = 128
"""Connections that may wait to be accepted: more workers than Ray starts at once."""

REQUEST_SECONDS = 5.0
"""Seconds in which a client must have sent its request."""


class ForkServerHandle:
    """The driver's side; a socket listens at `path` before the server runs: clients wait."""

    def __init__(self, path: Path, device: str, environment: Mapping[str, str]) -> None:
        self.path = path
        self.process: subprocess.Popen[bytes] | None = None
        self._device = device
        self._environment = environment
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen(MAX_QUEUED)

    def start(self) -> None:
        """Start the server process, which begins to import."""
        with self._listener as listener:
            # -P: import nothing from the working directory; only trials may.
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
                # Ctrl-C is for the driver to handle.
                start_new_session=True,
            )

    def close(self) -> None:
        """End the server, and workers that Ray has not ended before."""
        self._listener.close()
        if self.process is not None:
            self.process.communicate()


@dataclass(slots=True)
class ForkServer:
    """The server process: forks a worker for each client and reports its exit code."""

    listener: socket.socket
    selector: selectors.BaseSelector = field(default_factory=selectors.DefaultSelector)
    clients: dict[int, socket.socket] = field(default_factory=dict)
    """The connection of the client that waits for a child, by the child's process id."""
    wakeup_fd: int = -1

    def serve(self, driver: int) -> None:
        """Fork workers until the file descriptor `driver` reads end of file."""
        signals, self.wakeup_fd = os.pipe()
        os.set_blocking(self.wakeup_fd, False)
        signal.set_wakeup_fd(self.wakeup_fd)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        for file in (self.listener, driver, signals):
            self.selector.register(file, selectors.EVENT_READ)
        while True:
            for key, _ in self.selector.select():
                if key.fileobj == driver:
                    self._kill_children()
                    return
                if key.fileobj is self.listener:
                    self._fork_worker(self.listener.accept()[0])
                elif key.fileobj == signals:
                    os.read(signals, 4096)
                    self._reap_children()
                else:
                    self.client_gone(key.data)

    def _fork_worker(self, connection: socket.socket) -> None:
        connection.settimeout(REQUEST_SECONDS)
        if not is_same_user(connection):
            connection.close()
            return
        try:
            size, files, _, _ = socket.recv_fds(connection, 4, 3)
            request = json.loads(_read(connection, int.from_bytes(size, "big")))
        except (OSError, ValueError):
            connection.close()
            return
        child = os.fork()
        if not child:
            self._detach(connection)
            _run_worker(request, files)
        for file in files:
            os.close(file)
        self.clients[child] = connection
        self.selector.register(connection, selectors.EVENT_READ, child)
        with contextlib.suppress(OSError):
            connection.sendall(b"+")

    def _detach(self, connection: socket.socket) -> None:
        """In a child: leave the server's process group, signals and files.

        Ray ends a worker together with its process group.
        """
        os.setpgid(0, 0)
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for key in list(self.selector.get_map().values()):
            if key.fd != 0:
                os.close(key.fd)
        os.close(self.wakeup_fd)
        self.selector.close()
        connection.close()

    def _reap_children(self) -> None:
        """Send the exit codes of children that have ended to their clients."""
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                child, status = ended
                if (connection := self.clients.pop(child, None)) is not None:
                    self.selector.unregister(connection)
                    with contextlib.suppress(OSError), connection:
                        code = os.waitstatus_to_exitcode(status)
                        connection.sendall(bytes([code if code >= 0 else 128 - code]))

    def client_gone(self, child: int) -> None:
        """End a child whose client has been ended: Ray ends a worker by ending its client."""
        connection = self.clients.pop(child, None)
        if connection is None:
            return  # Both have ended between two looks, and the child came first.
        with connection:
            self.selector.unregister(connection)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)

    def _kill_children(self) -> None:
        """End all workers: one without a driver would wait for Ray and make its folder anew."""
        for child in self.clients:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)


def _read(connection: socket.socket, size: int) -> bytes:
    received = b""
    while len(received) < size:
        part = connection.recv(size - len(received))
        if not part:
            raise OSError("the client is gone")
        received += part
    return received


def _run_worker(request: Mapping[str, Any], files: Sequence[int]) -> None:
    """Become the worker that a client asks for; never returns.

    Args:
        request: What `fork_client.request_worker` sends.
        files: The client's standard input, output and error.
    """
    code = 1
    try:
        for place, file in enumerate(files):
            os.dup2(file, place)
            os.close(file)
        Path(OOM_SCORE).write_text(request["oom_score"])
        os.environ.clear()
        os.environ.update(request["environment"])
        os.chdir(request["folder"])
        sys.argv[:] = request["arguments"]
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
    """Import what a worker needs, except Ray.

    Ray reads its environment when it is imported, and takes a tenth of a second once the others
    are there.
    """
    from sweep.ray_backend.worker import import_trial
    from trial import preload

    import_trial(device)
    # No trial waited for these imports, so none is charged for them.
    preload.discard_import_seconds()


def main(listener: int, device: str) -> None:
    """Import everything, then serve; `listener` is a file descriptor that the driver opened."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with socket.socket(fileno=listener) as server:
        _import_all(device)
        ForkServer(server).serve(0)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
