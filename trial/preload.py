"""Imports of a trial, made ahead of time, and the seconds that they took."""

from __future__ import annotations

import gc
import logging
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from trial.devices.device import DEVICES, Device

UNUSED = ("datasets", "scipy", "sklearn")
"""Where they are installed, transformers imports them for classes that no trial makes."""
_import_seconds: list[float] = []
"""Spent on imports and not yet charged to a trial."""


@cache
def preload(device: str) -> None:
    """Import all that a trial on `device` imports, without touching the device.

    For a process that waits for its first trial. The variables of
    `trial.devices.environment.environment` must be set.
    """
    began = time.perf_counter()
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    with _no_collection():
        _import_all(DEVICES[device])
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    _import_seconds.append(time.perf_counter() - began)


def uncharged_seconds() -> float:
    """Seconds of imports that no trial has been charged with."""
    return sum(_import_seconds)


def finish_imports(device: str) -> float:
    """Import what is still missing; return the seconds spent on imports before this call.

    They are returned once: the trial that is about to start is charged with them.
    """
    spent = uncharged_seconds()
    preload(device)
    _import_seconds.clear()
    return spent


def discard_import_seconds() -> None:
    """Charge no trial with the imports made so far."""
    _import_seconds.clear()


def _import_all(device: Device) -> None:
    _spare_unused()
    import peft  # noqa: F401
    import transformers

    # Their information is for people who run one training by hand.
    transformers.logging.set_verbosity_error()
    device.trainer_class()
    device.arguments_class()
    # The trainer imports it in any case, in the middle of its first trial.
    import deepspeed  # noqa: F401

    import trial.training.attempt  # noqa: F401


@contextmanager
def _no_collection() -> Iterator[None]:
    """Modules stay for good: looking for garbage among them takes a fifth of their import.

    Later collections are spared them as well: trainers collect several times a trial.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        if enabled:
            gc.enable()


def _spare_unused() -> None:
    """Keep transformers from importing what no trial uses of it; trials may still import it."""
    from transformers.utils import import_utils

    if scan := getattr(import_utils, "create_import_structure_from_path", None):
        # It has just read all its models for their folder, and would again for the file in it.
        import_utils.create_import_structure_from_path = lambda path: scan(
            Path(path).parent if Path(path).name == "__init__.py" else path
        )
    for name in UNUSED:
        setattr(import_utils, f"_{name}_available", False)
