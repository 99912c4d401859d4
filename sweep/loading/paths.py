"""Files and folders named in a sweep file, made absolute: beside the file, else from here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sweep.loading.raw_sweep import RawSweep
from trial.config.paths import PATH_KEYS, resolve


def absolute_places(sheet: RawSweep) -> None:
    """Make every relative place in the base and the space absolute; hub ids stay as they are."""
    for place in PATH_KEYS:
        section, _, key = place.partition(".")
        content = sheet.section("base").get(section)
        if isinstance(content, dict) and key in content:
            content[key] = _resolved(sheet, f"base.{place}", content[key], sheet.base_folder)
        dimensions = sheet.section("space")
        if place in dimensions:
            dimensions[place] = _resolved_dimension(sheet, f"space.{place}", dimensions[place])


def _resolved_dimension(sheet: RawSweep, key: str, raw: Any) -> Any:
    if isinstance(raw, dict):
        inner = {name: raw[name] for name in ("choices", "value") if name in raw}
        return {**raw, **{name: _resolved_dimension(sheet, key, inner[name]) for name in inner}}
    if isinstance(raw, list):
        return [_resolved_dimension(sheet, f"{key}.{index}", item) for index, item in
                enumerate(raw)]  # fmt: skip
    return _resolved(sheet, key, raw)


def _resolved(sheet: RawSweep, key: str, value: Any, base_folder: Path | None = None) -> Any:
    """The absolute path, when there is something there; a missing file is noted."""
    beside = [base_folder, sheet.source.parent] if base_folder else [sheet.source.parent]
    folders = [*beside, Path()]
    if sheet.locate(key).startswith("--set"):
        folders.reverse()
    found, problem = resolve(key, value, folders)
    if problem is not None:
        sheet.refuse(problem)
    return found
