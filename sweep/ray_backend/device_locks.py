"""File locks on the HPU modules of a machine, which the kernel drops when their holder dies.

Ray grants a worker a number of HPUs of a node, not which. The workers of a machine choose them
here, so that the modules of a trial are an aligned group. The locks hold between several sweeps
too, each with a Ray of its own.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from sweep.spec.hpu_groups import free_group

VARIABLE = "HABANA_VISIBLE_MODULES"
SHARED_MEMORY = Path("/dev/shm")
"""Shared with containers that are started as Gaudi's documentation asks (`--ipc=host`)."""


def default_folder() -> Path:
    """Where the locks of this machine are."""
    root = SHARED_MEMORY if SHARED_MEMORY.is_dir() else Path(tempfile.gettempdir())
    return root / "gaudi-sweep-cards"


def hl_smi_modules() -> list[str]:
    """Module ids in the order of their index, as `hl-smi` lists them; empty without it."""
    command = ["hl-smi", "-Q", "index,module_id", "-f", "csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return []
    return parse_modules(done.stdout)


def machine_modules(count: int, query: Callable[[], list[str]] = hl_smi_modules) -> list[str]:
    """Ids of this machine's HPU modules in the order of their index.

    Args:
        count: How many HPUs Ray counts on this node; at most so many are returned.
        query: Asks the machine where `HABANA_VISIBLE_MODULES` is not set.
    """
    named = os.environ.get(VARIABLE, "")
    modules = [part.strip() for part in named.split(",") if part.strip().isdecimal()]
    modules = modules or query()
    return (modules or [str(index) for index in range(count)])[:count]


def parse_modules(text: str) -> list[str]:
    """Module ids in the order of their index, from `hl-smi`'s lines `index, module_id`."""
    rows = [[part.strip() for part in line.split(",")] for line in text.splitlines()]
    pairs = [(int(row[0]), row[1]) for row in rows if len(row) == 2 and row[0].isdecimal()]
    return [module for _, module in sorted(pairs)]


class DeviceLocks:
    """Locks on HPU modules of this machine, held until `release` or the end of the process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._held: list[int] = []

    def acquire(self, modules: Sequence[str], count: int) -> tuple[str, ...]:
        """Lock a free aligned group of `count` among the modules; empty when there is none."""
        with self._exclusive():
            handles = [self._open(f"module-{module}") for module in modules]
            taken = {index for index, handle in enumerate(handles) if not _try_lock(handle)}
            group = free_group(len(modules), count, taken) or ()
            for index, handle in enumerate(handles):
                if index in group:
                    # Shared: the other ranks of the trial lock the group too.
                    fcntl.flock(handle, fcntl.LOCK_SH)
                    self._held.append(handle)
                else:
                    os.close(handle)
        return tuple(modules[index] for index in group)

    def share(self, modules: Sequence[str]) -> None:
        """Lock modules that another rank of the same trial has acquired."""
        for module in modules:
            handle = self._open(f"module-{module}")
            fcntl.flock(handle, fcntl.LOCK_SH)
            self._held.append(handle)

    def release(self) -> None:
        """Drop all locks."""
        while self._held:
            os.close(self._held.pop())

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        """One process of the machine chooses at a time."""
        handle = self._open("choosing")
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)

    def _open(self, name: str) -> int:
        """Open a lock file; created unless it is there, perhaps made by another user.

        Neither the folder nor the file may be a link, which another user could have put there.
        """
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
        if not self.folder.is_dir():
            self.folder.mkdir(parents=True, exist_ok=True)
            with suppress(PermissionError):
                self.folder.chmod(0o1777)
        folder = os.open(self.folder, flags | os.O_DIRECTORY)
        try:
            with suppress(FileNotFoundError):
                return os.open(name, flags, dir_fd=folder)
            return os.open(name, flags | os.O_CREAT, 0o644, dir_fd=folder)
        finally:
            os.close(folder)


def _try_lock(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
