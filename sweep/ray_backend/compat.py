"""Ray's private names and settings that this backend relies on, in one place.

Read from Ray 2.60.0 (`RAY_VERSION`); none of this can be had by Ray's public options. A method is
replaced only where it exists: a release without it starts as Ray does by default.
`tests/test_sweep/ray_backend/test_compat.py` names what a new release has lost.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from functools import wraps
from typing import Any

log = logging.getLogger(__name__)

RAY_VERSION = "2.60.0"
"""The release that every name here was read from."""

ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_enable_metrics_collection": "0",
    "RAY_prestart_worker_first_driver": "0",
    "RAY_gcs_rpc_server_reconnect_timeout_s": "86400",
}
"""Set before Ray is imported: no telemetry, no metrics agent, no deduplicated log lines, no hidden
devices for actors without one, and no idle worker process for each core of the machine. A process
that has lost Ray's global control store (GCS) would end itself after a minute, in C++ and without
cleaning up; here `sweep.ray_backend.liveness.watch` notices that, and within seconds."""

KEEP_MODULES = {"RAY_EXPERIMENTAL_NOSET_HABANA_VISIBLE_MODULES": "1"}
"""Keeps Ray from setting HABANA_VISIBLE_MODULES in a worker."""

CLUSTER_SWITCH = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""Whether Ray listens on more than loopback; read into `ray_constants.ENABLE_RAY_CLUSTER`."""

UNUSED_PROCESSES = ("start_monitor", "start_api_server", "start_log_monitor")
"""Methods of `ray._private.node.Node` that start processes of a head node which no sweep uses: the
autoscaler, the dashboard's server (started and waited for even without a dashboard), and the
forwarding of logs to the driver. They cost a second at the start and one more at the end."""

START_PROCESSES = "start_ray_processes"
"""The method of `Node` that starts the object store and the raylet."""

SETUP_WORKER = "setup_worker.py"
DEFAULT_WORKER = "default_worker.py"
"""Scripts in `ray/_private/workers`: the first prepares a worker's environment and runs the second.
`fork_client.py`, which stands in for the first, names it itself, as it imports nothing of this
package."""

PROGRAM_FOLDERS = ("/ray/_private/", "/ray/core/", "/ray/dashboard/")
"""Folders of Ray's package that hold every program it starts; one is in each command line."""

CREATION_FAILED = "creation task"
"""In the first line of an `ActorDiedError` whose actor raised in its constructor."""

SOCKET_BYTES = (104 if sys.platform == "darwin" else 108) - 1
"""Longest path of a Unix socket that the kernel, and with it Ray, accepts."""

SESSION = "session_0000-00-00_00-00-00_000000"
"""As long as the name of a session's folder, to which Ray adds the driver's process id."""

LONGEST_SOCKET = "sockets/plasma_store"
"""Of a session's sockets the one with the longest path."""

TOKEN = "RAY_AUTH_TOKEN"
"""Environment variable of the token."""

TOKEN_LOADER = "AuthenticationTokenLoader"
"""The class of `ray._raylet` that reads the token once and keeps it; its `reset_cache` forgets."""

TOKEN_BYTES = 32
"""Of the token without which no process may talk to a local Ray: `own_token`."""

PYTHON_COMMAND = "_build_python_executable_command_memory_profileable"
"""The function of `ray._private.services` that begins the commands of Ray's programs in Python;
the first argument is the program's name."""

AGENTS = ("dashboard_agent", "runtime_env_agent")
"""Those that the raylet starts."""

REGISTRATION_TIMEOUT_SECONDS = 90.0
"""Longest wait for a node, in seconds: a loaded machine may take half a minute."""

POLL_SECONDS = 0.02
"""Seconds between two looks at whether the node is registered."""

GCS_SECONDS = 5.0
"""Longest wait for one answer of the GCS while a node starts."""

POPEN = "ConsolePopen"
"""The class in `ray._private.services` by which Ray starts its processes."""

