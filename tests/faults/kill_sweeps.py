"""Real sweeps through the command, killed at random moments, and what must hold after each kill.

    .venv/bin/python tests/faults/kill_sweeps.py --kills 50 --seed 1

Prints the seed, every kill and the counts; ends with 1 when anything was lost or done twice.
`test_faults_kills.py` runs a handful of kills of the same kind. A seed repeats the choices, not the
moment to the microsecond: the machine has its own say in that.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import yaml
from faults.ray_nodes import Nodes

from sweep.storage.open import open_storage
from sweep.storage.url import VARIABLE
from sweep.study.verify import verify
from trial.store.files import read_lines
from trial.store.folders import StudyFolder, TrialFolder
from trial.training.checkpoints import Checkpoints

MARK = "GAUDI_SWEEP_FAULTS"
"""In the environment of every process of a run, so that none can hide from the process table."""

STEPS, EVERY = 40, 5
RATES = (1e-3, 3e-3, 1e-2, 3e-2)
PATIENCE = 240.0


def content(
    model: Path, rows: Path, rates: Sequence[float], **changes: object
) -> dict[str, object]:
    """Trials of forty steps with dropout, so that a lost random state would show."""
    return {
        "base": {
            "model": {"name_or_path": str(model)},
            "data": {"path": str(rows), "max_length": 32},
            "lora": {"lora_dropout": 0.1},
            "training": {"max_steps": STEPS, "eval_steps": EVERY, "warmup_ratio": 0.0},
        },
        "space": {"lora.r": [2, 4], "training.learning_rate": list(rates)},
        "sampler": "grid",
        "pruner": "none",
        "resources": {"concurrency": 2},
        **changes,
    }


PRUNED = {"pruner": {"name": "median", "n_startup_trials": 2}}
PACKED = {"resources": {"concurrency": 1, "pack": 4}}
MEASURED = {"resources": {"concurrency": 1, "pack": "auto"}}
"""The job itself finds out how many trials it holds."""


class LostError(AssertionError):
    """Something was lost, done twice, or left behind."""


def require(holds: bool, what: str) -> None:
    """A promise of the harness."""
    if not holds:
        raise LostError(what)


@dataclass
class Snapshot:
    """What was final at one moment: results by number, and every evaluation on disk."""

    results: dict[int, tuple[int, int, str]] = field(default_factory=dict)
    evaluations: dict[int, dict[int, float]] = field(default_factory=dict)


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
    """The cluster it runs on; None for a Ray of its own."""
    orphans: set[str] = field(default_factory=set)
    """Folders whose driver and reaper were both killed: gone once a run has come to start Ray."""
    slowest_cleanup: float = 0.0

    def __post_init__(self) -> None:
        self.mark = uuid.uuid4().hex
        self.study = StudyFolder(self.runs / self.source.stem)
        self.before = Snapshot()
        self.output = self.runs.parent / f"{self.runs.name}.log"
        self.runs.mkdir(parents=True, exist_ok=True)
        self.temporary.mkdir(exist_ok=True)

    def start(self) -> subprocess.Popen[bytes]:
        """The command, in a session of its own, its output in a file."""
        words = [sys.executable, "-m", "sweep", "run", str(self.source), "--runs", str(self.runs)]
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
        with open(self.output, "ab") as output:
            return subprocess.Popen(
                words,
                stdout=output,
                stderr=output,
                env=environment,
                start_new_session=True,
            )

    def evaluations_on_disk(self) -> int:
        """How many evaluations there are, over all trials."""
        folders = [folder for _, folder in self.study.all_trials()]
        return sum(len(folder.read_evaluations()) for folder in folders)

    def ours(self) -> list[psutil.Process]:
        """Every live process that carries our mark."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                alive = process.status() != psutil.STATUS_ZOMBIE
                if alive and process.environ().get(MARK) == self.mark:
                    found.append(process)
        return found

    # What must hold

    def check_clean(self, patience: float = 40.0, folders: bool = True) -> None:
        """No process of ours is left, and no temporary folder."""
        begun = time.monotonic()
        while left := [*map(_describe, self.ours()), *(self._folders() if folders else [])]:
            waited = time.monotonic() - begun
            require(waited < patience, f"left after {waited:.0f} s: {left}")
            time.sleep(0.1)
        self.slowest_cleanup = max(self.slowest_cleanup, time.monotonic() - begun)

    def _folders(self) -> list[str]:
        there = {path.name for path in self.temporary.glob("gs-*")}
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
        complete = {n: result.value for n, result in ended.items() if result.state == "complete"}
        kept = [n for n, folder in self.study.all_trials() if folder.checkpoints.exists()]
        best = min(complete, key=lambda number: (complete[number], number))
        require(kept == [best], f"checkpoints of {kept}, the best is {best}")
        checkpoints = Checkpoints(self.study.trial(best))
        require(checkpoints.newest() is not None, f"trial {best} kept no whole checkpoint")


