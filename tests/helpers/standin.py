"""Trials on the STAND-IN for Gaudi (tests/standin), each in a process of its own.

Its imports take seconds: one process does them and forks for every trial. Two variables in that
process's environment make the stand-in importable; the tests' own process never imports it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from helpers.paths import TESTS

from trial.distributed.rank_env import free_port
from trial.distributed.rank_group import rank_environment
from trial.store.folders import TrialFolder

STANDIN = TESTS / "standin"
COUNTS = "stand-in.json"
SWITCH = "GAUDI_SWEEP_TEST_HPU_STAND_IN"
# The environment before any test: a trial on the CPU sets DS_ACCELERATOR for the life of the
# tests' own process.
BEFORE = dict(os.environ)


def environment(**more: str) -> dict[str, str]:
    """The environment of a process that imports the stand-in as Habana's software."""
    path = [str(STANDIN), str(TESTS), *filter(None, [BEFORE.get("PYTHONPATH")])]
    variables = {"PYTHONPATH": os.pathsep.join(path), SWITCH: "1", "PT_HPU_LAZY_MODE": "0"}
    return {**BEFORE, "OMP_NUM_THREADS": "1", **variables, **more}


class Session:
    """A process with all imports done, which forks for each trial."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def train(
        self, folder: TrialFolder, ranks: int = 1, killed_at: int = 0, **variables: str
    ) -> list[int]:
        """Train a folder; returns the exit codes of its ranks.

        Rank 0 is killed at its `killed_at`-th call of `Control.stop_reason`; never when that is 0.
        """
        of_ranks: Sequence[Mapping[str, str]] = [{}]
        if ranks > 1:
            homes, port = ["here"] * ranks, free_port()
            of_ranks = [rank_environment(rank, homes, "127.0.0.1", port) for rank in range(ranks)]
        wanted = [{**variables, **one} for one in of_ranks]
        return self._ask({"folder": str(folder.path), "ranks": wanted, "killed_at": killed_at})

    def command(self, *words: object) -> int:
        """Run `python -m trial WORDS`; returns its exit code."""
        return self._ask({"words": [str(word) for word in words], "ranks": [{}]})[0]

    def _ask(self, request: dict[str, Any]) -> list[int]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        codes: list[int] = json.loads(self._process.stdout.readline())
        return codes


@contextmanager
def session() -> Iterator[Session]:
    """A session that ends with the block."""
    process = subprocess.Popen(
        [sys.executable, "-c", "from helpers import standin; standin.serve()"],
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
    """Main function of the session's process: one request and one answer a line."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    from trial.preload import preload

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
        os._exit(_command(request["words"]) if "words" in request else _train(request))
    except BaseException:
        traceback.print_exc()
        os._exit(70)


def _command(words: list[str]) -> int:
    from trial.__main__ import main

    return main(words)


def _train(request: dict[str, Any]) -> int:
    from helpers.training.train import Killer

    from trial.distributed.rank_group import folder_of_rank
    from trial.store.log_capture import capture
    from trial.train import train

    folder = folder_of_rank(TrialFolder(request["folder"]))
    control = Killer(asked=request["killed_at"]) if request["killed_at"] else None
    with capture(folder):
        result = train(folder, control)
    if not os.environ.get("RANK", "0").strip("0"):
        Path(folder.path, COUNTS).write_text(json.dumps(_counts()))
    return 0 if result is not None and result.state == "complete" else 1


def _counts() -> dict[str, int]:
    """Number of calls of each function of the stand-in."""
    from habana_frameworks import torch as bridge
    from habana_frameworks.torch.hpex import kernels, normalization, optimizers

    return {
        "compiled": bridge.compiled,
        "marks": bridge.core.marks,
        "attention": kernels.FusedSDPA.calls,
        "clips": normalization.FusedClipNorm.calls,
        "steps": optimizers.FusedAdamW.calls,
    }