SET_SIGTERM = "set_sigterm_handler"
"""The function of `ray._private.utils` by which Ray sets its handlers of SIGTERM."""

PRINT = "print_to_stdstream"
"""The function of `ray._private.worker` that prints what a node reports as an error."""


class NotUpError(RuntimeError):
    """A Ray that was started here is not up."""


def set_environment() -> None:
    """Set `ENVIRONMENT` where the user has not; call before Ray is imported."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def temp_dir_option(folder: str) -> dict[str, str]:
    """The argument of `ray.init` that says where Ray keeps its sockets and logs."""
    return {"_temp_dir": folder}


def longest_socket() -> str:
    """The longest path of a socket below Ray's temporary folder; digits stand for others."""
    return f"{SESSION}_{os.getpid()}/{LONGEST_SOCKET}"


@contextlib.contextmanager
def own_token() -> Iterator[None]:
    """Give a Ray that starts here a random token, which only the environment of processes holds.

    Without one Ray makes a token by itself and keeps it in `~/.ray`, readable for everyone. A token
    of the user's belongs to a cluster; it is set again afterwards.
    """
    users = os.environ.get(TOKEN)
    os.environ[TOKEN] = secrets.token_hex(TOKEN_BYTES)
    forget_token()
    try:
        yield
    finally:
        del os.environ[TOKEN]
        if users is not None:
            os.environ[TOKEN] = users


def forget_token() -> None:
    """Let this process read the token anew when it next needs one."""
    from ray import _raylet

    loader: Any = getattr(_raylet, TOKEN_LOADER, None)
    if loader is not None:
        loader.instance().reset_cache()


@contextlib.contextmanager
def agents_by(script: str) -> Iterator[None]:
    """Have the agents of a Ray that starts here begun by a script: `SCRIPT PROGRAM ARGUMENTS`."""
    from ray._private import services

    begin: Any = getattr(services, PYTHON_COMMAND, None)
    if begin is None:
        yield
        return

    @wraps(begin)
    def wrapped(component: str, *args: Any, **kwargs: Any) -> list[str]:
        command: list[str] = begin(component, *args, **kwargs)
        return [*command, script] if component in AGENTS else command

    setattr(services, PYTHON_COMMAND, wrapped)
    try:
        yield
    finally:
        setattr(services, PYTHON_COMMAND, begin)


@contextlib.contextmanager
def loopback_only() -> Iterator[None]:
    """Let a Ray that starts here listen on loopback alone; its default is every interface.

    Ray has a switch for that, meant for systems on which it forms no clusters. A user who has set
    `CLUSTER_SWITCH` decides otherwise.
    """
    from ray._private import ray_constants

    before = ray_constants.ENABLE_RAY_CLUSTER
    users = os.environ.get(CLUSTER_SWITCH)
    os.environ.setdefault(CLUSTER_SWITCH, "0")
    ray_constants.ENABLE_RAY_CLUSTER = os.environ[CLUSTER_SWITCH] not in ("0", "false")
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before
        if users is None:
            del os.environ[CLUSTER_SWITCH]


@contextlib.contextmanager
def minimal_node(
    setup_worker: str, on_object_store: Callable[[], None] | None = None
) -> Iterator[None]:
    """Let a Ray that starts here skip `UNUSED_PROCESSES` and return as soon as it is up.

    Args:
        setup_worker: Script that starts workers in the place of Ray's `SETUP_WORKER`.
        on_object_store: Called once the object store is up, and not earlier: work beside the
            store's start would delay it, and a late store costs Ray a second.

    Raises:
        NotUpError: a process of Ray's ended while it started, or the node is not up in time.
    """
    from ray._private.node import Node

    before = {name: getattr(Node, name) for name in UNUSED_PROCESSES if hasattr(Node, name)}
    for name in before:
        setattr(Node, name, _do_nothing)
    if hasattr(Node, START_PROCESSES):
        start = before[START_PROCESSES] = getattr(Node, START_PROCESSES)
        setattr(Node, START_PROCESSES, _until_registered(start, setup_worker, on_object_store))
    try:
        yield
    finally:
        for name, method in before.items():
            setattr(Node, name, method)


