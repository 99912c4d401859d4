"""SIGKILL between every pair of file operations: `python tests/faults/kill_writes.py SCENARIO`.

A child process counts its operations on the disk (`faults.writes.killer`) and kills itself before
the n-th of them, for n = 1, 2, ... until it finishes. After each death the folder is checked, and a
process that is not killed finishes the work. Prints how often it died.

Forking is cheap here and needs a process without threads: that is why this is a script.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import tempfile
from pathlib import Path

import optuna
from faults.writes import study_scenarios, trial_scenarios
from faults.writes.killer import in_child
from faults.writes.trial_scenarios import Scenario

SCENARIOS = {**trial_scenarios.SCENARIOS, **study_scenarios.SCENARIOS}


def at_every_operation(scenario: Scenario, root: Path, first: int, stride: int) -> int:
    """Die at every operation in turn (or every `stride`-th); returns about how many there are."""
    at = first
    while True:
        path = root / str(at)
        scenario.prepare(path)
        through = in_child(lambda path=path: scenario.work(path), at)
        checked(scenario, path, through)
        if through:
            return at - 1
        in_child(lambda path=path: scenario.work(path))
        checked(scenario, path, True)
        shutil.rmtree(path)
        at += stride


def at_random_operations(
    scenario: Scenario, root: Path, last: int, courses: int, dice: random.Random
) -> int:
    """Kill attempts at random operations until one finishes, `courses` times; returns the kills."""
    deaths = 0
    beyond = last + min(20, last)  # Some attempts come through, and some die.
    for course in range(courses):
        path = root / f"course{course}"
        scenario.prepare(path)
        while not in_child(lambda path=path: scenario.work(path), dice.randint(1, beyond)):
            deaths += 1
            checked(scenario, path, False)
        checked(scenario, path, True)
        shutil.rmtree(path)
    return deaths


def checked(scenario: Scenario, path: Path, whole: bool) -> None:
    """Check in a process of its own: connections do not survive a fork."""
    in_child(lambda: scenario.check(path, whole))


def main() -> None:
    """Run one scenario; ends with a message and 1 when anything is lost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scenario", choices=SCENARIOS)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--stride", type=int, default=1)
    parser.add_argument("--courses", type=int, default=20)
    given = parser.parse_args()
    if storage := os.environ.get("FAULTS_STORAGE"):
        study_scenarios.STORAGE.append(storage)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    scenario, dice = SCENARIOS[given.scenario], random.Random(given.seed)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        operations = at_every_operation(scenario, root, dice.randint(1, given.stride), given.stride)
        again = at_random_operations(scenario, root, operations, given.courses, dice)
    print(json.dumps({"operations": operations, "random deaths": again, "seed": given.seed}))


if __name__ == "__main__":
    main()
