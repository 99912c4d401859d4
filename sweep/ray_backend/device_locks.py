"""The HPUs a process holds on its machine, as locks that the kernel drops when it dies.

Ray promises a worker so many cards of a node; which ones, the workers of a machine settle here, so
that groups are aligned. It holds between several sweeps too, each with a Ray of its own.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from sweep.spec.hpu_groups import free_group

VARIABLE = "HABANA_VISIBLE_MODULES"
SHARED_MEMORY = Path("/dev/shm")
"""Containers started as Gaudi's want it (`--ipc=host`) see the same one."""


def default_folder() -> Path:
    """Where the locks of this machine are."""
    root = SHARED_MEMORY if SHARED_MEMORY.is_dir() else Path(tempfile.gettempdir())
    return root / "gaudi-sweep-cards"


def machine_modules(count: int) -> list[str]:
    """Ids of this machine's modules in the order of their index; `count` is how many Ray has."""
    named = os.environ.get(VARIABLE, "")
    modules = [part.strip() for part in named.split(",") if part.strip().isdecimal()]
    modules = modules or _ask_driver()
    return (modules or [str(index) for index in range(count)])[:count]


def _ask_driver() -> list[str]:
    command = ["hl-smi", "-Q", "index,module_id", "-f", "csv,noheader"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return []
    return parse_modules(said.stdout)


def parse_modules(text: str) -> list[str]:
    """Module ids in the order of their index, from `hl-smi`'s lines `index, module_id`."""
    rows = [[part.strip() for part in line.split(",")] for line in text.splitlines()]
    pairs = [(int(row[0]), row[1]) for row in rows if len(row) == 2 and row[0].isdecimal()]
    return [module for _, module in sorted(pairs)]


class DeviceLocks:
    """Locks on cards of this machine, by module id; held until `release` or the process's end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._held: list[int] = []

    def take(self, modules: Sequence[str], count: int) -> tuple[str, ...]:
        """Hold a free aligned group of `count` among the modules; empty when there is none."""
        with self._choosing():
            handles = [self._open(f"module-{module}") for module in modules]
            taken = {index for index, handle in enumerate(handles) if not _lock(handle)}
            group = free_group(len(modules), count, taken) or ()
            for index, handle in enumerate(handles):
                if index in group:
                    # Shared: the other ranks of the trial hold the group too.
                    fcntl.flock(handle, fcntl.LOCK_SH)
                    self._held.append(handle)
                else:
                    os.close(handle)
        return tuple(modules[index] for index in group)

    def share(self, modules: Sequence[str]) -> None:
        """Hold modules that another rank of the same trial has taken."""
        for module in modules:
            handle = self._open(f"module-{module}")
            fcntl.flock(handle, fcntl.LOCK_SH)
            self._held.append(handle)

    def release(self) -> None:
        """Let go."""
        while self._held:
            os.close(self._held.pop())

    @contextmanager
    def _choosing(self) -> Iterator[None]:
        """One process of the machine chooses at a time."""
        handle = self._open("choosing")
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)

    def _open(self, name: str) -> int:
        """A lock file, which another user may have made: only then is nothing created."""
        path = self.folder / name
        if not self.folder.is_dir():
            self.folder.mkdir(parents=True, exist_ok=True)
            with suppress(PermissionError):
                self.folder.chmod(0o1777)
        with suppress(FileNotFoundError):
            return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        handle = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        return handle


def _lock(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
