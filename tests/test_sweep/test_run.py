"""The command that goes on with a study."""

from __future__ import annotations

import pytest

from sweep.run import resume_command


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["run", "smoke"], "gaudi-sweep run smoke"),
        (["run", "smoke", "--fresh"], "gaudi-sweep run smoke"),
        (["run", "smoke", "--fork", "new"], "gaudi-sweep run smoke --study new"),
        (["resume", "a study"], "gaudi-sweep resume 'a study'"),
        (
            ["run", "x", "--storage", "postgresql://me:sesame@h/db"],
            "gaudi-sweep run x --storage 'postgresql://me:***@h/db'",
        ),
    ],
)
def test_the_command_that_goes_on(words, expected):
    assert resume_command(["/some/where/sweep/__main__.py", *words]) == expected
