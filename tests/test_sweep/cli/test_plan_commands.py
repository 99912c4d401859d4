"""Commands that train nothing, on every sweep file that comes with the project."""

from __future__ import annotations

import pytest
from helpers.command import invoke
from helpers.paths import ROOT

SPACES = ROOT / "spaces"


@pytest.mark.parametrize("name", sorted(path.stem for path in SPACES.glob("*.yaml")))
def test_every_shipped_space_checks_and_plans(name):
    done = invoke("check", name)
    assert done.exit_code == 0, done.stderr
    done = invoke("plan", name, "--count", 3)
    assert done.exit_code == 0, done.stderr
    assert "effective batch" in done.stdout
