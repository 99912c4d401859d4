"""Where a study comes from, as it is stored with it."""

from __future__ import annotations

import pytest

from sweep import provenance


@pytest.mark.parametrize(
    ("command", "stored"),
    [
        (["/some/where/sweep/__main__.py", "run", "x"], ["python", "-m", "sweep", "run", "x"]),
        ([".venv/bin/gaudi-sweep", "run", "x"], [".venv/bin/gaudi-sweep", "run", "x"]),
        ([], []),
    ],
)
def test_the_stored_command_can_be_typed_again(command, stored):
    assert provenance.collect(command)["command"] == stored


def test_versions_and_commit_are_stored(tmp_path):
    made = provenance.collect([])
    assert {"torch", "optuna", "ray"} <= set(made["versions"])
    assert provenance.git_state(tmp_path) == {}
