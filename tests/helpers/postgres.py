"""A temporary PostgreSQL server on a free loopback port."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

PASSWORD = "open sesame/42@home"
"""Awkward on purpose: it has to be percent-encoded in a URL."""

ENCODED = "open%20sesame%2F42%40home"


def binaries() -> Path | None:
    """The folder of initdb and pg_ctl; None when PostgreSQL is not installed."""
    found = shutil.which("initdb")
    places = [Path(found).resolve().parent] if found else []
    places += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((place for place in places if (place / "initdb").exists()), None)


def why_not() -> str:
    """Why no server can be started here; empty when one can."""
    try:
        import psycopg2  # noqa: F401
    except ImportError:
        return "psycopg2 is not installed"
    if binaries() is None:
        return "PostgreSQL is not installed (apt-get install postgresql)"
    if os.getuid() == 0 and _unprivileged() is None:
        return "PostgreSQL does not run as root, and there is no user `postgres`"
    return ""


def _unprivileged() -> str | None:
    try:
        return pwd.getpwnam("postgres").pw_name
    except KeyError:
        return None


@dataclass(frozen=True)
class Server:
    """A server that can be stopped, and started again with what it holds."""

    url: str
    start: Callable[[], None]
    stop: Callable[[], None]


@contextmanager
def server() -> Iterator[str]:
    """A running server; yields the URL of an empty database."""
    with stoppable_server() as running:
        yield running.url


@contextmanager
def stoppable_server() -> Iterator[Server]:
    """A running server with an empty database."""
    folder = Path(tempfile.mkdtemp(prefix="pg"))
    user = _unprivileged() if os.getuid() == 0 else None
    if user:
        shutil.chown(folder, user)
    here, port = binaries(), _free_port()

    def call(*words: str) -> None:
        subprocess.run(words, user=user, check=True, cwd=folder, stdout=subprocess.DEVNULL)

    (folder / "password").write_text(PASSWORD)
    if user:
        shutil.chown(folder / "password", user)
    data = str(folder / "data")
    call(
        *(f"{here}/initdb", "-D", data, "-U", "sweeper", "--pwfile", str(folder / "password")),
        *("-A", "scram-sha-256", "--no-sync", "-E", "UTF8", "--locale", "C"),
    )
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder}"
    control = (f"{here}/pg_ctl", "-D", data, "-l", str(folder / "log"))
    running = Server(
        f"postgresql+psycopg2://sweeper:{ENCODED}@127.0.0.1:{port}/postgres",
        start=lambda: call(*control, "-w", "-o", options, "start"),
        # As a crash does: connections are cut in the middle.
        stop=lambda: call(*control, "-m", "immediate", "-w", "stop"),
    )
    try:
        running.start()
        yield running
    finally:
        with suppress(subprocess.CalledProcessError):  # It may be stopped.
            running.stop()
        shutil.rmtree(folder, ignore_errors=True)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
