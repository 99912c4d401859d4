"""The Ray that jobs are placed on: a cluster to join, or a local Ray that is started here.

A local Ray has a temporary folder that is locked while its driver lives, and a reaper process
that removes it when the driver is killed. Where the reaper was killed too, the next driver of the
same user removes the folder.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sweep.ray_backend import compat, reaper
from sweep.ray_backend.fork_client import FORK_SERVER
from sweep.ray_backend.fork_server import ForkServerHandle
from sweep.ray_backend.local.temp_folder import TempFolder
from sweep.ray_backend.worker import TrialWorker
from sweep.spec.hpu_groups import GROUP_SIZES, hpus_per_node
from trial.devices.detect import detected_device, usable_cores

log = logging.getLogger(__name__)

FORK_CLIENT = Path(__file__).with_name("fork_client.py")
"""Starts workers in the place of Ray's own script."""

AGENT = Path(__file__).with_name("local") / "agent.py"
"""Starts Ray's agents."""

OBJECT_STORE_BYTES = 100 * 1024 * 1024
"""Only small events pass through the object store."""

RESOURCE = {"hpu": "HPU", "cuda": "GPU", "cpu": "CPU"}
"""Ray's resource name of each device."""


@dataclass(frozen=True, slots=True)
class RaySettings:
    """What the sweep file and the command line say about devices and workers."""

    device: str = "auto"
    devices_per_trial: int = 1
    cpus_per_trial: int = 1
    concurrency: int | None = None
    """Most jobs at once; None: as many as the cluster holds."""
    expected_jobs: int | None = None
    """Most jobs that will come, when known: no more workers than that are started."""
    address: str | None = None
    """Address of a cluster; None: a local Ray."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Environment variables of the workers."""
    hang_seconds: float | None = None
    """A trial without a sign of life for so long is ended."""
    pack: int = 1
    """Trials that a packed job trains at once; 0: as many as raise the throughput."""
    fork_server: bool = False
    """Fork the workers of a local Ray on CPUs: see `sweep.ray_backend.fork_server`."""
    worker: type = TrialWorker
    """Class of the actors."""
    resources: Mapping[str, float] = field(default_factory=dict)
    """Custom resources of a local Ray: tests place HPU jobs on a machine that has no HPU."""
    refresh_seconds: float = 5.0
    """How long the cluster's size is remembered, and seconds between heartbeats of a worker."""
    startup_seconds: float = 60.0
    """How long a worker may take to start before an idle one takes its job over."""


