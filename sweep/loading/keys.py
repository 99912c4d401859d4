"""The keys of a sweep file: which there are, and what an unknown one may have meant."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from pydantic import BaseModel

from sweep.spec.spec import (
    BudgetSpec,
    ConfirmSpec,
    FailuresSpec,
    ObjectiveSpec,
    ResourceSpec,
    SamplerSpec,
    StopSpec,
    SweepSpec,
)
from trial.config.errors import Problem, nearest, unknown
from trial.config.trial_config import SECTIONS, known_keys, known_paths
from trial.seed_config import is_seed_config

TOP_LEVEL = tuple(sorted({*SweepSpec.model_fields, "objective", "budget"}))
"""Keys that may stand at the top level of a sweep file."""

SHORT_FORMS = {"sampler": "name", "pruner": "name", "objective": "metric"}
"""Sections that may be a text alone, and the key it stands for: `sampler: tpe`."""

CONFIG_SECTIONS = (*SECTIONS, "training")
"""Parts of a trial's configuration that are mappings of named keys."""

OTHER_WORDS = {
    "rank": "lora.r",
    "alpha": "lora.lora_alpha",
    "dropout": "lora.lora_dropout",
    "lr": "training.learning_rate",
    "batch_size": "training.per_device_train_batch_size",
    "epochs": "training.num_train_epochs",
    "num_epochs": "training.num_train_epochs",
    "steps": "training.max_steps",
    "zero": "zero_stage",
    "stage": "zero_stage",
    "model_id": "model.name_or_path",
    "model_name": "model.name_or_path",
}
"""Names that other tools give a key, too unlike it to be suggested by their spelling."""


def is_at_or_below(path: str, other: str) -> bool:
    """Whether a dotted path is another, or lies below it."""
    return path == other or path.startswith(f"{other}.")


def is_config_path(path: str) -> bool:
    """Whether a dotted path is a key of a trial's configuration, or lies below one."""
    return any(is_at_or_below(path, name) for name in known_paths())


def is_configuration(content: Any) -> bool:
    """Whether a file's content is one trial's configuration, and not a sweep."""
    if not isinstance(content, dict) or set(content) & (set(TOP_LEVEL) - set(known_keys()[""])):
        return False
    return is_seed_config(content) or not set(content).isdisjoint(known_keys()[""])


def config_section(path: str, value: Any) -> bool:
    """Whether a path is a section of the configuration, for `dotted.pairs` to go into.

    `lora: {r: ...}` is `lora.r`, but `training.lr_scheduler_kwargs: {...}` is one value.
    """
    return path in CONFIG_SECTIONS and isinstance(value, dict)


def unknown_path(path: str, known: Sequence[str]) -> Problem:
    """The problem of a dotted path that is not in `known`."""
    near = nearest(path, known)
    section, _, name = path.partition(".")
    if not near and name and section in CONFIG_SECTIONS:
        of_section = [key.partition(".")[2] for key in known if key.startswith(f"{section}.")]
        return replace(unknown(path, of_section), got=repr(path))
    begins = "" if near else f"; a path begins with {', '.join(known_keys()[''])}"
    return Problem(path, f"unknown key{begins}", repr(path), near)


def unknown_top_level(name: str) -> Problem:
    """The problem of an unknown top-level key, which often belongs a level deeper."""
    deeper = next((key for key in settable_keys() if key.rpartition(".")[2] == name), "")
    if name in known_keys()[""] or is_config_path(deeper):
        deeper = f"base.{deeper or name}"
    problem = unknown(name, TOP_LEVEL)
    return replace(problem, near=deeper or problem.near)


def settable_keys() -> list[str]:
    """Every dotted key that `--set` can change, for suggestions."""
    models: dict[str, type[BaseModel]] = {
        "stop": StopSpec,
        "resources": ResourceSpec,
        "failures": FailuresSpec,
        "confirm": ConfirmSpec,
        "budget": BudgetSpec,
        "sampler": SamplerSpec,
        "objective": ObjectiveSpec,
    }
    fields = [f"{key}.{name}" for key, model in models.items() for name in model.model_fields]
    return [*TOP_LEVEL, "pruner.name", *fields, *known_paths()]


def suggestion(problem: Problem) -> str:
    """The name that an unknown key may have meant: by meaning first, else by spelling."""
    section, _, name = problem.key.rpartition(".")
    of_config = section.partition(".")[0] in ("", "base", "space", "enqueue")
    if problem.expected.startswith("unknown") and of_config:
        return OTHER_WORDS.get(name, problem.near)
    return problem.near
