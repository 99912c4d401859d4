"""Rows drawn from the installed Python's source, kept for the processes to come.

To parse the standard library takes a second, and every worker of a sweep needs the rows.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from trial.store.cache_dir import cache_folder
from trial.store.files import write_atomically

Rows = list[Mapping[str, str]]


def kept(name: str, sources: Iterable[Path], draw: Callable[[], Rows]) -> Rows:
    """What `draw` makes of the sources, from the user's cache folder if it was made there before.

    Other sources, another Python or other code of ours make it anew. A cache that cannot be
    written or read costs time and nothing else.
    """
    place = cache_folder("rows") / f"{name}-{_key(sources)}.json"
    with suppress(OSError, ValueError):
        found = json.loads(place.read_text(encoding="utf-8"))
        if isinstance(found, list) and found:
            return found
    rows = draw()
    with suppress(OSError):
        place.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(place, json.dumps(rows))
    return rows


def _key(sources: Iterable[Path]) -> str:
    """Stands for all that the rows depend on; sources by size and time, as they are many."""
    digest = hashlib.sha256(sys.version.encode())
    for file in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(file.read_bytes())
    for file in sources:
        seen = file.stat()
        digest.update(f"{file}\0{seen.st_size}\0{seen.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]
