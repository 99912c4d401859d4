"""What a rank finds and leaves in its process: its number, and what DeepSpeed needs around it."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

ONE_RANK = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}


def world_size() -> int:
    """How many ranks train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Which of them this process is; 0 decides and writes."""
    return int(os.environ.get("RANK", "0"))


def free_port() -> int:
    """A port nobody listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextmanager
def environment(deepspeed: bool) -> Iterator[None]:
    """Rank variables for a DeepSpeed trial, unless a launcher has set them; restored afterwards.

    accelerate's own variables are removed in any case: one left behind makes the next trial a
    DeepSpeed one without a word.
    """
    before = dict(os.environ)
    _forget_accelerate()
    if deepspeed and "RANK" not in os.environ:
        os.environ.update(ONE_RANK, MASTER_PORT=str(free_port()))
    try:
        yield
    finally:
        _forget_accelerate()
        for name in {*ONE_RANK, "MASTER_PORT"} - set(before):
            os.environ.pop(name, None)


def without_compiled_operators(device: str) -> None:
    """Keep DeepSpeed from compiling its shared-memory communication, which one rank never uses."""
    if device != "cpu":
        return
    import deepspeed.ops

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def introduce(backend: str) -> None:
    """Let DeepSpeed know of the other ranks before the model is loaded.

    It is told by its engine, and stage 3 asks earlier: it would partition for one rank.
    """
    from deepspeed import comm

    if not comm.is_initialized():
        comm.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False)


def put_away(trainer: Any | None) -> None:
    """Undo what a trainer leaves in the process: engine, accelerate's state, ZeRO's marks."""
    from accelerate.state import AcceleratorState, GradientState, PartialState
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    if trainer is not None:
        engine = getattr(trainer, "deepspeed", None)
        if engine is not None:
            # A half-built engine has nothing to destroy; the trial's own error matters more.
            with suppress(Exception):
                engine.destroy()
        with suppress(Exception):
            trainer.accelerator.free_memory()
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    PartialState._reset_state()
    unset_hf_deepspeed_config()
    _forget_accelerate()


def _forget_accelerate() -> None:
    for name in [name for name in os.environ if name.startswith("ACCELERATE_")]:
        del os.environ[name]
