"""The `gaudi-sweep` command, in a process of its own and in this one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping

from helpers.paths import ROOT
from typer.testing import CliRunner, Result

from sweep import cli


def run_command(
    *words: object, timeout: float = 240, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """`gaudi-sweep` with these words, in a new process; `env` is added to this one's."""
    return subprocess.run(
        [sys.executable, "-m", "sweep", *map(str, words)],
        env={**os.environ, "PYTHONPATH": str(ROOT), **(env or {})},
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def invoke(*words: object) -> Result:
    """The same without a new process, for commands that train nothing."""
    return CliRunner().invoke(cli.app, [*map(str, words)])
