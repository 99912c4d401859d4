"""Prepared trial folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from peers.material import Work, points, trial_content, write_rows

from trial.config.trial_config import parse
from trial.store.folders import TrialFolder

# b. Trainer steps only


def folders_of(
    work: Work, folder: Path, *, dropout: float = 0.0, seeds: bool = False
) -> Sequence[Path]:
    """Prepared trial folders; with `seeds` each has its own."""
    write_rows(folder, work.length)
    found = []
    for number, (rank, rate) in enumerate(points(work.trials)):
        content = trial_content(work, folder, rank, rate)
        content["lora"]["lora_dropout"] = dropout
        if seeds:
            content["training"]["seed"] = number
        path = folder / "trials" / f"{number:05d}"
        found.append(TrialFolder.create(path, parse(content)).path)
    return found
