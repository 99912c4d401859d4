"""Crash-safe files and folders: atomic writes, appended lines, repair of torn last lines."""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
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


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder that takes the place of `folder` if no error occurs; it is on disk then.

    A folder that is replaced is first renamed to `.NAME.old`: at any moment the old one or the new
    one is whole, and the next call puts back what a kill between the renames has left. It also
    removes the temporary folders of this user's processes that are no longer alive on this host.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = folder.with_name(f".{folder.name}.old")
    if aside.exists() and not folder.exists():
        os.replace(aside, folder)
    _remove_abandoned(folder)
    temporary = folder.with_name(f"{_temporary_prefix(folder)}{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    lock = os.open(temporary, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with suppress(OSError):  # Some network file systems do not lock folders.
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield temporary
        sync_tree(temporary)
        shutil.rmtree(aside, ignore_errors=True)
        _take_place(temporary, folder, aside)
        sync_folder(folder.parent)
        shutil.rmtree(aside, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        os.close(lock)


def _take_place(temporary: Path, folder: Path, aside: Path) -> None:
    is_replaced = folder.exists()
    if is_replaced:
        os.replace(folder, aside)
    try:
        os.replace(temporary, folder)
    except BaseException:
        if is_replaced:
            os.replace(aside, folder)
        raise


def _temporary_prefix(folder: Path) -> str:
    return f".{folder.name}.{socket.gethostname()}."


def _remove_abandoned(folder: Path) -> None:
    """Remove temporary folders that killed processes of this host have left."""
    prefix = _temporary_prefix(folder)
    for path in folder.parent.iterdir():
        pid = path.name.removeprefix(prefix).removesuffix(".tmp")
        is_one = path.name == f"{prefix}{pid}.tmp" and pid.isdecimal()
        if is_one and not _is_alive(int(pid)) and _is_own_and_unlocked(path):
            shutil.rmtree(path, ignore_errors=True)


def _is_own_and_unlocked(folder: Path) -> bool:
    """Whether a folder is this user's, and no process writes it.

    A process id says nothing about a container that shares this host's name and files.
    """
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass  # As above: the process id has to do.
    finally:
        is_own = os.fstat(handle).st_uid == os.geteuid()
        os.close(handle)
    return is_own


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def sync_tree(folder: Path) -> None:
    """Write every file below a folder to disk (fsync), where a full disk may first show."""
    for path in folder.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
    sync_folder(folder)


def sync_folder(path: Path) -> None:
    """Bring a rename in the folder `path` to disk (fsync)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class DamagedFileError(ValueError):
    """A file of a study does not hold what its writer wrote; the message has its path and line."""

    def __init__(self, path: Path, what: str, line: int | None = None) -> None:
        at = "" if line is None else f":{line}"
        super().__init__(f"{path}{at}: {what}")


def set_aside(path: Path) -> Path:
    """Rename a damaged file or folder: its name gets `.damaged` and the time. Returns the new path.

    Nothing reads it under that name.
    """
    stem = f"{path.name}.damaged-{time.strftime('%Y%m%d-%H%M%S')}"
    names = itertools.chain([stem], (f"{stem}-{count}" for count in itertools.count(2)))
    aside = next(path.with_name(name) for name in names if not path.with_name(name).exists())
    path.rename(aside)
    sync_folder(path.parent)
    return aside


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
