"""Commands of the arms: a script in the peers' Python or in ours."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from peers import environment

BENCH = Path(__file__).resolve().parents[1]


def peer_command(script: str, *words: str) -> list[str]:
    """A command of the peers' Python."""
    return [str(environment.python()), str(BENCH / script), *words]


def our_command(script: str, *words: str) -> list[str]:
    """A command of our Python."""
    return [sys.executable, str(BENCH / script), *words]


def void(_: Any) -> None:
    """Nothing, of anything."""
