"""One driver per study: a file lock, and a note of the process that holds it."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

from filelock import FileLock, Timeout

from trial.store.files import write_atomically
from trial.store.folders import StudyFolder


class StudyBusyError(RuntimeError):
    """Another driver runs this study."""


@contextmanager
def hold(study: StudyFolder) -> Iterator[None]:
    """Hold the study's lock: no other driver can run it meanwhile.

    The operating system releases the lock when the holder dies; nothing is left to clean up.

    Raises:
        StudyBusyError: names the holder: host, process, since when.
    """
    study.path.parent.mkdir(parents=True, exist_ok=True)
    # Beside the folder, not in it: `--fresh` renames the folder while the lock is held.
    lock = FileLock(study.path.with_name(f".{study.name}.lock"))
    holder = study.path.with_name(f".{study.name}.driver.json")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise StudyBusyError(f"study {study.name} is being run by {_describe(holder)}") from None
    try:
        owner = {"host": socket.gethostname(), "pid": os.getpid(), "since": time.time()}
        write_atomically(holder, json.dumps(owner) + "\n")
        yield
        holder.unlink(missing_ok=True)
    finally:
        lock.release()


def _describe(holder: os.PathLike[str]) -> str:
    try:
        with open(holder, encoding="utf-8") as file:
            owner = json.load(file)
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(owner["since"]))
        return f"process {owner['pid']} on {owner['host']} since {since}"
    except (OSError, ValueError, KeyError):
        return "another process"
