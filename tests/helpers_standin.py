"""Trials on the STAND-IN for Gaudi (tests/standin), each in a process of its own.

Its imports take seconds: one process makes them and forks for every trial. It is reached by two
variables in the environment of that process alone; nothing of it enters the tests' own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from trial.folder import TrialFolder
from trial.gang import rank_environment
from trial.ranks import free_port

TESTS = Path(__file__).resolve().parent
STANDIN = TESTS / "standin"
SWITCH = "GAUDI_SWEEP_TEST_HPU_STAND_IN"


def environment(**more: str) -> dict[str, str]:
    """The environment of a process that takes the stand-in for a Gaudi."""
    path = [str(STANDIN), str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]
    own = {"PYTHONPATH": os.pathsep.join(path), SWITCH: "1", "PT_HPU_LAZY_MODE": "0"}
    return {**os.environ, "OMP_NUM_THREADS": "1", **own, **more}


class Session:
    """A warm process that forks for each trial."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def train(
        self, folder: TrialFolder, ranks: int = 1, probe: str = "", **variables: str
    ) -> list[int]:
        """Train a folder; returns the exit codes of its ranks. `probe` is run after the training."""
        gang: Sequence[Mapping[str, str]] = [{}]
        if ranks > 1:
            homes, port = ["here"] * ranks, free_port()
            gang = [rank_environment(rank, homes, "127.0.0.1", port) for rank in range(ranks)]
        wanted = [{**variables, **one} for one in gang]
        request = {"folder": str(folder.path), "ranks": wanted, "probe": probe}
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        codes: list[int] = json.loads(self._process.stdout.readline())
        return codes


@contextmanager
def session() -> Iterator[Session]:
    """A session that ends with the block."""
    process = subprocess.Popen(
        [sys.executable, "-c", "import helpers_standin; helpers_standin.serve()"],
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield Session(process)
    finally:
        process.communicate(timeout=60)


def serve() -> None:
    """The session's process."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    from trial.workbench import preload

    preload("hpu")
    import optimum.habana.transformers.modeling_utils  # noqa: F401

    for line in sys.stdin:
        request = json.loads(line)
        children = [_fork(request, rank) for rank in request["ranks"]]
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        answers.write(json.dumps(codes) + "\n")


def _fork(request: dict[str, Any], variables: dict[str, str]) -> int:
    child = os.fork()
    if child:
        return child
    try:
        os.environ.update(variables)
        folder = TrialFolder(request["folder"])
        from trial.logs import capture
        from trial.train import train

        with capture(folder):
            result = train(folder)
        if request["probe"]:
            exec(request["probe"], {"folder": folder})
        os._exit(0 if result is not None and result.state == "complete" else 1)
    except BaseException:
        import traceback

        traceback.print_exc()
        os._exit(70)
