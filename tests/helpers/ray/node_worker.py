"""Workers that write down where they were placed, for tests on simulated clusters and devices."""

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
"""Environment variable: the folder of the nodes' HPU locks."""
GATE = "TEST_GATE"
"""Environment variable: the file lock that a `LateWorker` waits for."""
RECORDED = (
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
    """A process cache that lets the worker be used again."""

    reusable = True


WAIT, COMPLETE, RANK_1_DIES, RANK_1_FAILS = 1, 2, 3, 4


class NodeWorker(TrialWorker):
    """Does what the trial's `lora.r` says, after writing `placement-<rank>.json` to its folder."""

    def __init__(self, environment: dict[str, str], device: str, hang_seconds: float) -> None:
        super().__init__(environment, preload=None, hang_seconds=hang_seconds)

    def lock_folder(self, node: str) -> Path | None:
        # Simulated nodes share one machine; each has its own HPUs.
        return Path(os.environ[LOCKS], node)

    def train(self, folder: TrialFolder, control: WorkerControl) -> Result | None:
        self.process_cache = Reusable()
        rank = int(os.environ.get("RANK", "0"))
        self._write_placement(folder, rank)
        control.started(folder, "scripted", 1)
        script = folder.read_config().lora.r
        if script == COMPLETE:
            result = Result(state="complete", eval_loss=1.0)
            folder.write_result(result)
            return result
        if script == RANK_1_DIES and rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        if script == RANK_1_FAILS:
            if rank == 1:
                raise MemoryError("rank 1 is full")
            raise PeerLost("closed by peer")
        return wait(folder, control)

    def _write_placement(self, folder: TrialFolder, rank: int) -> None:
        import ray

        placement = {name: os.environ.get(name) for name in RECORDED}
        placement |= {"pid": os.getpid(), "node": ray.get_runtime_context().get_node_id()}
        path = folder.path / f"placement-{rank}.json"
        path.with_suffix(".part").write_text(json.dumps(placement))
        os.replace(path.with_suffix(".part"), path)


class LateWorker(NodeWorker):
    """A worker that cannot start while another process holds the file lock that `GATE` names."""

    def __init__(self, environment: dict[str, str], device: str, hang_seconds: float) -> None:
        with FileLock(environment[GATE]):
            super().__init__(environment, device, hang_seconds)


def wait(folder: TrialFolder, control: WorkerControl) -> Result | None:
    idle = threading.Event()
    while (reason := control.stop_reason(folder)) is None:
        idle.wait(0.02)
    if reason == "interrupt":
        return None
    result = Result(state="pruned")
    folder.write_result(result)
    return result
