"""A Ray of our own on this machine: on loopback alone, and nothing in it that no sweep uses.

Ray's public options end where this begins. What is replaced is looked for first: a release that has
it no longer, or elsewhere, starts as it does by itself.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from functools import wraps
from pathlib import Path
from typing import Any

LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"

UNUSED = ("start_monitor", "start_api_server", "start_log_monitor")
"""Processes of a head node, by what starts them: the autoscaler of a machine that does not grow, a
dashboard's server, which starts and is waited for without a dashboard too, and the forwarding of
logs to a driver that does not want them. A second to start, and one more until they have ended."""

FORK_CLIENT = Path(__file__).with_name("fork_client.py")
"""Starts workers, in the place of Ray's own script."""

REGISTERED_WITHIN = 30.0
"""Seconds that a node is waited for here; Ray itself waits on, and says what is wrong."""
LOOK_EVERY = 0.02


@contextlib.contextmanager
def loopback() -> Iterator[None]:
    """A Ray that starts here listens on loopback alone; by itself it would on every interface.

    Ray has a switch for that, meant for systems on which it forms no clusters. Who sets its
    variable has told otherwise.
    """
    from ray._private import ray_constants

    before = ray_constants.ENABLE_RAY_CLUSTER
    told = os.environ.get(LOOPBACK)
    os.environ.setdefault(LOOPBACK, "0")
    ray_constants.ENABLE_RAY_CLUSTER = os.environ[LOOPBACK] not in ("0", "false")
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before
        if told is None:
            del os.environ[LOOPBACK]


@contextlib.contextmanager
def lean(then: Callable[[], None] | None = None) -> Iterator[None]:
    """A Ray that starts here leaves out what is `UNUSED`, and is ready as soon as it is up.

    Its workers are started by `sweep.ray_backend.fork_client`. `then` is called as soon as it is
    no hindrance: Ray loses a second where its object store is late.
    """
    from ray._private.node import Node

    before = {name: getattr(Node, name) for name in UNUSED if hasattr(Node, name)}
    for name in before:
        setattr(Node, name, _nothing)
    if hasattr(Node, "start_ray_processes"):
        before["start_ray_processes"] = Node.start_ray_processes
        Node.start_ray_processes = _awaited(Node.start_ray_processes, then)
    try:
        yield
    finally:
        for name, method in before.items():
            setattr(Node, name, method)


def _nothing(node: Any, *words: Any, **more: Any) -> None:
    """Start nothing."""


def _awaited(start: Any, then: Callable[[], None] | None) -> Any:
    """The node's own start, until it is known to the cluster: Ray looks once a second only."""

    @wraps(start)
    def wrapped(node: Any) -> None:
        parameters: Any = getattr(node, "_ray_params", None)
        if getattr(parameters, "setup_worker_path", None):
            parameters.setup_worker_path = str(FORK_CLIENT)
        start(node)
        until, waiting = time.monotonic() + REGISTERED_WITHIN, then
        # What goes wrong here goes wrong for Ray's own look as well, which tells it better.
        with contextlib.suppress(Exception):
            client = node.get_gcs_client()
            while not client.get_all_node_info() and time.monotonic() < until:
                if waiting is not None and os.path.exists(node.plasma_store_socket_name):
                    waiting()
                    waiting = None
                time.sleep(LOOK_EVERY)
        if waiting is not None:
            waiting()

    return wrapped
