"""Makes the paths in a configuration absolute. Looks at the file system, changes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trial.config.errors import Problem, nearest

PATH_KEYS = (
    "model.name_or_path",
    "model.tokenizer_name_or_path",
    "data.path",
    "data.eval_path",
    "data.forget_path",
    "data.alternatives",
    "data.chat_template",
    "evaluation.retain_model",
    "deepspeed.config",
)
"""Keys of a configuration that hold a path or a hub id."""

DATA_ENDINGS: dict[str, str] = {
    ".csv": "csv",
    ".tsv": "csv",
    ".json": "json",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".txt": "text",
}
"""Endings of data files, and the `data.format` that each means."""

COMPRESSED_ENDINGS = (".gz", ".bz2", ".xz", ".zst", ".zip")
"""Endings of compressed files; `rows.jsonl.gz` is read as `rows.jsonl` would be. A ZIP archive is
one of a single file."""

_ENDINGS = (*DATA_ENDINGS, *COMPRESSED_ENDINGS, ".yaml", ".yml", ".jinja", ".jinja2", ".j2")


def resolve(key: str, value: Any, folders: Sequence[Path]) -> tuple[Any, Problem | None]:
    """The value of `key` as an absolute path in the first of the folders where it exists.

    A value that is found nowhere is returned unchanged; with a problem, if it can only be a path.
    """
    if not isinstance(value, str) or not value or value.startswith("builtin:"):
        return value, None
    if key.endswith("data.chat_template") and is_template_text(value):
        return value, None
    try:
        candidates = [(folder / Path(value).expanduser()).absolute() for folder in folders]
        found = next((path for path in candidates if path.exists()), None)
    except (OSError, ValueError, RuntimeError):
        found = None
    if found is not None:
        return str(found), None
    if not _must_exist(key, value):
        return value, None
    looked = " and ".join(dict.fromkeys(str(folder) for folder in folders))
    rule = f"no such file or folder (looked in {looked})"
    return value, Problem(key, rule, repr(value), _nearest(value, folders))


def is_template_text(value: str) -> bool:
    """Whether a `data.chat_template` is a template itself rather than the path of one."""
    return "{%" in value or "{{" in value


def _nearest(value: str, folders: Sequence[Path]) -> str:
    """The path with its last name replaced by the most similar existing one."""
    for folder in folders:
        try:
            place = Path(folder, Path(value).expanduser())
            near = nearest(place.name, sorted(item.name for item in place.parent.iterdir()))
        except (OSError, ValueError, RuntimeError):
            continue
        if near:
            return str(Path(value).with_name(near))
    return ""


def _must_exist(key: str, value: str) -> bool:
    """Whether a value can only be a path; a hub id is `name` or `owner/name`."""
    return (
        key.endswith(("deepspeed.config", "data.chat_template"))
        or value.startswith((".", "/", "~"))
        or value.lower().endswith(_ENDINGS)
        or value.count("/") > 1
    )
