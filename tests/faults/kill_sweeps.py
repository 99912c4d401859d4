"""Real sweeps through the command, killed at random moments, and what must hold after each kill.

    PYTHONPATH=tests:. .venv/bin/python tests/faults/kill_sweeps.py --kills 50 --seed 1

Prints the seed, every kill and the counts; ends with 1 when anything was lost or done twice.
`test_kills.py` makes a handful of kills of the same kind. A seed repeats the choices, not the
moment to the microsecond: that depends on the machine.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import yaml
from faults.sweeps.checks import EVERY, STEPS, LostError, curves, require
from faults.sweeps.killed_sweep import Sweep
from faults.sweeps.kills import ALONE, GENTLE, KILLS, ON_A_CLUSTER, SURVIVED, WITHOUT_REAPER
from faults.sweeps.ray_nodes import Nodes

RATES = (1e-3, 3e-3, 1e-2, 3e-2)

PATIENCE = 240.0
"""Seconds to wait for an evaluation, or for the end of a sweep."""


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
"""A packed job that measures its number of slots."""


@dataclass
class Faults:
    """Kills at random moments, over one sweep after the other."""

    seed: int
    root: Path
    say: Callable[[str], None] = print
    rates: Sequence[float] = RATES
    """Learning rates, each at two ranks."""
    by_clock: float = 0.25
    """Share of the kills that come up to 12 seconds after a start, whatever is going on by then."""
    within: int = 12
    """The others come after at most so many more evaluations."""
    counts: Counter[str] = field(default_factory=Counter)
    sweeps: int = 0
    slowest: float = 0.0

    def __post_init__(self) -> None:
        from helpers.training import models

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
        """Curves of an undisturbed run; packed trials are equal to the bit to packed ones only."""
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
        """Wait for a random moment, after some seconds or evaluations; returns it in words."""
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
        # Before its handlers are installed, a signal ends the driver at once: nothing runs then.
        gentle = (130, 0, -signal.SIGTERM, -signal.SIGINT, -signal.SIGHUP)
        require(kind not in GENTLE or code in gentle, f"{kind} ended with {code}")
        if kind in WITHOUT_REAPER:
            sweep.check_clean(folders=False)
            sweep.orphans.update(sweep.temporary_folders())
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
    """Run `course`; the exit code."""
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
