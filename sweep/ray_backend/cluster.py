"""The Ray that jobs are placed on: a cluster to join, or a local Ray that is started here."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from sweep.ray_backend import compat
from sweep.ray_backend.fork_server import ForkServerHandle
from sweep.ray_backend.liveness import watch
from sweep.ray_backend.liveness.watch import RayLostError, Watch
from sweep.ray_backend.node.local_ray import LocalRay, start_local_ray
from sweep.ray_backend.node.settings import RESOURCE, RaySettings
from sweep.spec.hpu_groups import GROUP_SIZES, hpus_per_node

SHUTDOWN_SECONDS = 30.0
"""How long Ray may take to leave."""


class Cluster:
    """A connection to Ray: what its nodes hold, and how many jobs fit."""

    def __init__(self, settings: RaySettings) -> None:
        self.settings = settings
        self.device = settings.device
        """Never "auto" once connected."""
        self.ray: Any = None
        """The module; None while there is no connection."""
        self.actor_class: Any = None
        self.beat: Callable[[], None] = lambda: None
        """Called twice a second, by a thread, while there is a connection."""
        self._own: LocalRay | None = None
        self._watch = Watch(lambda: "")
        self._node = ""
        """Id of the node of this host, once connected."""
        self._capacity = (-float("inf"), 1)

    @property
    def fork_server(self) -> ForkServerHandle | None:
        """The process that forks the workers of a local Ray, if there is one."""
        return self._own.fork_server if self._own else None

    def connect(self) -> None:
        """Connect to the address of the settings, or start a local Ray.

        Raises:
            ConnectionError: there is no Ray at the address, or none can be started here.
            ValueError: the machine or the device cannot hold a trial.
        """
        compat.set_environment()
        import ray

        self.ray = ray
        compat.log_errors_of_nodes()
        # Once for all workers: Ray takes a class apart and sends it to its nodes each time.
        self.actor_class = ray.remote(self.settings.worker)
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        with compat.own_signals():
            if self.settings.address:
                self._join(options)
            else:
                self._own = start_local_ray(ray, self.settings, self.worker_environment(), options)
        self._start_watch()
        if self.device == "auto":
            total = self.call(ray.cluster_resources)
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

    def _start_watch(self) -> None:
        self._node, raylet, gcs = compat.own_node(self.ray)
        if self._own is not None:
            look = watch.of_processes(self._own.processes)
        else:
            # A client's server, or the cluster's head.
            head = gcs or self.settings.address or ""
            look = watch.of_cluster(raylet, lambda: is_reachable(head))
        self._watch = Watch(look, lambda: self.beat(), quick=self._own is not None)
        self._watch.start()

    def check(self, wait: float = 0.0) -> None:
        """Look whether Ray is still there, for `wait` seconds.

        Raises:
            RayLostError: it is gone.
        """
        self._watch.check(wait)

    def call(self, question: Callable[[], Any]) -> Any:
        """Ask Ray something that it may not answer.

        Raises:
            RayLostError: Ray is gone or does not answer.
        """
        return self._watch.call(question)

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
        self.call(lambda: request_resources(bundles=[self.rank_resources()] * ranks))

    def nodes(self) -> list[dict[str, float]]:
        """The resources of every living node.

        Raises:
            RayLostError: Ray is gone, or the node of this host.
        """
        nodes = self.call(self.ray.nodes)
        if any(node["NodeID"] == self._node and not node["Alive"] for node in nodes):
            self._watch.give_up("the node of this host left the cluster")
        return [node["Resources"] for node in nodes if node["Alive"]]

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
        ray = self.ray

        def end() -> None:
            for actor in actors:
                with contextlib.suppress(Exception):
                    ray.kill(actor)
            if placement_group is not None:
                ray.util.remove_placement_group(placement_group)

        with contextlib.suppress(RayLostError):
            self.call(end)

    def disconnect(self, *, wait: bool) -> None:
        """Leave the cluster, or end the local Ray.

        Without `wait` this goes on in a thread that the process does not end before.
        """
        with contextlib.suppress(Exception):  # A cluster that is gone needs no request.
            self.request(0)
        self._watch.close()
        thread = threading.Thread(target=self._shut_down, args=(self.ray, self._own))
        self.ray = self._own = None
        thread.start()
        if wait:
            thread.join()

    def _shut_down(self, ray: Any, own: LocalRay | None) -> None:
        if self._watch.lost and own is not None:
            own.kill()
        # Ray waits for a GCS that is gone, without a limit.
        leaving = threading.Thread(target=ray.shutdown, daemon=True)
        leaving.start()
        leaving.join(SHUTDOWN_SECONDS)
        if own is not None:
            own.close()


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
