"""Crash-safe files: atomic writes, appended lines, repair of torn last lines."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def write_atomically(path: Path, text: str) -> None:
    """Write a whole file or nothing; it is on disk when this returns."""
    # Always the same name: the next writer overwrites what a killed one left behind.
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Bring a rename in the folder `path` to disk (fsync)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def cut_torn_line(path: Path) -> None:
    """Remove a last line without its newline, which a crash left; a missing file stays missing."""
    if path.exists():
        with open(path, "rb+") as file:
            _cut_torn_line(file)


def append_line(path: Path, line: str) -> None:
    """Append one line, on disk when this returns; a torn last line is removed first."""
    with open(path, "ab+") as file:
        _cut_torn_line(file)
        file.write(line.encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSONL file; a torn last line and lines of other kinds are skipped."""
    if not path.exists():
        return
    with open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            if not line.endswith("\n"):
                return
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(row, dict):
                yield row


def _cut_torn_line(file: Any) -> None:
    end = file.seek(0, os.SEEK_END)
    if not end:
        return
    file.seek(end - 1)
    if file.read(1) == b"\n":
        return
    start = max(0, end - 1_000_000)
    file.seek(start)
    kept = file.read(end - start).rfind(b"\n") + 1
    file.truncate(start + kept)
