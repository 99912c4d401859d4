"""A study with one trial of each kind."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.sweeps.studies import grid_of_ranks, tell_all

from trial.store.folders import StudyFolder
from trial.store.records import Cause, Result


@pytest.fixture
def study(tmp_path: Path) -> StudyFolder:
    """Trials 0 to 3: complete, pruned, failed, in flight."""
    made = StudyFolder(tmp_path / "old")
    failed = Result(state="failed", cause=Cause(kind="error", message="boom"))
    pruned = Result(state="pruned", eval_loss=3.0, steps=5)
    complete = Result(state="complete", eval_loss=2.0, steps=10)
    tell_all(made, grid_of_ranks(2, 4, 8, 16), [complete, pruned, failed, None])
    return made
