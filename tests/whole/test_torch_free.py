"""Which modules load no torch when they are imported, so that the driver starts without it."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

from helpers.paths import ROOT

IN_THE_WORKER = ROOT / "sweep/ray_backend/worker.py"
"""Imports what trains, inside functions that run in a worker."""

PROGRAM = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
    if "torch" in sys.modules:
        sys.exit(f"{name} loads torch")
"""


def sources(*folders: str) -> list[Path]:
    found = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    return [path for path in found if path.stem != "__main__"]


def dotted(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def says_torch_free(path: Path) -> bool:
    return "torch-free" in (ast.get_docstring(ast.parse(path.read_text())) or "").lower()


def imported_from_trial(path: Path) -> set[str]:
    """Modules of `trial` that a file imports, at its top or inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "trial":
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            modules = [
                name
                for name in names
                if ROOT.joinpath(*name.split(".")).with_suffix(".py").is_file()
            ]
            found |= set(modules or [node.module])
    return found


def test_what_the_driver_imports_loads_no_torch():
    driver = sources("sweep", "results")
    modules = {dotted(path) for path in [*driver, *sources("trial/config", "trial/store")]}
    modules |= {dotted(path) for path in sources("trial") if says_torch_free(path)}
    for path in driver:
        if path != IN_THE_WORKER:
            modules |= imported_from_trial(path)
    assert {"sweep.run", "sweep.cli", "results.report", "trial.training.checkpoints"} <= modules
    command = [sys.executable, "-c", PROGRAM, *sorted(modules)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