def _do_nothing(*args: Any, **kwargs: Any) -> None:
    """Stands in for what Ray should not do here."""


def _until_registered(
    start: Any, setup_worker: str, on_object_store: Callable[[], None] | None
) -> Any:
    """`Node.start_ray_processes`, and the wait for the node's registration.

    Ray waits for that too, but looks once a second only.
    """

    @wraps(start)
    def wrapped(node: Any) -> None:
        parameters: Any = getattr(node, "_ray_params", None)
        if getattr(parameters, "setup_worker_path", None):
            parameters.setup_worker_path = setup_worker
        start(node)
        until, callback = time.monotonic() + REGISTRATION_TIMEOUT_SECONDS, on_object_store
        while not _is_registered(node):
            if ended := [name for name, process in _processes(node) if process.poll() is not None]:
                raise NotUpError(f"its {ended[0]} ended while it started")
            if time.monotonic() > until:
                raise NotUpError(f"it was not up within {REGISTRATION_TIMEOUT_SECONDS:.0f} s")
            if callback is not None and os.path.exists(node.plasma_store_socket_name):
                callback()
                callback = None
            time.sleep(POLL_SECONDS)
        if callback is not None:
            callback()

    return wrapped


def _is_registered(node: Any) -> bool:
    # An error here is none yet: what is behind it shows in the processes or in the time.
    with contextlib.suppress(Exception):
        return bool(node.get_gcs_client().get_all_node_info(timeout=GCS_SECONDS))
    return False


def _processes(node: Any) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    for name, started in getattr(node, "all_processes", {}).items():
        yield from ((name, info.process) for info in started)


@contextlib.contextmanager
def own_sessions(processes: list[subprocess.Popen[bytes]]) -> Iterator[None]:
    """Start each process of a Ray that starts here in a session of its own; add it to `processes`.

    A signal to the driver's process group then reaches the driver alone, which needs its Ray to
    write checkpoints. What such a process starts stays in its session, workers included.
    """
    from ray._private import services

    popen: Any = getattr(services, POPEN, None)

    def start(*args: Any, **kwargs: Any) -> subprocess.Popen[bytes]:
        process: subprocess.Popen[bytes] = popen(*args, **kwargs, start_new_session=True)
        processes.append(process)
        return process

    if popen is not None:
        setattr(services, POPEN, start)
    try:
        yield
    finally:
        if popen is not None:
            setattr(services, POPEN, popen)


@contextlib.contextmanager
def own_signals() -> Iterator[None]:
    """Keep this process's handler of SIGTERM: `ray.init` sets others, which end the process."""
    from ray._private import utils

    before: Any = getattr(utils, SET_SIGTERM, None)
    if before is not None:
        setattr(utils, SET_SIGTERM, _do_nothing)
    try:
        yield
    finally:
        if before is not None:
            setattr(utils, SET_SIGTERM, before)


def log_errors_of_nodes() -> None:
    """Write what Ray's nodes report to the log; Ray prints it, with the ends of its own logs."""
    from ray._private import worker

    def write(data: Mapping[str, Any], *args: Any, **kwargs: Any) -> None:
        log.warning("%s: %s", data.get("pid", "ray"), "\n".join(map(str, data.get("lines", ()))))

    if hasattr(worker, PRINT):
        setattr(worker, PRINT, write)


def own_node(ray: Any) -> tuple[str, str, str]:
    """Id of this driver's node, its raylet's socket and the GCS's address; empty when unknown."""
    node = getattr(ray._private.worker, "_global_node", None)
    if node is None:
        return "", "", ""
    values = (getattr(node, name, None) or "" for name in ("raylet_socket_name", "gcs_address"))
    return ray.get_runtime_context().get_node_id(), *map(str, values)  # type: ignore[return-value]
