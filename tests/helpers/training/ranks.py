"""Ranks of one trial, or of a packed job, in processes of their own; some stop or fail."""

import dataclasses
import json
import multiprocessing.connection
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from helpers.training.train import Killer, Recorder

from trial.distributed.rank_group import PeerLost, folder_of_rank, rank_environment
from trial.store.folders import TrialFolder
from trial.train import train

PEER_LOST = 17
"""Exit code of a rank that saw another one end."""


def run_rank(rank: int, size: int, port: int, path: str, script: tuple[str, int]) -> None:
    """Train as one rank; `script` is what its control does (a stop reason, or `die`), and when."""
    os.environ.update(rank_environment(rank, ["here"] * size, "127.0.0.1", port))
    import torch

    torch.set_num_threads(1)
    action, asked = script
    control = Killer(asked=asked) if action == "die" else Recorder(action or None, asked)  # type: ignore[arg-type]
    folder = TrialFolder(path)
    try:
        train(folder, control)
    except PeerLost:
        os._exit(PEER_LOST)
    Path(path, f"asked-{rank}").write_text(str(control.asked))
    os._exit(0)


KILLED = -signal.SIGKILL


def run_ranks(context: Any, target: Callable[..., None], *of_ranks: tuple[Any, ...]) -> list[int]:
    """Start `target(rank, size, port, *arguments of the rank)` for each rank; their exit codes.

    As with any launcher, a rank that fails ends the others.
    """
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    ranks = [
        context.Process(target=target, args=(rank, len(of_ranks), port, *arguments))
        for rank, arguments in enumerate(of_ranks)
    ]
    for rank in ranks:
        rank.start()
    waiting = {rank.sentinel: rank for rank in ranks}
    while waiting and (ready := multiprocessing.connection.wait(list(waiting), 120)):
        if any(waiting.pop(sentinel).exitcode for sentinel in ready):
            break
    for rank in waiting.values():
        rank.kill()
    for rank in ranks:
        rank.join(120)
    return [rank.exitcode for rank in ranks]


@dataclasses.dataclass(frozen=True)
class Packed:
    """A packed job for `run_packed_rank`."""

    folders: tuple[str, ...]
    slots: int
    stops: tuple[tuple[str, int] | None, ...] = ()
    """By trial: stop reason, and the step of the evaluation after which it is requested."""
    fault: tuple[str, int, str] | None = None
    """A method of the engine that fails on this rank, at which call, and how (see `FAULTS`)."""
    away: bool = False
    """Whether the CPU acts as a device where reading a loss waits (`reads_without_sync` off)."""
    fixed: bool = False
    """Whether it acts as a device with `fixed_shapes`."""


def die() -> Exception:
    """End this process with SIGKILL."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("still there")


FAULTS: dict[str, Callable[[], Exception]] = {
    "full": lambda: MemoryError("a test"),
    "wrong": lambda: RuntimeError("shapes do not agree"),
    "die": die,
}


def run_packed_rank(rank: int, size: int, port: int, given: Packed) -> None:
    """Train as one rank of a packed job; the states it saw go to `saw-RANK` in the first folder."""
    os.environ.update(rank_environment(rank, ["here"] * size, "127.0.0.1", port))
    import torch
    from helpers.training.packed import CacheOnDevice, StopsAfter, failing_engine, opener

    from trial.multi_lora.engine import Engine
    from trial.packed.job import train_packed

    torch.set_num_threads(1)
    engine: Any = Engine
    if given.fault:
        method, call, how = given.fault
        engine = failing_engine(method, FAULTS[how], lambda _, number: number == call)
    folders = [folder_of_rank(TrialFolder(path)) for path in given.folders]
    controls = [StopsAfter(*(stop or (None, 0))) for stop in given.stops]
    try:
        found = train_packed(
            folders,
            slots=given.slots,
            process_cache=CacheOnDevice(
                reads_without_sync=not given.away, fixed_shapes=given.fixed
            ),
            controls=controls or None,
            opener=opener(engine),
        )
    except PeerLost:
        os._exit(PEER_LOST)
    states = [result.state if result else None for result in found]
    Path(given.folders[0], f"saw-{rank}").write_text(json.dumps(states))
    os._exit(0)
