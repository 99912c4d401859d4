"""Imports what a trial needs ahead of time, and keeps the seconds that this took.

The seconds are charged to the next trial: added to its `startup` seconds.
"""

from __future__ import annotations

import gc
import logging
import os
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

from trial.devices.compat import skip_optional_imports
from trial.devices.device import DEVICES, Device
from trial.store.cache_dir import set_cache_folders

UNUSED = ("datasets", "scipy", "sklearn")
"""Packages that transformers imports, where installed, for classes that no trial uses."""
SHORT_ROOTS = ("/tmp", "/var/tmp")
"""Folders for temporary files whose paths are short."""
LONGEST_TMPDIR = 103 - len("/pymp-12345678/listener-12345678")
"""Bytes that a path may have so that `multiprocessing` can make its sockets below it; the path of a
socket has at most 107 bytes on Linux and 103 on macOS."""
_import_seconds: list[float] = []
"""Seconds of imports not yet charged to a trial."""


@cache
def preload(device: str) -> None:
    """Import all that a trial on `device` imports, without touching the device.

    For a process that waits for its first trial. The variables of
    `trial.devices.environment.process_environment` must be set.
    """
    began = time.perf_counter()
    set_cache_folders()
    _shorten_temporary_folder()
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    with _no_garbage_collection():
        _import_all(DEVICES[device])
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    _import_seconds.append(time.perf_counter() - began)


def _shorten_temporary_folder() -> None:
    """Use another folder for temporary files where the path of TMPDIR is too long for a socket.

    A trial with `dataloader_num_workers` would wait for its first batch for ever.
    """
    if len(os.fsencode(tempfile.gettempdir())) <= LONGEST_TMPDIR:
        return
    for root in SHORT_ROOTS:
        if os.access(root, os.W_OK | os.X_OK):
            tempfile.tempdir = root
            return


def uncharged_seconds() -> float:
    """Seconds of imports not yet charged to a trial."""
    return sum(_import_seconds)


def finish_imports(device: str) -> float:
    """Import what is still missing; return the seconds of imports made before this call.

    They are returned once. The seconds of this call are not among them: the clock of the trial that
    is about to start counts them.
    """
    spent = uncharged_seconds()
    preload(device)
    _import_seconds.clear()
    return spent


def discard_import_seconds() -> None:
    """Charge no trial with the imports made so far."""
    _import_seconds.clear()


def _import_all(device: Device) -> None:
    skip_optional_imports(UNUSED)
    import peft  # noqa: F401
    import transformers

    # Its info messages are meant for a single training run by hand.
    transformers.logging.set_verbosity_error()
    device.trainer_class()
    device.arguments_class()
    # The trainer would import it in the middle of its first trial.
    import deepspeed  # noqa: F401

    import trial.training.attempt  # noqa: F401


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Import modules without garbage collection, which takes a fifth of the import time.

    Modules are never freed, so later collections (several in each trial) skip them as well.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        if enabled:
            gc.enable()
