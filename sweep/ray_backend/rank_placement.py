"""Where one rank of a trial sits: its machine, its cards, and the door at which ranks meet."""

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
PATIENCE = 5.0
"""Seconds that a process which is being killed gets to let go of its cards."""


class NoCardsError(RuntimeError):
    """The machine has no free aligned group of cards, whatever Ray has counted."""


@dataclass(frozen=True, slots=True)
class PlacementRequest:
    """What a rank needs where it sits."""

    leads: bool = False
    """Whether the other ranks meet at its door."""
    cards: int = 0
    """HPUs to take, for itself and for the ranks beside it."""
    loopback: bool = True
    """Whether all ranks share one machine."""


@dataclass(frozen=True, slots=True)
class RankPlacement:
    """Where a rank sits, as the other ranks are told."""

    node: str
    address: str = LOOPBACK
    port: int = 0
    modules: tuple[str, ...] = ()
    """HPU modules it has taken."""
    gpus: str = ""
    """CUDA_VISIBLE_DEVICES as Ray set it."""


@dataclass(slots=True)
class HeldResources:
    """What a process holds for its seat."""

    cards: DeviceLocks
    listener: socket.socket | None = None


def take(
    wish: PlacementRequest, node: str, address: str, hpus: int, locks: Path | None
) -> tuple[RankPlacement, HeldResources]:
    """Open the door and take the cards of a seat; `hpus` is how many the node has.

    Raises:
        NoCardsError: no aligned group of cards is free.
    """
    taken = HeldResources(DeviceLocks(locks or default_folder()))
    modules = _take_cards(taken.cards, wish.cards, hpus) if wish.cards else ()
    address = LOOPBACK if wish.loopback else address
    port = 0
    if wish.leads:
        taken.listener = socket.create_server((address, 0))
        port = int(taken.listener.getsockname()[1])
    return RankPlacement(node, address, port, modules, os.environ.get(CUDA, "")), taken


def _take_cards(cards: DeviceLocks, count: int, hpus: int) -> tuple[str, ...]:
    modules = machine_modules(hpus)
    until = time.monotonic() + PATIENCE
    while not (group := cards.take(modules, count)):
        if time.monotonic() > until:
            raise NoCardsError(
                f"no aligned group of {count} of the {hpus} HPUs on {socket.gethostname()} "
                "is free: another process holds some"
            )
        time.sleep(0.2)
    return group


def sit(
    rank: int,
    placements: Sequence[RankPlacement],
    taken: HeldResources,
    environ: MutableMapping[str, str],
) -> None:
    """Set what the training of this rank reads from its environment."""
    here = [placement for placement in placements if placement.node == placements[rank].node]
    if modules := [module for placement in here for module in placement.modules]:
        if not placements[rank].modules:
            taken.cards.share(modules)
        environ[VARIABLE] = ",".join(modules)
    if len(placements) == 1:
        return
    if placements[rank].gpus:
        # Ranks count the devices of their machine, Ray shows each its own.
        environ[CUDA] = ",".join(placement.gpus for placement in here)
    first = placements[0]
    homes = [placement.node for placement in placements]
    environ.update(rank_environment(rank, homes, first.address, first.port))
    if len(here) < len(placements) and (name := interface_of(placements[rank].address)):
        environ.update(socket_interface(name))
    if taken.listener is not None:
        environ[LISTENER] = str(taken.listener.detach())


def interface_of(address: str) -> str | None:
    """The network interface that has an address."""
    import psutil

    for name, addresses in psutil.net_if_addrs().items():
        if any(found.address == address for found in addresses):
            return str(name)
    return None
