"""Built-in model and datasets: a tiny Llama, and questions about Python's standard library.

`python -m trial.builtin.make_tiny_llama` trains the model anew. All but that is torch-free.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path

from trial.builtin import code_dataset, docs_dataset

MODELS: dict[str, Path] = {"builtin:tiny-llama": Path(__file__).with_name("tiny-llama")}
DATASETS: dict[str, Callable[[], list[Mapping[str, str]]]] = {
    "builtin:python-docs": docs_dataset.read,
    "builtin:code-forget": code_dataset.read_forget,
    "builtin:code-retain": code_dataset.read_retain,
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
