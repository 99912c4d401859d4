"""A kill between any two file operations loses nothing and doubles nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from helpers.paths import ROOT, TESTS

SCENARIOS = [
    # scenario, stride between the operations to die at, least number of operations
    ("create", 1, 5),
    ("append", 1, 3),
    ("result", 1, 5),
    ("set aside", 1, 4),
    ("checkpoint", 1, 20),
    # Whole studies: `make test-faults` dies at every one.
    ("grid", 11, 100),
    ("random", 11, 100),
]


@pytest.mark.parametrize(("name", "stride", "at_least"), SCENARIOS)
def test_sigkill_before_every_file_operation(name, stride, at_least):
    few = ["--courses", "6"] if stride > 1 else []
    done = subprocess.run(
        [sys.executable, TESTS / "faults" / "kill_writes.py", name, "--stride", str(stride), *few],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), str(ROOT)])},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    counts = json.loads(done.stdout.splitlines()[-1])
    assert counts["operations"] >= at_least
    assert counts["random deaths"] > 0
