"""A kill between any two file operations loses nothing and doubles nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SCENARIOS = [
    # scenario, at least so many operations on the disk
    ("create", 5),
    ("append", 3),
    ("result", 5),
    ("set aside", 4),
    ("checkpoint", 20),
    ("grid", 100),
    ("random", 100),
]


@pytest.mark.parametrize(("name", "at_least"), SCENARIOS)
def test_sigkill_before_every_file_operation(name, at_least):
    done = subprocess.run(
        [sys.executable, HERE / "faults_writes.py", name],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent)])},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    counts = json.loads(done.stdout.splitlines()[-1])
    assert counts["operations"] >= at_least
    assert counts["random deaths"] > 0
