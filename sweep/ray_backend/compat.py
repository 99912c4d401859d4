"""Ray's private names and settings that this backend relies on, in one place.

Read from Ray 2.60.0 (`RAY_VERSION`); none of this can be had by Ray's public options. A method is
replaced only where it exists: a release without it starts as Ray does by default.
`tests/test_sweep/ray_backend/test_compat.py` names what a new release has lost.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import sys
import time
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any

RAY_VERSION = "2.60.0"
"""The release that every name here was read from."""

ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_enable_metrics_collection": "0",
    "RAY_prestart_worker_first_driver": "0",
}
"""Set before Ray is imported: no telemetry, no metrics agent, no deduplicated log lines, no hidden
devices for actors without one, and no idle worker process for each core of the machine."""

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

REGISTRATION_TIMEOUT_SECONDS = 30.0
"""Longest wait for a node here, in seconds; Ray itself then waits on, and reports what is wrong."""

POLL_SECONDS = 0.02
"""Seconds between two looks at whether the node is registered."""


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


def _do_nothing(node: Any, *args: Any, **kwargs: Any) -> None:
    """Stands in for a method of `Node` that starts a process."""


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
        # What goes wrong here goes wrong for Ray's own wait as well, which reports it better.
        with contextlib.suppress(Exception):
            client = node.get_gcs_client()
            while not client.get_all_node_info() and time.monotonic() < until:
                if callback is not None and os.path.exists(node.plasma_store_socket_name):
                    callback()
                    callback = None
                time.sleep(POLL_SECONDS)
        if callback is not None:
            callback()

    return wrapped
