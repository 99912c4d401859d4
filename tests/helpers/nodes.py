"""Workers that write down where they sit, for tests on simulated clusters and devices."""

from __future__ import annotations

import json
import os
import signal
import threading
from pathlib import Path

from filelock import FileLock

from sweep.ray_backend.worker import TrialWorker, WorkerControl
from trial.distributed.rank_group import PeerLost
from trial.store.folders import TrialFolder
from trial.store.records import Result

LOCKS = "TEST_CARD_LOCKS"
GATE = "TEST_GATE"
TOLD = (
    "RANK",
    "LOCAL_RANK",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
    "GLOO_SOCKET_IFNAME",
    "HABANA_VISIBLE_MODULES",
)


class Reusable:
    """Says that the worker may be used again."""

    reusable = True


WAIT, COMPLETE, RANK_1_DIES, RANK_1_FAILS = 1, 2, 3, 4


class NodeWorker(TrialWorker):
    """Does what the trial's `lora.r` says, after writing `seat-<rank>.json` into its folder."""

    def __init__(self, environment: dict[str, str], device: str, hang_seconds: float) -> None:
        super().__init__(environment, preload=None, hang_seconds=hang_seconds)

    def _locks(self, node: str) -> Path | None:
        # Simulated nodes share one machine, and each thinks its cards its own.
        return Path(os.environ[LOCKS], node)

    def _train_here(self, folder: TrialFolder, line: WorkerControl) -> Result | None:
        self._process_cache = Reusable()
        rank = int(os.environ.get("RANK", "0"))
        self._write_seat(folder, rank)
        line.started(folder, "scripted", 1)
        script = folder.read_config().lora.r
        if script == COMPLETE:
            result = Result(state="complete", value=1.0)
            folder.write_result(result)
            return result
        if script == RANK_1_DIES and rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        if script == RANK_1_FAILS:
            if rank == 1:
                raise MemoryError("rank 1 is full")
            raise PeerLost("closed by peer")
        return wait(folder, line)

    def _write_seat(self, folder: TrialFolder, rank: int) -> None:
        import ray

        placement = {name: os.environ.get(name) for name in TOLD}
        placement |= {"pid": os.getpid(), "node": ray.get_runtime_context().get_node_id()}
        path = folder.path / f"seat-{rank}.json"
        path.with_suffix(".part").write_text(json.dumps(placement))
        os.replace(path.with_suffix(".part"), path)


class LateWorker(NodeWorker):
    """One that is not up as long as somebody else holds the file lock that `GATE` names."""

    def __init__(self, environment: dict[str, str], device: str, hang_seconds: float) -> None:
        with FileLock(environment[GATE]):
            super().__init__(environment, device, hang_seconds)


def wait(folder: TrialFolder, line: WorkerControl) -> Result | None:
    idle = threading.Event()
    while (reason := line.stop_reason(folder)) is None:
        idle.wait(0.02)
    if reason == "interrupt":
        return None
    result = Result(state="pruned")
    folder.write_result(result)
    return result
