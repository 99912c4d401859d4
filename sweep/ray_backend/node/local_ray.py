"""A Ray that is started on this machine.

It has a temporary folder that is locked while its driver lives, and a reaper process that removes
it when the driver is killed. Where the reaper was killed too, the next driver of the same user
removes the folder.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from sweep.ray_backend import compat, fork_client, reaper
from sweep.ray_backend.fork_client import FORK_SERVER
from sweep.ray_backend.fork_server import ForkServerHandle
from sweep.ray_backend.liveness.sessions import kill_sessions
from sweep.ray_backend.local import agent
from sweep.ray_backend.local.temp_folder import TempFolder
from sweep.ray_backend.node.settings import RaySettings
from trial.devices.detect import detected_device, usable_cores
from trial.store.disk_full import FULL

log = logging.getLogger(__name__)

FORK_CLIENT = Path(fork_client.__file__)
"""Starts workers in the place of Ray's own script."""

AGENT = Path(agent.__file__)
"""Starts Ray's agents."""

OBJECT_STORE_BYTES = 100 * 1024 * 1024
"""Only small events pass through the object store."""

START_TRIES = 2
"""How often a local Ray is started before it is given up."""

BUSY = 2.0
"""A load average of so many times the cores makes a machine too busy to start quickly."""

NEEDED_BYTES = 1_000_000
"""With less free space than that in its temporary folder, a Ray that does not start lacks space."""


def start_local_ray(
    ray: Any, settings: RaySettings, environment: Mapping[str, str], options: Mapping[str, Any]
) -> LocalRay:
    """Start a Ray on this machine, with a second try; the arguments are those of `LocalRay.start`.

    Raises:
        ConnectionError: it did not come up; its text has the cause.
        ValueError: no folder for temporary files will do.
    """
    failure: BaseException = ConnectionError()
    for _ in range(START_TRIES):
        try:
            return _start_once(ray, settings, environment, options)
        except (Exception, SystemExit) as error:
            if isinstance(error, ValueError):
                raise
            log.warning("Ray did not start", exc_info=error)
            failure = error
            if room := lack_of_room(error):
                raise ConnectionError(f"Ray did not start: {room}") from error
    cause = reason_of_failed_start(failure, os.getloadavg()[0], usable_cores())
    raise ConnectionError(f"Ray did not start, also when tried again: {cause}") from failure


def _start_once(
    ray: Any, settings: RaySettings, environment: Mapping[str, str], options: Mapping[str, Any]
) -> LocalRay:
    own = LocalRay(settings)
    try:
        own.start(ray, environment, options)
    except BaseException:
        own.kill()
        ray.shutdown()
        own.close()
        raise
    return own


def lack_of_room(error: BaseException) -> str:
    """Why no Ray can start in the folder for temporary files, when it is full; else ""."""
    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    if free < NEEDED_BYTES or (isinstance(error, OSError) and error.errno in FULL):
        return f"{folder} is full ({free / 1e6:.1f} MB free); make room there, or set TMPDIR"
    return ""


def reason_of_failed_start(error: BaseException, load: float, cores: int) -> str:
    """Why Ray did not come up, in a line; `load` is the machine's load average."""
    text = (str(error).strip() or repr(error)).split("\n")[0]
    if load > BUSY * cores:
        text += f"; this machine is busy (a load of {load:.0f} on {cores} cores)"
    return text


class LocalRay:
    """A Ray that is started on this machine: its folder, its reaper and its fork server."""

    def __init__(self, settings: RaySettings) -> None:
        self.folder = TempFolder.create()
        self.fork_server: ForkServerHandle | None = None
        self.processes: list[subprocess.Popen[bytes]] = []
        """The first processes of Ray; each leads a session of its own."""
        self._settings = settings
        self._reaper = reaper.start(self.folder.path)

    def start(self, ray: Any, environment: Mapping[str, str], options: Mapping[str, Any]) -> None:
        """Start Ray and connect to it.

        Args:
            ray: The module.
            environment: Environment variables of the workers.
            options: Further arguments of `ray.init`.
        """
        settings, cores = self._settings, usable_cores()
        with (
            compat.loopback_only(),
            compat.own_token(),
            compat.own_sessions(self.processes),
            compat.agents_by(str(AGENT)),
            self.with_fork_server(environment) as start_server,
            compat.minimal_node(str(FORK_CLIENT), start_server),
        ):
            ray.init(
                address="local",
                include_dashboard=False,
                # Ranks on the CPU may share cores; that is slow and not wrong.
                num_cpus=max(cores, settings.cpus_per_trial * settings.devices_per_trial),
                resources=dict(settings.resources),
                object_store_memory=OBJECT_STORE_BYTES,
                **compat.temp_dir_option(str(self.folder.ray)),
                **options,
            )

    @contextlib.contextmanager
    def with_fork_server(
        self, environment: Mapping[str, str]
    ) -> Iterator[Callable[[], None] | None]:
        """Announce a fork server to the Ray that starts inside; yields its `start` or None."""
        settings = self._settings
        device = settings.device if settings.device != "auto" else detected_device()
        if not settings.fork_server or device != "cpu" or sys.platform != "linux":
            yield None
            return
        try:
            self.fork_server = ForkServerHandle(self.folder.fork_server, device, environment)
        except OSError as error:
            log.warning("workers are not forked, each imports by itself: %s", error)
            yield None
            return
        os.environ[FORK_SERVER] = str(self.fork_server.path)
        try:
            yield self.fork_server.start
        finally:
            del os.environ[FORK_SERVER]

    def kill(self) -> None:
        """End all processes of Ray, workers included, and wait for their end."""
        server = self.fork_server.process if self.fork_server is not None else None
        kill_sessions([*self.processes, *([server] if server else [])])

    def close(self) -> None:
        """Clean up once Ray is down."""
        if self.fork_server is not None:
            self.fork_server.close()
        if self._reaper.stdin:
            # Any byte: Ray is down, only its folder is left to remove.
            self._reaper.communicate(b".")
        self.folder.release()
        compat.forget_token()
