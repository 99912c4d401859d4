"""One run without a sweep, from the command: checked here, trained in a process of its own."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from results import units
from trial import launch, single
from trial.folder import Result, TrialFolder
from trial.metrics import tokens_per_second
from trial.spawn import run_one

WIDTH = 100
"""Columns of the result's row, also where nobody has said how wide a line is."""


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line adds to a configuration file."""

    overrides: Sequence[str] = ()
    run_dir: Path | None = None
    world_size: int = 1
    deepspeed: bool = False
    merge: bool = False
    verbose: bool = False


def train(source: Path, options: Options, console: Console) -> int:
    """Train the run of a configuration file, or go on with it; returns the exit code.

    Raises:
        ConfigError: every mistake at once; nothing has been started.
    """
    found = single.read(
        source,
        options.overrides,
        run_dir=options.run_dir,
        deepspeed=options.deepspeed,
        world_size=options.world_size,
    )
    folder = single.open_folder(found, options.world_size)
    code = run_one(_command(folder, options), {**_environment(found), **os.environ})
    if (result := folder.read_result()) is not None:
        console.print(_row(folder, result), width=max(console.width, WIDTH))
    return code


def _environment(run: single.Single) -> dict[str, str]:
    """Set before Python starts, as Gaudi's software wants it; what the user has set stays."""
    config = run.config
    lazy = bool(config.training.get("use_lazy_mode"))
    return launch.environment(config.device, lazy, run.folder.path, zero_stage=config.zero_stage)


def _command(folder: TrialFolder, options: Options) -> list[str]:
    words = [sys.executable, "-m", "trial", str(folder.path)]
    words += ["--world-size", str(options.world_size)]
    return words + ["--merge"] * options.merge + ["--verbose"] * options.verbose


def _row(folder: TrialFolder, result: Result) -> Table:
    """The result as a table of one row."""
    cells = {
        "state": result.state,
        "eval loss": units.loss(result.value),
        "best step": units.number(result.best_step),
        "steps": units.number(result.steps),
        "tokens/s": units.number(tokens_per_second(result)),
        "time": units.seconds(result.seconds.total),
        "memory": units.size(result.peak_memory_bytes or None),
        "device": f"{result.devices} x {result.device}" if result.devices > 1 else result.device,
    }
    table = Table(title=str(folder.path), title_justify="left", box=box.SIMPLE_HEAD)
    for name in cells:
        table.add_column(name, no_wrap=True)
    table.add_row(*cells.values())
    return table
