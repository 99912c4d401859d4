"""Train once without a sweep: checked here, trained in a process of its own."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from results.data import format
from trial import single_run, trust
from trial.devices import environment
from trial.distributed.spawn import run_process
from trial.store.folders import TrialFolder
from trial.store.metrics import tokens_per_second
from trial.store.records import Result

MIN_WIDTH = 100
"""Least width of the result's table in characters, also on a narrower or unknown terminal."""


@dataclass(frozen=True, slots=True)
class SingleRunOptions:
    """What the command line adds to a configuration file."""

    overrides: Sequence[str] = ()
    run_dir: Path | None = None
    world_size: int = 1
    deepspeed: bool = False
    merge: bool = False
    verbose: bool = False


def named_config(name: str) -> Path:
    """The file that `--config-name` means: as it stands or in `config/`, `.yaml` added if needed.

    So Hydra finds it in gaudi-finetune-lora-deepspeed. A file that is nowhere is returned as named.
    """
    tried = [Path(folder, f"{name}{end}") for folder in ("", "config") for end in ("", ".yaml")]
    return next((path for path in tried if path.is_file()), Path(name))


def train_once(source: Path, options: SingleRunOptions, console: Console) -> int:
    """Train the run of a configuration file, or go on with it; returns the exit code.

    Raises:
        ConfigError: every mistake at once; nothing has been started.
    """
    run = single_run.read(
        source,
        options.overrides,
        run_dir=options.run_dir,
        deepspeed=options.deepspeed,
        world_size=options.world_size,
    )
    folder = single_run.open_folder(run, options.world_size)
    code = run_process(_command(folder, options), {**_environment(run), **os.environ})
    if (result := folder.read_result()) is not None:
        console.print(_result_table(folder, result), width=max(console.width, MIN_WIDTH))
    return code


def _environment(run: single_run.SingleRun) -> dict[str, str]:
    """Environment variables that have to be set before Python starts."""
    config = run.config
    lazy = bool(config.training.get("use_lazy_mode"))
    return environment.process_environment(
        config.device, lazy, run.folder.path, zero_stage=config.zero_stage
    )


def _command(folder: TrialFolder, options: SingleRunOptions) -> list[str]:
    """The command line of the training process."""
    # The configuration file that the user has named says which code runs.
    words = [sys.executable, "-m", "trial", str(folder.path), trust.FLAG]
    words += ["--world-size", str(options.world_size)]
    return words + ["--merge"] * options.merge + ["--verbose"] * options.verbose


def _result_table(folder: TrialFolder, result: Result) -> Table:
    """The result as a table of one row."""
    cells = {
        "state": result.state,
        "eval loss": format.loss(result.eval_loss),
        "best step": format.number(result.best_step),
        "steps": format.number(result.steps),
        "tokens/s": format.number(tokens_per_second(result)),
        "time": format.seconds(result.seconds.total),
        "memory": format.size(result.peak_memory_bytes or None),
        "device": f"{result.devices} x {result.device}" if result.devices > 1 else result.device,
    }
    table = Table(title=str(folder.path), title_justify="left", box=box.SIMPLE_HEAD)
    for name in cells:
        table.add_column(name, no_wrap=True)
    table.add_row(*cells.values())
    return table
