"""How much memory a device has: asked of the machine, given, or known by the card's name."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path

GIB = 2**30

CARD_GIB: dict[str, float] = {"Gaudi 2": 96, "Gaudi 3": 128}
"""GiB of the cards of each generation that optimum-habana 1.21 trains on."""
MODELS: tuple[tuple[str, str], ...] = (
    (r"HL-?3\d\d|GAUDI ?3", "Gaudi 3"),
    (r"HL-?2[2-9]\d|GAUDI ?2", "Gaudi 2"),
)
"""What the driver calls a card, to its generation."""
ASSUMED = "Gaudi 3"
"""When nobody knows the card: the largest, so that nothing is refused that some card could hold."""


@dataclass(frozen=True, slots=True)
class Capacity:
    """The memory of one device."""

    what: str
    bytes: float
    assumed: bool = False
    """Whether a smaller card may be in its place."""


def card_generation(name: str) -> str | None:
    """The generation of a card by the name that its driver gives."""
    return next((card for rule, card in MODELS if re.search(rule, name, re.IGNORECASE)), None)


def device_capacity(device: str, given_gib: float | None, here: bool) -> Capacity | None:
    """The memory of one device; None when nobody can know it.

    `given_gib` is the user's own word, `here` whether trials run on this machine.
    """
    if given_gib is not None:
        return Capacity("resources.memory_per_device_gb", given_gib * GIB)
    if device == "hpu":
        card = _gaudi() if here else None
        return Capacity(card or ASSUMED, CARD_GIB[card or ASSUMED] * GIB, assumed=card is None)
    if not here:
        return None
    if device == "cuda":
        found = _cuda()
        return None if found is None else Capacity("the largest GPU here", found)
    found = _host()
    return None if found is None else Capacity("this machine, swap included", found)


@cache
def _gaudi() -> str | None:
    """The generation of this machine's Gaudi cards."""
    said = _ask("hl-smi", "-Q", "name", "-f", "csv,noheader")
    return card_generation(said) if said else None


@cache
def _cuda() -> float | None:
    """Bytes of the largest GPU."""
    said = _ask("nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits")
    sizes = [float(line) for line in (said or "").split() if line.replace(".", "").isdecimal()]
    return max(sizes) * 2**20 if sizes else None


def _ask(*words: str) -> str | None:
    if shutil.which(words[0]) is None:
        return None
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _host(file: Path = Path("/proc/meminfo")) -> float | None:
    """Bytes of this machine's memory and swap."""
    try:
        rows = dict(line.split(":") for line in file.read_text().splitlines() if ":" in line)
        return sum(int(rows[name].split()[0]) for name in ("MemTotal", "SwapTotal")) * 1024.0
    except (OSError, LookupError, ValueError):
        return None
