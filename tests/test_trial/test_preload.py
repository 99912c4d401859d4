"""What is imported ahead of time also works where the path of TMPDIR is long."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from helpers.other_user import shared_folder
from helpers.paths import ROOT

from trial.preload import LONGEST_TMPDIR

LOAD = """
import tempfile, torch
from torch.utils.data import DataLoader
from trial.preload import preload
preload("cpu")
print(tempfile.gettempdir())
print([int(each) for each in DataLoader(torch.arange(3), num_workers=1, timeout=20)])
"""


@pytest.mark.parametrize("bytes_over", [0, 40])
def test_a_loaders_workers_answer_under_any_tmpdir(bytes_over):
    with shared_folder() as shared:
        length = LONGEST_TMPDIR + bytes_over
        given = shared / ("x" * (length - len(str(shared)) - 1))
        given.mkdir()
        done = subprocess.run(
            [sys.executable, "-c", LOAD],
            env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(given)},
            capture_output=True,
            text=True,
            timeout=240,
        )
    assert done.returncode == 0, done.stderr
    *_, folder, batches = done.stdout.splitlines()
    assert batches == "[0, 1, 2]"
    assert folder == ("/tmp" if bytes_over else str(given))
