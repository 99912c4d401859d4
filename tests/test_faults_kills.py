"""A handful of kills of a real sweep; `make test-faults` makes more than fifty."""

from __future__ import annotations

import random
import shutil
import tempfile
from pathlib import Path

import faults_sweep
import pytest

SHORT = ("worker", "driver", "sigint", "group")


@pytest.mark.faults
def test_a_sweep_that_is_killed_again_and_again_ends_as_if_it_had_not_been():
    seed = random.SystemRandom().randrange(10**6)
    print(f"seed {seed}")
    # A short path: Ray's sockets lie below it.
    root = Path(tempfile.mkdtemp(prefix="gf"))
    faults = faults_sweep.Faults(seed, root, rates=faults_sweep.RATES[:2])
    faults.run(faults.sweep("g"), iter(SHORT), reference=True)
    assert faults.counts.total() >= 3
    shutil.rmtree(root)
