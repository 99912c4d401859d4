"""A full disk under a trial: not the trial's fault, and no result of it."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

from trial.store.files import sync_folder

FULL = (errno.ENOSPC, errno.EDQUOT)
"""What the numbers of an OSError say of it."""

SIGNS = ("no space left on device", "storagefull", "disk is full", "disk quota exceeded")
"""Text, lower case, of errors that libraries put in the place of an OSError."""

VAGUE_SIGNS = ("iostream error", "pytorchstreamwriter", "unexpected pos")
"""What torch says when it cannot write a file, whatever the cause."""

NOTHING_FREE = 1 << 20
"""A file system with fewer free bytes than this is full."""


class DiskFullError(OSError):
    """The trial could not write; it goes on from its newest checkpoint once there is room."""


def is_full(error: BaseException, folder: Path) -> bool:
    """Whether an exception, itself or through its causes, comes from a full disk."""
    seen: BaseException | None = error
    while seen is not None:
        text = str(seen).lower()
        if isinstance(seen, OSError) and seen.errno in FULL:
            return True
        if any(sign in text for sign in SIGNS):
            return True
        if any(sign in text for sign in VAGUE_SIGNS):
            return shutil.disk_usage(folder).free < NOTHING_FREE
        seen = seen.__cause__ or seen.__context__
    return False


def says_full(message: str) -> bool:
    """Whether a message is that of a `DiskFullError`, perhaps of one rank among several."""
    return "the disk of " in message and " is full" in message


def refuse_if_full(error: BaseException, folder: Path) -> None:
    """Turn an exception that a full disk caused into one that says so.

    Raises:
        DiskFullError: the disk is full.
    """
    if is_full(error, folder):
        raise DiskFullError(f"the disk of {folder} is full: {error}") from error


def sync_tree(folder: Path) -> None:
    """Bring every file below a folder to the disk: a full one may say so only now."""
    for path in folder.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
    sync_folder(folder)
