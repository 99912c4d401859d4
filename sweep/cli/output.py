"""The command's consoles, its answer to bad input, and the report after a sweep."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from traceback import extract_tb
from typing import TYPE_CHECKING

import typer
from rich import console
from rich.console import Console

from trial.config.errors import ConfigError
from trial.store.disk_full import FULL

if TYPE_CHECKING:
    from trial.store.folders import StudyFolder

# Text quoted from a file is printed as it is: `:x:` is no emoji here.
PIPED_WIDTH = 1000
"""Columns of the output where it is no terminal: what reads it wants whole lines."""


def _width() -> int | None:
    return None if sys.stdout.isatty() or "COLUMNS" in os.environ else PIPED_WIDTH


out = Console(highlight=False, emoji=False, width=_width())
err = Console(stderr=True, highlight=False, emoji=False)


@contextmanager
def exit_on_bad_input() -> Iterator[None]:
    """End with exit code 2 and every mistake on its own line, never with a traceback."""
    from sweep.study.study_lock import StudyBusyError

    try:
        yield
    except ConfigError as error:
        count = len(error.problems)
        err.print(f"[bold red]{count} mistake{'s' * (count > 1)}; nothing was started[/]")
        for problem in error.problems:
            err.print(str(problem), markup=False, soft_wrap=True)
        raise typer.Exit(2) from None
    except (StudyBusyError, OSError, ValueError) as error:
        text = str(error)
        if isinstance(error, OSError) and error.errno in FULL and _came_from_output(error):
            text = f"standard output cannot be written: {text}"
        elif isinstance(error, OSError) and error.errno in FULL:
            text += ": make room and give the command again; what had ended is kept"
        err.print(text, style="bold red", markup=False, soft_wrap=True)
        raise typer.Exit(2) from None


def _came_from_output(error: Exception) -> bool:
    """Whether it was raised while something was printed: then no disk of ours is full."""
    return console.__file__ in {frame.filename for frame in extract_tb(error.__traceback__)}


def print_report(folder: StudyFolder, price: float | None = None) -> None:
    """Print the table of trials; write it and the report to the study's folder."""
    from results import ReportOptions, print_table, trials_table, write_report
    from sweep.file_checks import check_links

    check_links(folder)
    print_table(trials_table(folder), out)
    page = write_report(folder, ReportOptions(price_per_device_hour=price))
    out.print(f"report: {page}", soft_wrap=True)
