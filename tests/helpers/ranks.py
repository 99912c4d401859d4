"""Ranks of one trial, or of a packed job, in processes of their own; some stop or fail."""

import dataclasses
import json
import multiprocessing.connection
import os
import signal
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from helpers.train import Killer, Recorder

from trial.distributed.rank_group import PeerLost, folder_of_rank, rank_environment
from trial.store.control import NullControl
from trial.store.folders import TrialFolder
from trial.store.records import Evaluation
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
    """Whether the CPU acts as a device where reading a loss waits (`free_reads` off)."""
    fixed: bool = False
    """Whether it acts as a device with `fixed_shapes`."""


class StopsAfter(NullControl):
    """Asks a trial to stop after an evaluation at some step."""

    def __init__(self, reason: str | None, step: int) -> None:
        self.reason, self.step, self.evaluated_step = reason, step, 0

    def evaluated(self, folder: TrialFolder, evaluation: Evaluation) -> None:
        self.evaluated_step = evaluation.step

    def stop_reason(self, folder: TrialFolder) -> Any:
        return self.reason if self.evaluated_step >= self.step else None


FAULTS: dict[str, Callable[[], Exception]] = {
    "full": lambda: MemoryError("a test"),
    "wrong": lambda: RuntimeError("shapes do not agree"),
}


def break_engine(name: str, call: int, how: str) -> None:
    """Let the n-th call of a method of the engine fail; a `step` fails after it has been done."""
    from trial.multi_lora.engine import Engine

    original, calls = getattr(Engine, name), 0

    def broken(engine: Any, *given: Any) -> Any:
        nonlocal calls
        calls += 1
        result = original(engine, *given) if calls != call or name == "step" else None
        if calls != call:
            return result
        if how == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        raise FAULTS[how]()

    setattr(Engine, name, broken)


def run_packed_rank(rank: int, size: int, port: int, given: Packed) -> None:
    """Train as one rank of a packed job; the states it saw go to `saw-RANK` in the first folder."""
    os.environ.update(rank_environment(rank, ["here"] * size, "127.0.0.1", port))
    import torch

    from trial.devices import device
    from trial.packed.job import train_packed

    torch.set_num_threads(1)
    device.DEVICES["cpu"] = dataclasses.replace(
        device.DEVICES["cpu"], free_reads=not given.away, fixed_shapes=given.fixed
    )
    if given.fault:
        break_engine(*given.fault)
    folders = [folder_of_rank(TrialFolder(path)) for path in given.folders]
    controls: Sequence[NullControl] = [StopsAfter(*(stop or (None, 0))) for stop in given.stops]
    try:
        found = train_packed(folders, slots=given.slots, controls=controls or None)
    except PeerLost:
        os._exit(PEER_LOST)
    states = [result.state if result else None for result in found]
    Path(given.folders[0], f"saw-{rank}").write_text(json.dumps(states))
    os._exit(0)
