"""The memory of one device: given by the user, read from the machine, or known by card model."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from functools import cache

GIB = 2**30

CARD_GIB: dict[str, float] = {"Gaudi 2": 96, "Gaudi 3": 128}
"""Memory in GiB of the card generations that optimum-habana 1.21 supports."""
GENERATION_BY_NAME: tuple[tuple[str, str], ...] = (
    (r"HL-?3\d\d|GAUDI ?3", "Gaudi 3"),
    (r"HL-?2[2-9]\d|GAUDI ?2", "Gaudi 2"),
)
"""Pattern of a card's name as the driver reports it, and the card's generation."""
ASSUMED_CARD = "Gaudi 3"
"""The card assumed when it is unknown: the largest, so that nothing that fits one is refused."""


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """The memory of one device."""

    what: str
    """Which device, or which setting gives its memory."""
    bytes: float
    assumed: bool = False
    """Whether the card is unknown and may have less memory."""


def card_generation(name: str) -> str | None:
    """The generation of a card by its name as the driver reports it; None when unknown."""
    return next(
        (card for rule, card in GENERATION_BY_NAME if re.search(rule, name, re.IGNORECASE)), None
    )


def find_device_memory(device: str, given_gib: float | None, here: bool) -> DeviceMemory | None:
    """The memory of one device; None when it is unknown.

    Args:
        device: `hpu`, `cuda` or `cpu`.
        given_gib: The user's `resources.memory_per_device_gb`.
        here: Whether trials run on this machine.
    """
    if given_gib is not None:
        return DeviceMemory("resources.memory_per_device_gb", given_gib * GIB)
    if device == "hpu":
        card = _gaudi() if here else None
        return DeviceMemory(
            card or ASSUMED_CARD, CARD_GIB[card or ASSUMED_CARD] * GIB, assumed=card is None
        )
    if not here:
        return None
    if device == "cuda":
        found = _cuda()
        return None if found is None else DeviceMemory("the largest GPU here", found)
    found = _host()
    return None if found is None else DeviceMemory("this machine, swap included", found)


@cache
def _gaudi() -> str | None:
    """The generation of this machine's Gaudi cards."""
    output = _ask("hl-smi", "-Q", "name", "-f", "csv,noheader")
    return card_generation(output) if output else None


@cache
def _cuda() -> float | None:
    """Bytes of the largest GPU."""
    output = _ask("nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits")
    sizes = [float(line) for line in (output or "").split() if line.replace(".", "").isdecimal()]
    return max(sizes) * 2**20 if sizes else None


def _ask(*command: str) -> str | None:
    """What a command prints; None when it is missing or fails."""
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _host() -> float | None:
    """Bytes of this machine's memory and swap."""
    import psutil

    try:
        return float(psutil.virtual_memory().total + psutil.swap_memory().total)
    except (OSError, LookupError, ValueError):
        return None
