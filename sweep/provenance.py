"""Where a study comes from: host, package versions, git commit and command."""

from __future__ import annotations

import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = (
    "gaudi-sweep",
    "torch",
    "transformers",
    "accelerate",
    "peft",
    "optimum-habana",
    "deepspeed",
    "optuna",
    "ray",
    "habana-torch-plugin",
)


def collect(command: list[str]) -> dict[str, Any]:
    """The provenance of a study, as it is stored in `study.json`."""
    return {
        "host": platform.node(),
        "platform": platform.platform(),
        "python": sys.version.split()[0],
        "versions": versions(),
        "git": git_state(Path.cwd()),
        "command": _retypable(command),
    }


def _retypable(command: list[str]) -> list[str]:
    """The command as it can be typed again: `python -m sweep` puts its file in `argv[0]`."""
    first = Path(command[0]) if command else Path()
    if first.name != "__main__.py":
        return command
    return ["python", "-m", first.parent.name, *command[1:]]


def versions() -> dict[str, str]:
    """Installed versions of the packages that a result depends on."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def git_state(folder: Path) -> dict[str, Any]:
    """Commit of the checkout and whether it was clean; empty outside one."""
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is None:
        return {}
    return {"commit": commit, "clean": _git(folder, "status", "--porcelain") == ""}


def _git(folder: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *words], cwd=folder, capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
