"""What a fresh clone trains: a tiny Llama and questions about Python's standard library.

`python -m trial.builtin.make` makes the model anew. Torch-free but for that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from trial.builtin import docs

MODELS: dict[str, Path] = {"builtin:tiny-llama": Path(__file__).with_name("tiny-llama")}
DATASETS: dict[str, Callable[[], list[Mapping[str, str]]]] = {
    "builtin:python-docs": docs.read,
}


def model_path() -> Path:
    """The folder of the tiny Llama."""
    return MODELS["builtin:tiny-llama"]


def resolve_model(name_or_path: str) -> str:
    """A folder for the name of a built-in model; anything else as it is."""
    return str(MODELS.get(name_or_path, name_or_path))
