"""One driver per study: a lock that dies with its holder, and a note of who holds it."""

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
    """Be the study's only driver.

    The operating system drops the lock when the holder dies, so a dead holder's study is free.

    Raises:
        StudyBusyError: names the holder: host, process, since when.
    """
    study.path.parent.mkdir(parents=True, exist_ok=True)
    # Beside the folder, not in it: `--fresh` moves the folder away while the lease is held.
    lock = FileLock(study.path.with_name(f".{study.name}.lock"))
    holder = study.path.with_name(f".{study.name}.driver.json")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise StudyBusyError(f"study {study.name} is being run by {_describe(holder)}") from None
    try:
        me = {"host": socket.gethostname(), "pid": os.getpid(), "since": time.time()}
        write_atomically(holder, json.dumps(me) + "\n")
        yield
        holder.unlink(missing_ok=True)
    finally:
        lock.release()


def _describe(holder: os.PathLike[str]) -> str:
    try:
        with open(holder, encoding="utf-8") as file:
            me = json.load(file)
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(me["since"]))
        return f"process {me['pid']} on {me['host']} since {since}"
    except (OSError, ValueError, KeyError):
        return "another process"
