"""The user's cache folder."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder(kind: str) -> Path:
    """`gaudi-sweep/KIND` under `XDG_CACHE_HOME` or `~/.cache`; it need not exist."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root, "gaudi-sweep", kind)