def snapshot(study: StudyFolder) -> Snapshot:
    """What is on disk now."""
    made = Snapshot()
    for number, folder in study.all_trials():
        if folder.result.exists():
            stat = folder.result.stat()
            print_ = hashlib.sha256(folder.result.read_bytes()).hexdigest()
            made.results[number] = (stat.st_ino, stat.st_mtime_ns, print_)
        made.evaluations[number] = {r.step: r.eval_loss for r in folder.read_evaluations()}
    return made


def check_metrics(number: int, folder: TrialFolder) -> None:
    """Steps without gaps or repeats; a step measured twice has the same loss both times."""
    rows = [row for row in read_lines(folder.metrics) if row.get("kind") == "eval"]
    seen: dict[int, float] = {}
    for row in rows:
        same = seen.setdefault(row["step"], row["eval_loss"]) == row["eval_loss"]
        require(same, f"trial {number} step {row['step']}: {row['eval_loss']} and {seen}")
    steps = [row.step for row in folder.read_evaluations()]
    whole = list(range(EVERY, EVERY * len(steps) + 1, EVERY))
    require(steps == whole, f"trial {number} has evaluations at {steps}")
    result = folder.read_result()
    if result and result.state == "complete":
        require(steps[-1:] == [STEPS], f"trial {number} is complete with steps {steps}")
        best = min(row.eval_loss for row in folder.read_evaluations())
        require(result.value == best, f"trial {number} has {result.value}, its best is {best}")


def curves(study: StudyFolder) -> dict[str, dict[int, float]]:
    """Evaluations by configuration, to the bit."""
    found = {}
    for _, folder in study.all_trials():
        rows = {row.step: row.eval_loss for row in folder.read_evaluations()}
        found[folder.read_config().fingerprint()] = rows
    return found


def _trials(storage: object, name: str) -> list[object]:
    import optuna

    return optuna.load_study(study_name=name, storage=storage).get_trials(deepcopy=False)


