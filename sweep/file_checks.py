"""Refuse a study with links that lead outside, with files of another user, or with code to run."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sweep.spec.dimension import Choices, Derived, Fixed
from sweep.spec.spec import SweepSpec
from trial import trust
from trial.config.objective_registry import is_user_function
from trial.store.folders import StudyFolder, TrialFolder
from trial.training.checkpoints import Checkpoints


def check_files(folder: StudyFolder) -> None:
    """Refuse links that lead out of the study, and checkpoints that another user has written.

    Raises:
        ValueError: a link leads outside, or a checkpoint belongs to another user.
    """
    check_links(folder)
    for _, trial in folder.all_trials():
        Checkpoints(trial).refuse_foreign()


def check_links(folder: StudyFolder) -> None:
    """Refuse links that would lead writes out of the study; `runs` itself may be a link.

    Raises:
        ValueError: a link leads outside.
    """
    home = folder.path.parent.resolve() / folder.name
    for path in (folder.path, *_links(folder.path)):
        if (path.exists() or path.is_symlink()) and not path.resolve().is_relative_to(home):
            raise ValueError(f"{path}: leads out of {home}, to {path.resolve()}")


def _links(folder: Path) -> Iterator[Path]:
    """Every symbolic link below a folder."""
    if not folder.is_dir():
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_symlink():
                yield Path(entry.path)
            elif entry.is_dir(follow_symlinks=False):
                yield from _links(Path(entry.path))


def check_code(
    folder: StudyFolder, spec: SweepSpec, source: Path, extended: int | None = None
) -> None:
    """Refuse to train a study that would run code for which nobody has said a word.

    A sweep file that the user names is that word; the copy that a study keeps is not. Trials in
    flight go on by the configurations and checkpoints in their folders.

    Args:
        folder: The study, whether it exists or not.
        spec: What its sweep file says.
        source: The sweep file.
        extended: Number of a finished trial that is to be trained for longer.

    Raises:
        ValueError: there is such code; says which.
    """
    allowed: set[str] = set()
    if StudyFolder(source.resolve().parent).exists():
        trust.refuse_code(folder.path, _code_of_spec(spec))
    else:
        allowed = _code_of_spec(spec)
        if _possible(spec, "zero_stage"):
            allowed.add(trust.PICKLES)
    for number, trial in folder.all_trials():
        if number == extended or not trial.result.exists():
            trust.refuse_code(trial.path, _code_of_trial(trial) - allowed)


def _code_of_trial(trial: TrialFolder) -> set[str]:
    try:
        return trust.code_of_training(trial, trial.read_config())
    except (OSError, ValueError):
        # A worker cannot read it either, and loads nothing.
        return set()


def _code_of_spec(spec: SweepSpec) -> set[str]:
    """The code that some trial of a sweep runs by its configuration."""
    trusting = any(_possible(spec, "model.trust_remote_code"))
    kernels = [name for name in _possible(spec, "model.attn_implementation") if "/" in str(name)]
    objectives = [
        named.get("name") if isinstance(named, dict) else named
        for key in ("objective", "objective.name")
        for named in _possible(spec, key)
    ]
    metrics = [
        name
        for named in _possible(spec, "evaluation.metrics")
        for name in (named if isinstance(named, Sequence) else ())
    ]
    names = {name for name in (*objectives, *metrics) if isinstance(name, str)}
    return {
        *([trust.MODEL] if trusting else []),
        *(trust.kernel(str(name)) for name in kernels),
        *(trust.function(name) for name in names if is_user_function(name)),
    }


def _possible(spec: SweepSpec, key: str) -> list[Any]:
    """Values that a key has in the base or may take in the space; true for a derived one."""
    value: Any = spec.base
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    found = [value, spec.base.get(key)]
    for branch in spec.space.get(key, ()):
        if isinstance(branch, Choices):
            found += branch.choices
        elif isinstance(branch, Fixed):
            found.append(branch.value)
        elif isinstance(branch, Derived):
            found.append(True)
    return [value for value in found if value is not None]
