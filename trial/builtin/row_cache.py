"""Caches rows that are extracted from the installed Python's source.

Parsing the standard library takes a second, and every worker of a sweep needs the rows.
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


def cached_rows(name: str, sources: Iterable[Path], extract: Callable[[], Rows]) -> Rows:
    """The result of `extract`, from the user's cache folder where an earlier process wrote it.

    The rows are extracted anew when the sources, Python or the code of this package have changed. A
    cache that cannot be written or read costs time and nothing else.
    """
    file = cache_folder("rows") / f"{name}-{_key(sources)}.json"
    with suppress(OSError, ValueError):
        rows = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(rows, list) and rows:
            return rows
    rows = extract()
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, json.dumps(rows))
    return rows


def _key(sources: Iterable[Path]) -> str:
    """Hash of all that the rows depend on; of the many sources, size and modification time."""
    digest = hashlib.sha256(sys.version.encode())
    for file in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(file.read_bytes())
    for file in sources:
        status = file.stat()
        digest.update(f"{file}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]