def _describe(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return f"{process.pid} {' '.join(process.cmdline())[:80]}"
    return str(process.pid)


# The kills


def kill_driver(sweep: Sweep, driver: subprocess.Popen[bytes]) -> None:
    """SIGKILL to the driver alone: Ray and its workers are left to themselves."""
    driver.kill()


def kill_worker(sweep: Sweep, driver: subprocess.Popen[bytes]) -> None:
    """SIGKILL to one process that trains; the sweep goes on."""
    workers = [process for process in sweep.ours() if _is_worker(process)]
    if workers:
        with contextlib.suppress(psutil.NoSuchProcess):
            sweep.dice.choice(workers).kill()


def kill_group(sweep: Sweep, driver: subprocess.Popen[bytes]) -> None:
    """SIGKILL to the driver's process group, as a terminal or a batch system does it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(driver.pid, signal.SIGKILL)


def kill_node(sweep: Sweep, driver: subprocess.Popen[bytes]) -> None:
    """SIGKILL to a node of the cluster; another one joins, and the sweep goes on."""
    if sweep.nodes:
        sweep.nodes.lose_one(sweep.dice)


def kill_tree(sweep: Sweep, driver: subprocess.Popen[bytes]) -> None:
    """SIGKILL to every process of ours, the one that cleans up included."""
    for process in sweep.ours():
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def terminate(sweep: Sweep, driver: subprocess.Popen[bytes]) -> None:
    """SIGTERM: checkpoint and leave."""
    driver.terminate()


def interrupt(sweep: Sweep, driver: subprocess.Popen[bytes]) -> None:
    """Ctrl-C in a terminal: SIGINT to the whole group."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(driver.pid, signal.SIGINT)


def interrupt_twice(sweep: Sweep, driver: subprocess.Popen[bytes]) -> None:
    """Ctrl-C, and once more before it is done."""
    interrupt(sweep, driver)
    with contextlib.suppress(subprocess.TimeoutExpired):
        driver.wait(sweep.dice.uniform(0.0, 0.4))
    interrupt(sweep, driver)


def _is_worker(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return process.cmdline()[:1] == ["ray::TrialWorker.run"] or any(
            word.startswith("ray::TrialWorker") for word in process.cmdline()
        )
    return False


KILLS: dict[str, Callable[[Sweep, subprocess.Popen[bytes]], None]] = {
    "driver": kill_driver,
    "worker": kill_worker,
    "group": kill_group,
    "tree": kill_tree,
    "node": kill_node,
    "sigterm": terminate,
    "sigint": interrupt,
    "sigint twice": interrupt_twice,
}
GENTLE = ("sigterm", "sigint")
SURVIVED = ("worker", "node")
"""The driver lives on after these."""
ON_A_CLUSTER = ("node", "driver", "group", "sigterm", "sigint")
ALONE = tuple(kind for kind in KILLS if kind != "node")


@dataclass
class Faults:
    """A random course of kills over one sweep after the other."""

    seed: int
    root: Path
    say: Callable[[str], None] = print
    rates: Sequence[float] = RATES
    """Learning rates, each at two ranks."""
    by_clock: float = 0.25
    """Share of the kills that come some seconds after a start, whatever is going on by then."""
    within: int = 12
    """The others come after at most so many more evaluations."""
    counts: Counter[str] = field(default_factory=Counter)
    sweeps: int = 0
    slowest: float = 0.0

    def __post_init__(self) -> None:
        from helpers import models

        self.random = random.Random(self.seed)
        self.model = models.make_model(self.root / "model")
        self.rows = models.write_rows(self.root / "rows.jsonl")
        self._references: dict[bool, dict[str, dict[int, float]]] = {}
        self._nodes: Nodes | None = None
        self._last: Sweep | None = None

    def close(self) -> None:
        """End what a sweep that was given up has left, and the cluster if there was one."""
        for process in self._last.ours() if self._last else ():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        if self._nodes:
            self._nodes.close()

    def cluster_sweep(self, name: str) -> Sweep:
        """A study on a cluster, whose nodes may be lost more often than usual."""
        sweep = self.sweep(name, failures={"lost_retries": 30})
        self._nodes = sweep.nodes = self._nodes or Nodes(self.root / "r")
        return sweep

    def sweep(self, name: str, storage: str | None = None, **changes: object) -> Sweep:
        """A study that has not been started."""
        self.sweeps += 1
        source = self.root / f"s{self.sweeps}.yaml"
        source.write_text(yaml.safe_dump(content(self.model, self.rows, self.rates, **changes)))
        runs, temporary = self.root / f"{name}{self.sweeps}", self.root / "t"
        trials = 2 * len(self.rates)
        self._last = Sweep(source, runs, temporary, self.random, trials, storage=storage)
        return self._last

    def reference(self, packed: bool) -> dict[str, dict[int, float]]:
        """What a run gives that nobody disturbs; packed trials are equal to packed ones only."""
        if packed not in self._references:
            sweep = self.sweep("reference", **(PACKED if packed else {}))
            self._run_to_end(sweep)
            sweep.check_end(None)
            self._references[packed] = curves(sweep.study)
        return self._references[packed]

    def run(
        self, sweep: Sweep, kinds: Iterator[str], reference: bool, packed: bool = False
    ) -> None:
        """Kill the sweep by `kinds` until it ends or they do; then let it run to its end."""
        expected = self.reference(packed) if reference else None
        self._last = sweep
        driver = None
        for kind in kinds:
            driver = driver or sweep.start()
            moment = self._wait(sweep, driver)
            if driver.poll() is not None:
                break
            KILLS[kind](sweep, driver)
            self.counts[kind] += 1
            self.say(f"kill {self.counts.total()}: {kind} {moment}")
            if kind not in SURVIVED:
                self._after(sweep, driver, kind)
                driver = None
        self._run_to_end(sweep, driver)
        sweep.check_end(expected)
        self.slowest = max(self.slowest, sweep.slowest_cleanup)

    def _wait(self, sweep: Sweep, driver: subprocess.Popen[bytes]) -> str:
        """Let it come to a random moment: some seconds after its start, or after evaluations."""
        begun = time.monotonic()
        if self.random.random() < self.by_clock:
            seconds = self.random.uniform(0.0, 12.0)
            with contextlib.suppress(subprocess.TimeoutExpired):
                driver.wait(seconds)
            return f"{seconds:.1f} s after its start"
        more = self.random.randint(1, self.within)
        goal = sweep.evaluations_on_disk() + more
        while driver.poll() is None and sweep.evaluations_on_disk() < goal:
            require(time.monotonic() - begun < PATIENCE, f"no evaluation: see {sweep.output}")
            time.sleep(0.02)
        with contextlib.suppress(subprocess.TimeoutExpired):
            driver.wait(self.random.uniform(0.0, 0.3))
        return f"after {more} more evaluations"

    def _after(self, sweep: Sweep, driver: subprocess.Popen[bytes], kind: str) -> None:
        code = driver.wait(60)
        # Before its handlers stand, a signal ends the driver at once: nothing is running then.
        gentle = (130, 0, -signal.SIGTERM, -signal.SIGINT, 1)
        require(kind not in GENTLE or code in gentle, f"{kind} ended with {code}")
        if kind == "tree":
            # Nobody is left to remove the folder but the next run.
            sweep.check_clean(folders=False)
            sweep.orphans.update(sweep._folders())
        else:
            sweep.check_clean()
        sweep.check()

    def _run_to_end(self, sweep: Sweep, driver: subprocess.Popen[bytes] | None = None) -> None:
        driver = driver or sweep.start()
        code = driver.wait(PATIENCE)
        require(code == 0, f"ended with {code}: see {sweep.output}")
        sweep.orphans.clear()
        sweep.check_clean()
        sweep.check()


def endless(
    rng: random.Random, counts: Counter[str], total: int, among: Sequence[str]
) -> Iterator[str]:
    """Kinds of kills at random, each as often as another, until `total` have been made."""
    while counts.total() < total:
        yield min(among, key=lambda kind: (counts[kind], rng.random()))


def course(faults: Faults, kills: int) -> None:
    """One sweep after the other: on a cluster, plain, packed, with pruning, and so on."""
    for name in itertools.cycle(["c", "g", "k", "c", "p", "a"]):
        if faults.counts.total() >= kills:
            return
        changes = {"p": PRUNED, "k": PACKED, "a": MEASURED}.get(name, {})
        sweep = faults.cluster_sweep(name) if name == "c" else faults.sweep(name, **changes)
        among = ON_A_CLUSTER if name == "c" else ALONE
        kinds = endless(faults.random, faults.counts, kills, among)
        faults.run(sweep, kinds, reference=name != "p", packed=name in "ka")


def main() -> int:
    """The long form."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=56)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--keep", action="store_true", help="keep the folders")
    given = parser.parse_args()
    seed = given.seed if given.seed is not None else random.SystemRandom().randrange(10**6)
    # A shell that starts this in the background has it ignore Ctrl-C, and every child with it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # A short path: Ray's sockets lie below it.
    root = Path(tempfile.mkdtemp(prefix="gf"))
    print(f"seed {seed}, {given.kills} kills, in {root}", flush=True)
    faults = Faults(seed, root, say=lambda text: print(text, flush=True))
    begun, failed = time.monotonic(), ""
    try:
        course(faults, given.kills)
    except (LostError, subprocess.TimeoutExpired) as error:
        failed = str(error)
    finally:
        faults.close()
    minutes = (time.monotonic() - begun) / 60
    print(f"{faults.counts.total()} kills: {json.dumps(faults.counts)}")
    print(f"{faults.sweeps} sweeps in {minutes:.1f} minutes; seed {seed}")
    print(f"slowest clean-up after a kill: {faults.slowest:.1f} s")
    print(f"LOST: {failed} (kept in {root})" if failed else "nothing lost, nothing twice")
    if not failed and not given.keep:
        shutil.rmtree(root)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
