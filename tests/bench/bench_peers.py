"""The peers' virtual environment: made once from the pins, kept under build/."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from bench_material import REPOSITORY

PINS = Path(__file__).with_name("requirements-peers.txt")
FOLDER = REPOSITORY / "build" / "peers"
STAMP = FOLDER / "installed.txt"
NAMED = ("ray", "optuna", "optimum-habana", "transformers", "peft", "torch", "accelerate")


def install(say: Callable[[str], None]) -> None:
    """Make the environment when it is not there, or when the pins have changed.

    Bytecode is compiled: the peers' imports must not be slower than ours.
    """
    if STAMP.exists() and STAMP.read_text() == PINS.read_text():
        return
    say(f"making the peers' environment in {FOLDER}")
    environment = dict(os.environ)
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    uv = [sys.executable, "-m", "uv"]
    make = [*uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(FOLDER)]
    subprocess.run(make, check=True, env=environment)
    words = [*uv, "pip", "install", "--quiet", "--python", str(FOLDER / "bin" / "python")]
    words += ["--compile-bytecode", *_find_links(), "--requirement", str(PINS)]
    # Here uv finds the project's overrides: optimum-habana without diffusers.
    subprocess.run(words, check=True, env=environment, cwd=REPOSITORY)
    STAMP.write_text(PINS.read_text())


def _find_links() -> list[str]:
    """pip's folders of local wheels, which uv does not know of; that of torch's CPU file is one."""
    found = []
    for key in ("global.find-links", ":env:.find-links"):
        words = [sys.executable, "-m", "pip", "config", "get", key]
        done = subprocess.run(words, capture_output=True, text=True)
        found += done.stdout.split() if done.returncode == 0 else []
    return [f"--find-links={folder}" for folder in dict.fromkeys(found)]


def versions() -> dict[str, str]:
    """The pinned versions of the peers themselves."""
    found = {}
    for line in PINS.read_text().splitlines():
        name, _, version = line.partition("==")
        if version and name.partition("[")[0] in NAMED:
            found[name] = version
    return found
