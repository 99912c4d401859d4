"""Refuse a study whose links lead outside, or whose checkpoints another user has written."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from trial.store.folders import StudyFolder
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
