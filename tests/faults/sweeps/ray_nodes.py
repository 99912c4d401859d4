"""A simulated Ray cluster of two nodes and a head without any work, whose nodes can be lost."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from sweep.ray_backend import compat

WIDTH = 2


class Nodes:
    """Real raylets on this machine, each with one CPU."""

    def __init__(self, temporary: Path) -> None:
        compat.set_environment()
        from ray.cluster_utils import Cluster

        # Ray's socket names have to fit 107 bytes: this folder's path is short.
        head = {"num_cpus": 0, "include_dashboard": False, "temp_dir": str(temporary)}
        self._cluster: Any = Cluster(initialize_head=True, head_node_args=head)
        self._nodes = [self._cluster.add_node(num_cpus=1) for _ in range(WIDTH)]

    @property
    def address(self) -> str:
        """What `--ray-address` is given."""
        return str(self._cluster.address)

    def lose_one(self, dice: random.Random) -> None:
        """SIGKILL to all that makes up one of the nodes; another one joins."""
        lost = dice.choice(self._nodes)
        self._nodes.remove(lost)
        self._cluster.remove_node(lost, allow_graceful=False)
        self._nodes.append(self._cluster.add_node(num_cpus=1))

    def close(self) -> None:
        """End the cluster."""
        self._cluster.shutdown()
