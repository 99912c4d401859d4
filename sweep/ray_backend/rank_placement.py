"""Placement of one rank: its node, its devices, and the address at which the ranks meet.

Each worker of a trial reserves what its rank needs (`reserve`). The placements of all ranks are
then sent to every worker, which sets the environment of its rank from them.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sweep.ray_backend.device_locks import VARIABLE, DeviceLocks, default_folder, machine_modules
from trial.distributed.rank_group import LISTENER, rank_environment, socket_interface

CUDA = "CUDA_VISIBLE_DEVICES"
LOOPBACK = "127.0.0.1"
WAIT_SECONDS = 5.0
"""Seconds to wait for HPUs that a process which is being killed still holds."""


class NoFreeHpusError(RuntimeError):
    """The machine has no free aligned group of HPUs, whatever Ray has counted."""


@dataclass(frozen=True, slots=True)
class PlacementRequest:
    """What a rank needs on its node."""

    rendezvous: bool = False
    """Whether the ranks meet at an address of this one (MASTER_ADDR, MASTER_PORT)."""
    hpus: int = 0
    """HPUs to lock, for this rank and for the others of its bundle."""
    single_node: bool = True
    """Whether all ranks share one machine."""


@dataclass(frozen=True, slots=True)
class RankPlacement:
    """Placement of one rank, as the other ranks see it."""

    node: str
    """Ray's id of the node."""
    address: str = LOOPBACK
    port: int = 0
    """Port of the rendezvous; 0 for ranks other than the first."""
    modules: tuple[str, ...] = ()
    """HPU modules that it has locked."""
    gpus: str = ""
    """CUDA_VISIBLE_DEVICES as Ray set it."""


@dataclass(slots=True)
class HeldResources:
    """What a worker process holds for its rank."""

    locks: DeviceLocks
    listener: socket.socket | None = None
    """The open port of the rendezvous, so that nobody takes it meanwhile."""


def reserve(
    request: PlacementRequest,
    node: str,
    address: str,
    node_hpus: int,
    lock_folder: Path | None = None,
    wait_seconds: float = WAIT_SECONDS,
) -> tuple[RankPlacement, HeldResources]:
    """Lock the HPUs of a rank and open the port of its rendezvous.

    Args:
        request: What the rank needs.
        node: Ray's id of the node.
        address: IP address of the node.
        node_hpus: How many HPUs Ray counts on the node.
        lock_folder: Where the machine's lock files are; the default folder if None.
        wait_seconds: How long to wait for HPUs to become free.

    Raises:
        NoFreeHpusError: no aligned group of HPUs is free.
    """
    held = HeldResources(DeviceLocks(lock_folder or default_folder()))
    modules: tuple[str, ...] = ()
    if request.hpus:
        modules = _acquire_hpus(held.locks, request.hpus, node_hpus, wait_seconds)
    address = LOOPBACK if request.single_node else address
    port = 0
    if request.rendezvous:
        held.listener = socket.create_server((address, 0))
        port = int(held.listener.getsockname()[1])
    return RankPlacement(node, address, port, modules, os.environ.get(CUDA, "")), held


def _acquire_hpus(
    locks: DeviceLocks, count: int, node_hpus: int, wait_seconds: float
) -> tuple[str, ...]:
    modules = machine_modules(node_hpus)
    until = time.monotonic() + wait_seconds
    while not (group := locks.acquire(modules, count)):
        if time.monotonic() > until:
            raise NoFreeHpusError(
                f"no aligned group of {count} of the {node_hpus} HPUs on {socket.gethostname()} "
                "is free: another process holds some"
            )
        time.sleep(0.2)
    return group


def set_rank_environment(
    rank: int,
    placements: Sequence[RankPlacement],
    held: HeldResources,
    environ: MutableMapping[str, str],
) -> None:
    """Set the environment variables that the training of this rank reads.

    Args:
        rank: This process's rank.
        placements: Those of all ranks, in their order.
        held: What this process holds; its locks and its listener are handed over.
        environ: Changed in place.
    """
    same_node = [p for p in placements if p.node == placements[rank].node]
    if modules := [module for placement in same_node for module in placement.modules]:
        if not placements[rank].modules:
            held.locks.share(modules)
        environ[VARIABLE] = ",".join(modules)
    if len(placements) == 1:
        return
    if placements[rank].gpus:
        # Ranks count the devices of their machine; Ray shows each its own only.
        environ[CUDA] = ",".join(placement.gpus for placement in same_node)
    first = placements[0]
    nodes = [placement.node for placement in placements]
    environ.update(rank_environment(rank, nodes, first.address, first.port))
    if len(same_node) < len(placements) and (name := interface_of(placements[rank].address)):
        environ.update(socket_interface(name))
    if held.listener is not None:
        environ[LISTENER] = str(held.listener.detach())


def interface_of(address: str) -> str | None:
    """The network interface that has an IP address."""
    import psutil

    for name, addresses in psutil.net_if_addrs().items():
        if any(found.address == address for found in addresses):
            return str(name)
    return None
