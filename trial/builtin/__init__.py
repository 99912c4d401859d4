"""Built-in model and datasets: a tiny Llama, questions about this project, and code to unlearn.

Both are files that come along, the same on every Python and platform. `make_tiny_llama` and
`make_rows` made them; all but that is torch-free.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from trial.builtin import frozen_rows

MODELS: dict[str, Path] = {"builtin:tiny-llama": Path(__file__).with_name("tiny-llama")}
DATASETS: dict[str, Callable[[], list[Mapping[str, str]]]] = {
    f"builtin:{name}": partial(frozen_rows.read, name)
    for name in ("python-docs", "code-forget", "code-retain")
}
TINY_LLAMA_HASH = "631b87f93041e6f6"
"""`content_hash` of the shipped folder; `make_tiny_llama` prints the one to write here."""


def model_path() -> Path:
    """The folder of the tiny Llama."""
    return MODELS["builtin:tiny-llama"]


def resolve_model(name_or_path: str) -> str:
    """The folder of a built-in model; any other name unchanged."""
    return str(MODELS.get(name_or_path, name_or_path))


def content_hash(folder: Path) -> str:
    """Hash of a folder's files by name and content."""
    digest = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:16]
