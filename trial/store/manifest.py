"""Sizes and hashes of files as they were written, by which damage is found later."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from trial.store.records import Record


class FileStamp(Record):
    """Size in bytes and SHA-256, in hexadecimal, of a file as it was written."""

    size: int
    sha256: str


class Manifest(Record):
    """Files by their path relative to a folder, with `/` between the parts."""

    version: Literal[1] = 1
    files: dict[str, FileStamp] = Field(default_factory=dict)


def stamp_beginning(path: Path, size: int | None = None) -> FileStamp | None:
    """The stamp of the first `size` bytes of a small file, or of all; None if it is not there."""
    try:
        content = path.read_bytes()[:size]
    except OSError:
        return None
    return FileStamp(size=len(content), sha256=hashlib.sha256(content).hexdigest())


def stamp(path: Path) -> FileStamp:
    """Read a file and return its size and hash."""
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256")
        return FileStamp(size=file.tell(), sha256=digest.hexdigest())


def stamp_all(root: Path, paths: Iterable[Path]) -> dict[str, FileStamp]:
    """Stamps of files below `root`, and of all files below the folders among `paths`.

    A path that does not exist has none.
    """
    files = [file for path in paths for file in (path.rglob("*") if path.is_dir() else [path])]
    return {
        file.relative_to(root).as_posix(): stamp(file) for file in sorted(files) if file.is_file()
    }


def damage(root: Path, stamps: Mapping[str, FileStamp], *, deep: bool) -> list[str]:
    """What is wrong with each file that is not as it was written; empty if none is.

    Args:
        root: The folder that the names are relative to.
        stamps: The files as they were written.
        deep: Whether to read the files; else only their sizes are compared.
    """
    return [
        f"{name} {wrong}"
        for name, written in stamps.items()
        if (wrong := _damage_of(root / name, written, deep))
    ]


def _damage_of(path: Path, written: FileStamp, deep: bool) -> str:
    try:
        if not path.is_file():
            return "is missing"
        if (size := path.stat().st_size) != written.size:
            return f"has {size} bytes, it was written with {written.size}"
        if deep and stamp(path).sha256 != written.sha256:
            return "has other content than it was written with"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return ""


def seal(content: dict[str, Any]) -> dict[str, Any]:
    """The JSON object with the hash of its content under `sha256`; see `is_sealed`."""
    return {**content, "sha256": _content_hash(content)}


def is_sealed(content: Mapping[str, Any]) -> bool:
    """Whether an object is as `seal` returned it; True if it has no hash, as in older files."""
    given = content.get("sha256")
    return given is None or given == _content_hash(content)


def _content_hash(content: Mapping[str, Any]) -> str:
    rest = {name: value for name, value in content.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
