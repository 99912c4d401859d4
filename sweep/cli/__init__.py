"""The `gaudi-sweep` command. Parses, prints, and sets the exit code; the work is elsewhere.

Exit codes: 0 done, 1 the sweep failed or none of its trials has a value, 2 bad input (nothing was
started), 130 interrupted.
"""

from __future__ import annotations

import atexit
import gc
from typing import Annotated

import typer

from sweep.cli import plan_commands, run_commands, study_commands
from trial.store.cache_dir import set_cache_folders

COMMANDS = (
    plan_commands.check,
    plan_commands.plan,
    plan_commands.data,
    run_commands.run,
    run_commands.train,
    run_commands.resume,
    study_commands.verify,
    study_commands.status,
    study_commands.report,
    study_commands.export,
    study_commands.compare,
    study_commands.dashboard,
    plan_commands.doctor,
)
"""In the order of `--help`."""

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__)
for command in COMMANDS:
    app.command()(command)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"gaudi-sweep {version('gaudi-sweep')}")
        raise typer.Exit


@app.callback(help=__doc__)
def options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    """Options of the command itself."""


GC_THRESHOLDS = (100_000, 20, 20)
"""For Python's garbage collector. Modules, tables and studies stay until the process ends: with the
default thresholds, looking for garbage among them takes a third of a command's seconds."""


def main() -> None:
    """Entry point of `gaudi-sweep`."""
    gc.set_threshold(*GC_THRESHOLDS)
    # At exit the operating system frees the memory: no last collection is needed.
    atexit.register(gc.freeze)
    set_cache_folders()
    app(prog_name="gaudi-sweep")
