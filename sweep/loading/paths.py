"""Make the paths in a sweep file absolute: relative to its folder, else to the working folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sweep.loading.raw_sweep import RawSweep
from trial.config.paths import PATH_KEYS, resolve


def make_paths_absolute(raw: RawSweep) -> None:
    """Make every relative path in the base and the space absolute; hub ids stay as they are."""
    for path in PATH_KEYS:
        section, _, key = path.partition(".")
        content = raw.section("base").get(section)
        if isinstance(content, dict) and key in content:
            content[key] = _resolved(raw, f"base.{path}", content[key], raw.base_folder)
        dimensions = raw.section("space")
        if path in dimensions:
            dimensions[path] = _resolved_dimension(raw, f"space.{path}", dimensions[path])


def _resolved_dimension(raw: RawSweep, key: str, given: Any) -> Any:
    if isinstance(given, dict):
        inner = {name: given[name] for name in ("choices", "value") if name in given}
        return {**given, **{name: _resolved_dimension(raw, key, inner[name]) for name in inner}}
    if isinstance(given, list):
        return [
            _resolved_dimension(raw, f"{key}.{index}", item) for index, item in enumerate(given)
        ]
    return _resolved(raw, key, given)


def _resolved(raw: RawSweep, key: str, value: Any, base_folder: Path | None = None) -> Any:
    """The absolute path where it exists; a missing file is noted as a problem."""
    beside = [base_folder, raw.source.parent] if base_folder else [raw.source.parent]
    folders = [*beside, Path()]
    if raw.locate(key).startswith("--set"):
        folders.reverse()
    found, problem = resolve(key, value, folders)
    if problem is not None:
        raw.add_problem(problem)
    return found
