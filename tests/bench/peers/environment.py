"""The peers' virtual environment: made once from the pins, kept under build/."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from peers.material import REPOSITORY

PINS = Path(__file__).with_name("requirements-peers.txt")
FOLDER = REPOSITORY / "build" / "peers"
STAMP = FOLDER / "installed.txt"
GIVEN = "BENCH_PEERS_PYTHON"
"""A Python that has the peers already, where none can be installed."""
NAMED = ("ray", "optuna", "optimum-habana", "transformers", "peft", "torch", "accelerate")


def python() -> Path:
    """The peers' Python."""
    return Path(os.environ.get(GIVEN) or FOLDER / "bin" / "python")


def install(say: Callable[[str], None]) -> None:
    """Make the environment when it is not there, or when the pins have changed.

    Bytecode is compiled: the peers' imports must not be slower than ours.
    """
    if GIVEN in os.environ:
        return
    if STAMP.exists() and STAMP.read_text() == PINS.read_text():
        return
    say(f"making the peers' environment in {FOLDER}")
    environment = dict(os.environ)
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    uv = [sys.executable, "-m", "uv"]
    make = [*uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(FOLDER)]
    subprocess.run(make, check=True, env=environment)
    words = [*uv, "pip", "install", "--quiet", "--python", str(python())]
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
    """The versions of the peers themselves."""
    code = "import importlib.metadata as m, json, sys; print(json.dumps([m.version(n) for n in "
    code += "sys.argv[1:]]))"
    done = subprocess.run(
        [str(python()), "-c", code, *NAMED], capture_output=True, text=True, check=True
    )
    return dict(zip(NAMED, json.loads(done.stdout), strict=True))
