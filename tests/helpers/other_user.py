"""Another user of this machine: what such a user is able to do to files and sockets of ours."""

from __future__ import annotations

import os
import pickle
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import pytest

NOBODY = 65534

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")

Answer = TypeVar("Answer")


def as_nobody(action: Callable[[], Answer]) -> Answer | str:
    """What the action returns to the user `nobody`; the name of the exception that it raises."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        answer: Answer | str
        try:
            os.setgroups([])
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            answer = action()
        except BaseException as error:
            answer = type(error).__name__
        os.write(writing, pickle.dumps(answer))
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as file:
        content = file.read()
    os.waitpid(child, 0)
    return pickle.loads(content)


@contextmanager
def shared_folder() -> Iterator[Path]:
    """A folder as `/tmp` is: every user makes files there, and renames only their own."""
    with tempfile.TemporaryDirectory(prefix="s", dir="/tmp") as name:
        os.chmod(name, 0o1777)
        yield Path(name)
