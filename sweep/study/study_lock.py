"""One driver per study: a file lock, and a note of the process that holds it.

Where a network file system has no locks (some mounts of NFS and FUSE), a file that exists keeps out
the drivers of other hosts, and a lock on the local disk those of this one. The operating system
releases a local lock when its holder dies. So the file of a driver of this host that was killed is
taken over, and that of another host must be removed by hand.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from trial.store.cache_dir import make_private
from trial.store.files import write_atomically
from trial.store.folders import StudyFolder

NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
"""What a file system without locks answers to `flock`."""


class StudyBusyError(RuntimeError):
    """Another driver runs this study."""


@contextmanager
def hold(study: StudyFolder) -> Iterator[None]:
    """Hold the study's lock: no other driver can run it meanwhile.

    Raises:
        StudyBusyError: names the holder: host, process, since when.
        OSError: the lock's file cannot be written.
    """
    study.path.parent.mkdir(parents=True, exist_ok=True)
    # Beside the folder, not in it: `--fresh` renames the folder while the lock is held.
    path = study.path.with_name(f".{study.name}.lock")
    holder = study.path.with_name(f".{study.name}.driver.json")
    with ExitStack() as held:
        try:
            try:
                held.enter_context(FileLock(path, timeout=0))
            except OSError as error:
                if error.errno not in NO_LOCKS:
                    raise
                held.enter_context(_without_locks(path))
        except Timeout:
            busy = f"study {study.name} is being run by {_describe(holder)}"
            raise StudyBusyError(busy) from None
        except FileExistsError as error:
            busy = f"study {study.name} is being run by {_describe(holder)}"
            advice = f"its file system has no locks: if that has ended, remove {error.filename}"
            raise StudyBusyError(f"{busy}; {advice}") from None
        owner = {"host": socket.gethostname(), "pid": os.getpid(), "since": time.time()}
        write_atomically(holder, json.dumps(owner) + "\n")
        yield
        holder.unlink(missing_ok=True)


@contextmanager
def _without_locks(path: Path) -> Iterator[None]:
    """Keep out other drivers where `path` cannot be locked.

    Raises:
        Timeout: a driver of this host runs the study.
        FileExistsError: a driver of another host runs it, or was killed.
        OSError: there is no private folder for the lock among the temporary files.
    """
    local = Path(tempfile.gettempdir(), f"gaudi-sweep-locks-{os.geteuid()}")
    if not make_private(local):
        raise OSError(errno.EPERM, "is not a folder of this user's own", str(local))
    # Containers may share a host's name; they do not share its temporary files.
    place = os.stat(local)
    here = f"{socket.gethostname()} {place.st_dev}:{place.st_ino}"
    name = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]
    mark = path.with_suffix(".held")
    with FileLock(local / f"{name}.lock", timeout=0):
        # A link appears whole or not at all, on NFS too.
        own = mark.with_name(f"{mark.name}.{socket.gethostname()}.{os.getpid()}")
        own.write_text(here, encoding="utf-8")
        try:
            os.link(own, mark)
        except FileExistsError:
            if mark.read_text(encoding="utf-8") != here:
                raise FileExistsError(errno.EEXIST, "held", str(mark)) from None
        finally:
            own.unlink(missing_ok=True)
        try:
            yield
        finally:
            mark.unlink(missing_ok=True)


def _describe(holder: os.PathLike[str]) -> str:
    try:
        with open(holder, encoding="utf-8") as file:
            owner = json.load(file)
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(owner["since"]))
        return f"process {owner['pid']} on {owner['host']} since {since}"
    except (OSError, ValueError, KeyError):
        return "another process"
