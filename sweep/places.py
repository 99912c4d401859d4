"""Files and folders named in a sweep file, made absolute: beside the file, else from here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sweep.sheet import Sheet
from trial.problems import Problem

PLACES = (
    "model.name_or_path",
    "model.tokenizer_name_or_path",
    "data.path",
    "data.eval_path",
    "deepspeed.config",
)
"""Keys of a configuration that name a file or folder, or something on a hub."""

_ENDINGS = (".csv", ".tsv", ".json", ".jsonl", ".parquet", ".txt", ".yaml", ".yml")


def absolute_places(sheet: Sheet) -> None:
    """Make every relative place in the base and the space absolute; hub ids stay as they are."""
    for place in PLACES:
        section, _, key = place.partition(".")
        content = sheet.section("base").get(section)
        if isinstance(content, dict) and key in content:
            content[key] = _resolved(sheet, f"base.{place}", content[key], sheet.base_folder)
        dimensions = sheet.section("space")
        if place in dimensions:
            dimensions[place] = _resolved_dimension(sheet, f"space.{place}", dimensions[place])


def _resolved_dimension(sheet: Sheet, key: str, raw: Any) -> Any:
    if isinstance(raw, dict):
        inner = {name: raw[name] for name in ("choices", "value") if name in raw}
        return {**raw, **{name: _resolved_dimension(sheet, key, inner[name]) for name in inner}}
    if isinstance(raw, list):
        return [_resolved_dimension(sheet, f"{key}.{index}", item) for index, item in
                enumerate(raw)]  # fmt: skip
    return _resolved(sheet, key, raw)


def _resolved(sheet: Sheet, key: str, value: Any, base_folder: Path | None = None) -> Any:
    """The absolute path, when there is something there; a missing file is noted."""
    if not isinstance(value, str) or not value or value.startswith("builtin:"):
        return value
    beside = [base_folder, sheet.source.parent] if base_folder else [sheet.source.parent]
    folders = [*beside, Path()]
    if sheet.locate(key).startswith("--set"):
        folders.reverse()
    try:
        candidates = [(folder / Path(value).expanduser()).absolute() for folder in folders]
        found = next((path for path in candidates if path.exists()), None)
    except (OSError, ValueError, RuntimeError):
        found = None
    if found is not None:
        return str(found)
    if _must_exist(key, value):
        looked = " and ".join(dict.fromkeys(str(folder) for folder in folders))
        sheet.refuse(Problem(key, f"no such file or folder (looked in {looked})", repr(value)))
    return value


def _must_exist(key: str, value: str) -> bool:
    """Whether a text can only be a path: a hub id is `name` or `owner/name`."""
    return (
        key.endswith("deepspeed.config")
        or value.startswith((".", "/", "~"))
        or value.lower().endswith(_ENDINGS)
        or value.count("/") > 1
    )
