"""The temporary folder of a local Ray: private, marked as ours, and locked while its driver lives.

    TMPDIR/gsweep-XXXXXXXX/       0700: no other user can reach what is below, whatever its mode
        .gaudi-sweep              the marker; the driver holds a lock on it (flock)
        fork-server               socket of `sweep.ray_backend.fork_server`
        r/                        Ray's own folder, which Ray itself makes writable for everyone

A folder is removed only if it is ours by its name, by its owner and by its marker, and only if
nobody holds the marker's lock. Links are never followed: every step works on an open folder.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sweep.ray_backend import compat

log = logging.getLogger(__name__)

PREFIX = "gsweep-"
"""Short, for the sake of Ray's socket paths."""

MARKER = ".gaudi-sweep"
CONTENT = b"temporary folder of gaudi-sweep, format 1\n"
"""Of the marker. A folder whose marker says something else is left alone."""

RAY_FOLDER = "r"
FORK_SERVER = "fork-server"

SHORT_ROOTS = ("/tmp", "/var/tmp")
"""Where the folder lies if the path of TMPDIR is too long for a socket, or not safe."""

RANDOM_CHARACTERS = 8
"""Of a name that `tempfile.mkdtemp` makes."""


@dataclass(slots=True)
class TempFolder:
    """The folder of one driver, locked until `release` or the end of the process."""

    path: Path
    _lock: int
    """File descriptor of the locked marker."""

    @classmethod
    def create(cls) -> TempFolder:
        """Make a new folder, and remove those of drivers that are gone.

        Raises:
            ValueError: no folder for temporary files has a path that is short enough.
        """
        remove_dead_folders()
        path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=_root()))
        return cls(path, _write_marker(path))

    @property
    def ray(self) -> Path:
        """Ray's own folder."""
        return self.path / RAY_FOLDER

    @property
    def fork_server(self) -> Path:
        """Path of the fork server's socket."""
        return self.path / FORK_SERVER

    def release(self) -> None:
        """Drop the lock: from now on any driver of this user may remove the folder."""
        os.close(self._lock)


def _write_marker(folder: Path) -> int:
    """Write the marker, locked before it has its name; returns its file descriptor."""
    draft = folder / f"{MARKER}.tmp"
    marker = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    fcntl.flock(marker, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.write(marker, CONTENT)
    os.rename(draft, folder / MARKER)
    return marker


def _root() -> Path:
    """The folder to make ours in: TMPDIR if its path is short enough and safe.

    Raises:
        ValueError: none is short enough.
    """
    wanted = Path(tempfile.gettempdir()).absolute()
    short = [root for root in _roots() if root == wanted or os.access(root, os.W_OK | os.X_OK)]
    short = [root for root in short if len(os.fsencode(root)) <= longest_root()]
    if not short:
        raise ValueError(
            f"TMPDIR: the path of a Unix socket has at most {compat.SOCKET_BYTES} bytes, so that "
            f"of the temporary folder at most {longest_root()}; got {wanted} "
            f"({len(os.fsencode(wanted))} bytes), and neither of {', '.join(SHORT_ROOTS)} can be "
            "written. Set TMPDIR to a shorter path"
        )
    root = next((root for root in short if is_safe(root)), short[0])
    if root != wanted:
        why = "not safe from other users" if wanted in short else "too long for Ray's sockets"
        log.warning("Ray's temporary folder is in %s: TMPDIR=%s is %s", root, wanted, why)
    return root


def _roots() -> list[Path]:
    """Folders that may hold ours, TMPDIR first."""
    return list(dict.fromkeys([Path(tempfile.gettempdir()).absolute(), *map(Path, SHORT_ROOTS)]))


def longest_root() -> int:
    """How many bytes the path of the folder that holds ours may have."""
    own = len(f"/{PREFIX}/{RAY_FOLDER}/") + RANDOM_CHARACTERS
    return compat.SOCKET_BYTES - own - len(compat.longest_socket())


def is_safe(root: Path) -> bool:
    """Whether no other user but root can rename or replace what this user makes in a folder.

    The folder and all above it belong to this user or to root, and others may write into them only
    if the sticky bit keeps them from renaming what is not theirs.
    """
    try:
        real = root.resolve(strict=True)
        found = [folder.stat() for folder in (real, *real.parents)]
    except OSError:
        return False
    return all(
        each.st_uid in (0, os.geteuid())
        and (not each.st_mode & (stat.S_IWGRP | stat.S_IWOTH) or each.st_mode & stat.S_ISVTX)
        for each in found
    )


def remove_dead_folders() -> None:
    """Remove the folders that this user's drivers have left behind."""
    for root in _roots():
        with contextlib.suppress(OSError):
            for name in os.listdir(root):
                if name.startswith(PREFIX):
                    remove_if_dead(root / name)


def remove_if_dead(path: Path) -> None:
    """Remove a folder that is ours, unless its driver lives."""
    with contextlib.suppress(OSError), _own_folder(path) as folder:
        flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        marker = os.open(MARKER, flags, dir_fd=folder)
        try:
            status = os.fstat(marker)
            is_ours = stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid()
            if not is_ours or os.read(marker, len(CONTENT) + 1) != CONTENT:
                return
            fcntl.flock(marker, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _empty(folder)
            os.rmdir(path)
        finally:
            os.close(marker)


def remove_known(path: Path) -> None:
    """Remove a folder that the driver of this very process has made, locked or without a marker.

    A worker that outlives Ray may make the folder anew, without the marker.
    """
    if path.name.startswith(PREFIX):
        with contextlib.suppress(OSError), _own_folder(path) as folder:
            _empty(folder)
            os.rmdir(path)


@contextlib.contextmanager
def _own_folder(path: Path) -> Iterator[int]:
    """Open a folder that belongs to this user.

    Raises:
        OSError: it is a link, no folder, or another user's.
    """
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if os.fstat(folder).st_uid != os.geteuid():
            raise PermissionError(f"{path} belongs to another user")
        yield folder
    finally:
        os.close(folder)


def _empty(folder: int) -> None:
    """Remove everything in an open folder; the marker stays as long as anything else does."""
    for name in os.listdir(folder):
        if name == MARKER:
            continue
        if stat.S_ISDIR(os.lstat(name, dir_fd=folder).st_mode):
            shutil.rmtree(name, ignore_errors=True, dir_fd=folder)
        else:
            os.unlink(name, dir_fd=folder)
    if os.listdir(folder) == [MARKER]:
        os.unlink(MARKER, dir_fd=folder)
