"""The user's cache folder, and one to take its place where the home folder cannot be written.

A container may run as a user whom no passwd file knows, with `HOME=/`: OpenShift does so.
"""

from __future__ import annotations

import logging
import os
import stat
import tempfile
from pathlib import Path

logger = logging.getLogger(__name__)

CACHE = "XDG_CACHE_HOME"
"""Variable of the XDG base directories that Hugging Face's libraries, torch and Matplotlib read."""

MATPLOTLIB = "MPLCONFIGDIR"
HUGGING_FACE = "HF_HOME"


def cache_folder(kind: str) -> Path:
    """`gaudi-sweep/KIND` under `XDG_CACHE_HOME` or `~/.cache`; it need not exist."""
    return Path(os.environ.get(CACHE) or _home(".cache"), "gaudi-sweep", kind)


def set_cache_folders() -> None:
    """Where the home folder cannot be written, name a temporary folder to all caches.

    Variables that are set already stay, and so does a cache of Hugging Face's that can be read. To
    be called before these libraries are imported; processes that are started later inherit it.
    """
    needs = {CACHE: _home(".cache"), MATPLOTLIB: _home(".config", "matplotlib")}
    missing = [name for name, place in needs.items() if name not in os.environ and not _can(place)]
    if not missing:
        return
    folder = Path(tempfile.gettempdir(), f"gaudi-sweep-cache-{os.geteuid()}")
    if not make_private(folder):
        logger.warning("caches cannot be written: %s is another user's", folder)
        return
    if CACHE in missing and (models := _home(".cache", "huggingface")).is_dir():
        os.environ.setdefault(HUGGING_FACE, str(models))
    os.environ.update({name: str(folder) for name in missing})


def make_private(folder: Path) -> bool:
    """Make a folder that only this user can enter; whether it is such a folder in the end.

    For names that others can foresee, in a folder that all users share: what another user has made
    there, or a link, is not used.
    """
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
            return False
        if stat.S_IMODE(found.st_mode) & (stat.S_IRWXG | stat.S_IRWXO):
            folder.chmod(0o700)
    except OSError:
        return False
    return True


def _home(*parts: str) -> Path:
    """A path below the home folder; that of a user without one is relative, and starts with `~`."""
    return Path(os.path.expanduser("~"), *parts)


def _can(folder: Path) -> bool:
    """Whether files can be made in a folder, which need not exist."""
    if not folder.is_absolute():
        return False
    there = next(path for path in (folder, *folder.parents) if path.exists())
    return there.is_dir() and os.access(there, os.W_OK | os.X_OK)
