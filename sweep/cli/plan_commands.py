"""Commands that train no sweep: `check`, `plan`, `data` and `doctor`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sweep.cli.arguments import (
    QuickOption,
    RunsOption,
    SetOption,
    SpaceArgument,
    load_sweep_file,
    located,
)
from sweep.cli.output import exit_on_bad_input, out
from trial.config.errors import ConfigError, Problem

if TYPE_CHECKING:
    from sweep.planning.data_view import DataSet
    from sweep.spec.spec import SweepSpec


def check(space: SpaceArgument, overrides: SetOption = None, quick: QuickOption = False) -> None:
    """Check a sweep file, its model and its data, and rehearse its trials; train nothing."""
    from sweep.planning import memory_check
    from sweep.planning.lint import advice
    from sweep.spec.grid import grid_size
    from sweep.spec.space import Space

    with exit_on_bad_input():
        spec, source = load_sweep_file(space, overrides, planning=True)
        told = [] if quick else _rehearse_and_count(spec, space, overrides or ())
    size = grid_size(Space.of(spec))
    count = "continuous" if size is None else f"{size} configurations"
    out.print(f"{source}: ok ({count}; sampler {spec.sampler.name}; pruner {spec.pruner.name})")
    notes = [*told, *memory_check.lines(spec), *(f"advice: {line}" for line in advice(spec))]
    for line in notes:
        out.print(f"  {line}", markup=False, soft_wrap=True)


def _rehearse_and_count(spec: SweepSpec, space: str, overrides: Sequence[str]) -> list[str]:
    """Rehearse the trials of a sweep and count its data, in two processes at once.

    Returns:
        Lines about the data, and why there is no verdict where the rehearsal died.

    Raises:
        ConfigError: what keeps a worker from training.
    """
    from sweep.planning import data_view
    from sweep.planning.rehearsal import Rehearsal, RehearsalError, request_for

    counts: list[str] = []
    refused: tuple[Problem, ...] = ()
    rehearsal = Rehearsal(request_for(spec))
    with out.status("rehearsing ..."), located(space, overrides):
        if not rehearsal.known:
            rehearsal.start()
        try:
            counts = data_view.lines(spec)
        except ConfigError as error:
            refused = error.problems
        rehearsal.refuse()
        if refused:
            raise RehearsalError(refused)
    return [*counts, *([rehearsal.failure] if rehearsal.failure else [])]


def plan(
    space: SpaceArgument,
    overrides: SetOption = None,
    count: Annotated[int, typer.Option(min=1, help="Proposals of an adaptive sampler.")] = 10,
    runs: RunsOption = Path("runs"),
    profile: Annotated[bool, typer.Option("--profile", help="Measure one short trial.")] = False,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Jobs at once; default: this machine's.")
    ] = None,
    price: Annotated[float | None, typer.Option(min=0, help="Price of a device-hour.")] = None,
) -> None:
    """Show what would run and what it costs, by an earlier study or a profiled trial."""
    from sweep.planning import cost
    from sweep.planning.plan import cost_lines, plan_table

    with exit_on_bad_input():
        spec, _ = load_sweep_file(space, overrides, planning=True)
        plan_table(spec, count, out)
        measured = cost.measure(spec) if profile else cost.earlier_profile(spec, runs)
        lines = ["cost: no earlier study of this model and data; --profile measures a short trial"]
        if measured is not None:
            price = spec.resources.price_per_device_hour if price is None else price
            lines = cost_lines(spec, measured, workers or cost.local_workers(spec), price)
    for line in lines:
        out.print(line, markup=False, soft_wrap=True)


def data(
    space: Annotated[
        str, typer.Argument(metavar="SPACE", help="A sweep file or a configuration file.")
    ],
    overrides: SetOption = None,
    row: Annotated[int, typer.Option(help="The training row to show, from 0.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="The same as JSON.")] = False,
) -> None:
    """Show what becomes of the data: rows, what is left out or cut, and one row as trained."""
    from sweep.planning import data_view

    with exit_on_bad_input():
        sets, count = _data_sets(space, overrides)
        seen = data_view.look(sets, row)
        if as_json:
            print(json.dumps([one.as_json() for one in seen], indent=2))
            return
        for number, one in enumerate(seen):
            out.print(end="\n" * bool(number))
            data_view.print_data(one, out)
    if count > len(sets):
        out.print(f"{count - len(sets)} further sets of data are not shown")


def _data_sets(space: str, overrides: list[str] | None) -> tuple[list[DataSet], int]:
    """The different data configurations of a sweep file, or the one of a configuration file."""
    from sweep.loading.keys import is_configuration
    from sweep.loading.sweep_files import find
    from sweep.planning.data_view import DataSet, data_sets
    from trial import single_run
    from trial.config import yaml_file

    source = find(space)
    if is_configuration(yaml_file.read(source).content):
        config = single_run.read(source, overrides or (), here=False).config
        return [DataSet("", config)], 1
    return data_sets(load_sweep_file(space, overrides, planning=True)[0])


def doctor(runs: RunsOption = Path("runs")) -> None:
    """Look at Python, packages, devices, Ray, disk, model and data; say what to do."""
    from sweep.planning.doctor import examine

    colours = {"ok": "green", "warning": "yellow", "error": "red"}
    errors = 0
    for diagnosis in examine(runs):
        errors += diagnosis.level == "error"
        advice = f" ({diagnosis.advice})" if diagnosis.advice else ""
        out.print(f"[{colours[diagnosis.level]}]{diagnosis.level:<8}[/]", end="")
        line = f"{diagnosis.subject}: {diagnosis.found}{advice}"
        out.print(line, markup=False, soft_wrap=True)
    if errors:
        raise typer.Exit(1)
