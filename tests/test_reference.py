"""The key reference in the documentation is what the fields say today."""

from __future__ import annotations

import tomllib
from pathlib import Path

from sweep import reference


def test_the_reference_is_current():
    written = Path(__file__).parents[1] / "docs" / "keys.md"
    rule = "run: python -m sweep.reference docs/keys.md"
    assert written.read_text(encoding="utf-8") == reference.render(), rule


def test_every_key_says_what_it_means():
    rows = [line for line in reference.render().splitlines() if line.startswith("| `")]
    silent = [line for line in rows if not line.rstrip(" |").count("|") > 2]
    assert silent == []


def test_every_package_is_installed():
    root = Path(__file__).parents[1]
    listed = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    rooms = ("sweep", "trial", "results")
    found = [path.parent for room in rooms for path in (root / room).rglob("__init__.py")]
    assert sorted(listed) == sorted(".".join(path.relative_to(root).parts) for path in found)
