"""One real sweep through the command, that is killed and run again."""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from faults.sweeps.checks import Snapshot, check_metrics, curves, require, snapshot
from faults.sweeps.ray_nodes import Nodes

from sweep.ray_backend.local.temp_folder import PREFIX
from sweep.storage.open import open_storage
from sweep.storage.url import VARIABLE
from sweep.study.verify import verify
from trial.store.folders import StudyFolder
from trial.training.checkpoints import Checkpoints

MARK = "GAUDI_SWEEP_FAULTS"
"""Environment variable that all processes of a run inherit, by which `ours` finds them."""


@dataclass
class Sweep:
    """One study that is run, killed and run again through the command."""

    source: Path
    runs: Path
    temporary: Path
    dice: random.Random
    trials: int
    storage: str | None = None
    nodes: Nodes | None = None
    """The cluster it runs on; None for a local Ray."""
    orphans: set[str] = field(default_factory=set)
    """Folders whose driver and reaper were both killed: the next run removes them."""
    slowest_cleanup: float = 0.0

    def __post_init__(self) -> None:
        self.mark = uuid.uuid4().hex
        self._sessions: set[int] = set()
        self.study = StudyFolder(self.runs / self.source.stem)
        self.before = Snapshot()
        self.output = self.runs.parent / f"{self.runs.name}.log"
        self.runs.mkdir(parents=True, exist_ok=True)
        self.temporary.mkdir(exist_ok=True)

    def start(
        self, within: Sequence[str] = (), output: int | None = None
    ) -> subprocess.Popen[bytes]:
        """The command, in a session of its own, its output in a file.

        Args:
            within: Words before the command: a program that runs it.
            output: File descriptor of another standard output.
        """
        words = [
            *within,
            sys.executable,
            "-m",
            "sweep",
            "run",
            str(self.source),
            "--runs",
            str(self.runs),
        ]
        environment = {
            **os.environ,
            MARK: self.mark,
            # Ray's socket names have to fit 107 bytes: this folder's path is short.
            "TMPDIR": str(self.temporary),
            "COLUMNS": "120",
        }
        if self.storage:
            environment[VARIABLE] = self.storage
        if self.nodes:
            words += ["--ray-address", self.nodes.address]
        with open(self.output, "ab") as file:
            return subprocess.Popen(
                words,
                stdout=file if output is None else output,
                stderr=file,
                env=environment,
                start_new_session=True,
            )

    def evaluations_on_disk(self) -> int:
        """How many evaluations there are, over all trials."""
        folders = [folder for _, folder in self.study.all_trials()]
        return sum(len(folder.read_evaluations()) for folder in folders)

    def ours(self) -> list[psutil.Process]:
        """Every live process that carries our mark, or is in a session of one that did.

        A process that changes its title, as Ray's agents and workers do, may lose its mark.
        """
        alive, found = {}, []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if process.status() != psutil.STATUS_ZOMBIE:
                    alive[process] = os.getsid(process.pid)
                    if process.environ().get(MARK) == self.mark:
                        found.append(process)
        self._sessions |= {alive[process] for process in found}
        return [process for process, session in alive.items() if session in self._sessions]

    # What must hold

    def check_clean(self, patience: float = 40.0, folders: bool = True) -> None:
        """No process of ours is left, and no temporary folder."""
        begun = time.monotonic()
        while left := [
            *map(_describe, self.ours()),
            *(self.temporary_folders() if folders else []),
        ]:
            waited = time.monotonic() - begun
            require(waited < patience, f"left after {waited:.0f} s: {left}")
            time.sleep(0.1)
        self.slowest_cleanup = max(self.slowest_cleanup, time.monotonic() - begun)

    def temporary_folders(self) -> list[str]:
        """Temporary folders of runs, but for those that only the next run can remove."""
        there = {path.name for path in self.temporary.glob(f"{PREFIX}*")}
        return sorted(there - self.orphans)

    def check(self) -> None:
        """Numbers, results, metrics and the journal, against what was there before."""
        now = snapshot(self.study)
        for number, print_ in self.before.results.items():
            require(now.results.get(number) == print_, f"trial {number}: its result was touched")
        for number, rows in self.before.evaluations.items():
            for step, loss in rows.items():
                told = now.evaluations.get(number, {}).get(step)
                require(told == loss, f"trial {number} step {step}: {loss} became {told}")
        for number, folder in self.study.all_trials():
            check_metrics(number, folder)
        self._check_journal()
        self.before = now

    def _check_journal(self) -> None:
        if not self.study.exists():
            return
        storage = open_storage(self.study, self.storage)
        try:
            findings = verify(self.study, storage)
        except ValueError as error:
            # Killed before Optuna heard of the study: then nothing else may be there either.
            require(not self.study.all_trials(), str(error))
            return
        wrong = [str(finding) for finding in findings if finding.wrong]
        require(not wrong, f"verify: {wrong}")
        numbers = [trial.number for trial in _trials(storage, self.study.name)]
        require(numbers == list(range(len(numbers))), f"numbers are {numbers}")

    def check_end(self, reference: dict[str, dict[int, float]] | None) -> None:
        """The sweep is over: all trials told, all values those of an uninterrupted run."""
        storage = open_storage(self.study, self.storage)
        states = Counter(trial.state.name for trial in _trials(storage, self.study.name))
        require(states["RUNNING"] == states["WAITING"] == states["FAIL"] == 0, f"{states}")
        require(states.total() == self.trials, f"{states.total()} trials of {self.trials}")
        results = {n: folder.read_result() for n, folder in self.study.all_trials()}
        require(sorted(results) == list(range(self.trials)), f"folders {sorted(results)}")
        require(all(results.values()), "a trial has no result")
        for number, folder in self.study.all_trials():
            state = results[number].state
            left = list(folder.path.glob("**/.*.tmp"))
            require(not left, f"trial {number} left {left}")
            require(state == "pruned" or folder.adapter.is_dir(), f"trial {number} has no adapter")
        self._check_disk()
        if reference is not None:
            require(curves(self.study) == reference, "values differ from an uninterrupted run")

    def _check_disk(self) -> None:
        """One whole last checkpoint is left, that of the best trial."""
        ended = {n: folder.read_result() for n, folder in self.study.all_trials()}
        complete = {
            n: result.eval_loss for n, result in ended.items() if result.state == "complete"
        }
        kept = [n for n, folder in self.study.all_trials() if folder.checkpoints.exists()]
        best = min(complete, key=lambda number: (complete[number], number))
        require(kept == [best], f"checkpoints of {kept}, the best is {best}")
        checkpoints = Checkpoints(self.study.trial(best))
        require(checkpoints.newest() is not None, f"trial {best} kept no whole checkpoint")


def _trials(storage: object, name: str) -> list[object]:
    import optuna

    return optuna.load_study(study_name=name, storage=storage).get_trials(deepcopy=False)


def _describe(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return f"{process.pid} {' '.join(process.cmdline())[:80]}"
    return str(process.pid)