class Cluster:
    """A connection to Ray: what its nodes hold, and how many jobs fit."""

    def __init__(self, settings: RaySettings) -> None:
        self.settings = settings
        self.device = settings.device
        """Never "auto" once connected."""
        self.ray: Any = None
        """The module; None while there is no connection."""
        self.actor_class: Any = None
        self._own: LocalRay | None = None
        self._capacity = (-float("inf"), 1)

    @property
    def fork_server(self) -> ForkServerHandle | None:
        """The process that forks the workers of a local Ray, if there is one."""
        return self._own.fork_server if self._own else None

    def connect(self) -> None:
        """Connect to the address of the settings, or start a local Ray.

        Raises:
            ConnectionError: there is no Ray at the address.
            ValueError: the machine or the device cannot hold a trial.
        """
        compat.set_environment()
        import ray

        self.ray = ray
        # Once for all workers: Ray takes a class apart and sends it to its nodes each time.
        self.actor_class = ray.remote(self.settings.worker)
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        if self.settings.address:
            self._join(options)
        else:
            self._own = LocalRay(self.settings)
            self._own.start(ray, self.worker_environment(), options)
        if self.device == "auto":
            total = ray.cluster_resources()
            self.device = next((d for d, name in RESOURCE.items() if total.get(name)), "cpu")
        self._refuse_impossible()
        self.request(self.settings.concurrency or 0)

    def _join(self, options: dict[str, Any]) -> None:
        try:
            if not is_reachable(self.settings.address or ""):
                raise ConnectionError(f"no cluster answers at {self.settings.address}")
            self.ray.init(address=self.settings.address, **options)
        except ConnectionError as error:
            raise ConnectionError(
                f"{error}. Is Ray up there, and was it started with the RAY_AUTH_MODE and "
                "RAY_AUTH_TOKEN that are set here? See docs/cluster.md"
            ) from error

    def _refuse_impossible(self) -> None:
        """Raise ValueError when no trial can ever fit; a cluster that is too small may grow."""
        self.bundle_ranks()
        if self.settings.address is None and not self.capacity():
            name = RESOURCE[self.device]
            here = sum(node.get(name, 0) for node in self.nodes())
            raise ValueError(
                f"resources.devices_per_trial: this machine has {here:g} {name}, "
                f"got {self.settings.devices_per_trial}"
            )

    def request(self, jobs: int) -> None:
        """Ask the cluster's autoscaler for room for so many jobs at once; 0 takes it back."""
        if self.settings.address is None or self.settings.concurrency is None:
            return
        from ray.autoscaler.sdk import request_resources

        ranks = jobs * self.settings.devices_per_trial
        request_resources(bundles=[self.rank_resources()] * ranks)

    def nodes(self) -> list[dict[str, float]]:
        """The resources of every living node."""
        return [node["Resources"] for node in self.ray.nodes() if node["Alive"]]

    def rank_resources(self, ranks: int = 1) -> dict[str, float]:
        """The Ray resources that so many ranks of a trial need."""
        if self.device == "cpu":
            return {"CPU": float(self.settings.cpus_per_trial) * ranks}
        return {RESOURCE[self.device]: 1.0 * ranks}

    def bundle_ranks(self) -> int:
        """Ranks that must share a node: those of an aligned group of HPUs.

        Raises:
            ValueError: no aligned groups have as many HPUs as a trial is to have.
        """
        if self.device != "hpu":
            return 1
        size = hpus_per_node(self.settings.devices_per_trial)
        if size is None:
            sizes = ", ".join(map(str, GROUP_SIZES))
            raise ValueError(
                f"resources.devices_per_trial: a trial holds {sizes} HPUs or a multiple of "
                f"{GROUP_SIZES[-1]}, got {self.settings.devices_per_trial}"
            )
        return size

    def fits_one_node(self) -> bool:
        """Whether some node holds all ranks of a trial."""
        need = self.rank_resources(self.settings.devices_per_trial)
        return any(_times(node, need) for node in self.nodes())

    def capacity(self) -> int:
        """How many jobs the living nodes hold; a job spans nodes only where none holds it whole."""
        nodes, ranks = self.nodes(), self.settings.devices_per_trial
        fitting = sum(_times(node, self.rank_resources(ranks)) for node in nodes)
        if fitting or ranks == 1:
            return fitting
        bundle = self.bundle_ranks()
        bundles = sum(_times(node, self.rank_resources(bundle)) for node in nodes)
        return bundles * bundle // ranks

    def max_groups(self, *, refresh: bool = True) -> int:
        """How many worker groups there may be; at least one, to let a cluster grow.

        Without `refresh` the cluster's size may be `refresh_seconds` old.
        """
        asked_at, capacity = self._capacity
        if refresh or time.monotonic() - asked_at > self.settings.refresh_seconds:
            capacity = self.capacity()
            self._capacity = (time.monotonic(), capacity)
        return max(1, min(capacity, self.settings.concurrency or capacity))

    def worker_environment(self) -> dict[str, str]:
        """What must be set in a worker before it imports torch."""
        threads = str(self.settings.cpus_per_trial)
        return {
            "OMP_NUM_THREADS": threads,
            "MKL_NUM_THREADS": threads,
            "TOKENIZERS_PARALLELISM": "false",
            **self.settings.environment,
        }

    def is_ready(self, reference: Any) -> bool:
        """Whether the value of an object reference is there."""
        return bool(self.ray.wait([reference], timeout=0)[0])

    def end(self, actors: list[Any], placement_group: Any) -> None:
        """Kill actors and free their placement group; what is gone already is left alone."""
        for actor in actors:
            with contextlib.suppress(Exception):
                self.ray.kill(actor)
        if placement_group is not None:
            self.ray.util.remove_placement_group(placement_group)

    def disconnect(self, *, wait: bool) -> None:
        """Leave the cluster, or end the local Ray.

        Without `wait` this goes on in a thread that the process does not end before.
        """
        with contextlib.suppress(Exception):  # A cluster that is gone needs no request.
            self.request(0)
        thread = threading.Thread(target=self._shut_down, args=(self.ray,))
        self.ray = None
        thread.start()
        if wait:
            thread.join()

    def _shut_down(self, ray: Any) -> None:
        ray.shutdown()
        if self._own is not None:
            self._own.close()


def is_reachable(address: str, timeout: float = 5.0) -> bool:
    """Whether a server listens at `host:port` or `ray://host:port`, within `timeout` seconds.

    Ray itself, which tries for minutes, resolves other addresses (`auto`).
    """
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not port.isdecimal():
        return True
    with contextlib.suppress(OSError):
        socket.create_connection((host.strip("[]"), int(port)), timeout=timeout).close()
        return True
    return False


def _times(node: Mapping[str, float], need: Mapping[str, float]) -> int:
    """How often a node holds what is needed."""
    return int(min(node.get(name, 0.0) // count for name, count in need.items()))


class LocalRay:
    """A Ray that is started on this machine: its folder, its reaper and its fork server."""

    def __init__(self, settings: RaySettings) -> None:
        self.folder = TempFolder.create()
        self.fork_server: ForkServerHandle | None = None
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

    def close(self) -> None:
        """Clean up once Ray is down."""
        if self.fork_server is not None:
            self.fork_server.close()
        if self._reaper.stdin:
            # Any byte: Ray is down, only its folder is left to remove.
            self._reaper.communicate(b".")
        self.folder.release()
        compat.forget_token()
