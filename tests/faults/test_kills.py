"""A real sweep whose worker, Ray and driver get SIGKILL; `make test-faults` has the long form."""

from __future__ import annotations

import random
import shutil
import tempfile
from pathlib import Path

from faults import kill_sweeps
from faults.sweeps.checks import curves

from trial.preload import finish_imports
from trial.store.folders import StudyFolder, TrialFolder
from trial.train import train
from trial.training.process_cache import ProcessCache


def undisturbed(study: StudyFolder, place: Path) -> dict[str, dict[int, float]]:
    """The evaluations of the same trials, trained in this process without a kill."""
    process_cache, found = ProcessCache(finish_imports), {}
    for number, folder in study.all_trials():
        config = folder.read_config()
        again = TrialFolder.create(place / str(number), config)
        train(again, None, process_cache)
        found[config.fingerprint()] = {row.step: row.eval_loss for row in again.read_evaluations()}
    return found


def test_a_sweep_that_is_killed_ends_as_if_it_had_not_been():
    seed = random.SystemRandom().randrange(10**6)
    # A short path: Ray's sockets lie below it. It stays when the test fails.
    root = Path(tempfile.mkdtemp(prefix="gf"))
    print(f"seed {seed} in {root}")
    # Of 32 evaluations, so that the sweep is not over before the last kill.
    faults = kill_sweeps.Faults(seed, root, rates=kill_sweeps.RATES[:2], by_clock=0, within=6)
    sweep = faults.sweep("g", resources={"concurrency": 1})
    faults.run(sweep, iter(("worker", "raylet", "driver")), reference=False)
    assert faults.counts.total() == 3
    assert curves(sweep.study) == undisturbed(sweep.study, root / "alone")
    shutil.rmtree(root)
