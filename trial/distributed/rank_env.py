"""Environment and global state of a rank's process: rank variables, DeepSpeed, accelerate."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from trial.devices import compat

ONE_RANK = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
"""Variables of a trial with one rank; DeepSpeed reads them."""


def world_size() -> int:
    """Number of ranks of the trial."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Number of this process's rank; rank 0 decides and writes."""
    return int(os.environ.get("RANK", "0"))


def free_port() -> int:
    """A TCP port of the loopback interface that is free now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextmanager
def rank_variables(deepspeed: bool) -> Iterator[None]:
    """Set rank variables for a DeepSpeed trial, unless a launcher has, and remove them afterwards.

    accelerate's variables are removed before and after: one left behind would silently turn the
    next trial into a DeepSpeed trial.
    """
    before = dict(os.environ)
    compat.clear_accelerate_environment()
    if deepspeed and "RANK" not in os.environ:
        os.environ.update(ONE_RANK, MASTER_PORT=str(free_port()))
    try:
        yield
    finally:
        compat.clear_accelerate_environment()
        for name in {*ONE_RANK, "MASTER_PORT"} - set(before):
            os.environ.pop(name, None)


def skip_deepspeed_shm_build(device: str) -> None:
    """On a CPU, keep DeepSpeed from compiling its shared-memory communication operator."""
    if device == "cpu":
        compat.skip_shared_memory_operator()


def init_deepspeed_comm(backend: str) -> None:
    """Initialise DeepSpeed's communication before the model is loaded.

    Its engine would do so later, and ZeRO stage 3 partitions the weights as they are loaded: before
    the initialisation it would partition for one rank.
    """
    from deepspeed import comm

    if not comm.is_initialized():
        comm.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False)


def tear_down(trainer: Any | None) -> None:
    """Remove a trainer's global state: DeepSpeed's engine, accelerate's state, ZeRO's settings."""
    if trainer is not None:
        engine = getattr(trainer, "deepspeed", None)
        if engine is not None:
            # An engine whose construction failed cannot be destroyed; the trial's error matters.
            with suppress(Exception):
                engine.destroy()
        with suppress(Exception):
            trainer.accelerator.free_memory()
    compat.reset_accelerate()
