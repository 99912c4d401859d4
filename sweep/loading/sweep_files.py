"""Find a sweep file by name or path."""

from __future__ import annotations

import sys
from pathlib import Path

from trial.config.errors import ConfigError, Problem, nearest

SUFFIXES = (".yaml", ".yml")


def shipped_folder(checkout: Path, prefix: Path) -> Path:
    """The folder of the sweep files that come with the package.

    Args:
        checkout: `spaces/` beside the code, which is there in a checkout.
        prefix: Where an installed wheel puts its data files (`sys.prefix`).
    """
    return checkout if checkout.is_dir() else prefix / "share" / "gaudi-sweep" / "spaces"


SPACES = shipped_folder(Path(__file__).resolve().parents[2] / "spaces", Path(sys.prefix))


def find(name_or_path: str, folder: Path = SPACES) -> Path:
    """The sweep file of a name in `folder` (`lora_rank`, `gaudi/llama2_7b`) or of a path.

    Raises:
        ConfigError: There is no such file; lists the names and the nearest.
    """
    given = Path(name_or_path)
    inside = not given.is_absolute() and ".." not in given.parts and name_or_path.strip(". /") != ""
    named = [folder / f"{name_or_path}{suffix}" for suffix in ("", *SUFFIXES)] if inside else []
    try:
        if given.is_file():
            return given
        found = next((path for path in named if path.is_file()), None)
    except (OSError, ValueError):
        found = None
    if found is None:
        names = sweep_names(folder)
        rule = f"names no sweep file; in {folder.name}/: {', '.join(names) or 'nothing'}"
        near = nearest(given.stem, names)
        raise ConfigError([Problem("SPACE", rule, repr(name_or_path), near)])
    return found.relative_to(Path.cwd()) if found.is_relative_to(Path.cwd()) else found


def sweep_names(folder: Path = SPACES) -> list[str]:
    """The names of a folder's sweep files that `find` knows."""
    files = (path for suffix in SUFFIXES for path in folder.rglob(f"*{suffix}"))
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in files)
