"""The `gaudi-sweep` command. Parses, prints, and sets the exit code; the work is elsewhere.

Exit codes: 0 done, 1 the sweep failed, 2 bad input (nothing was started), 130 interrupted.
"""

from __future__ import annotations

import atexit
import gc
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from trial.config.errors import ConfigError, Problem, unknown
from trial.store.disk_full import FULL
from trial.store.folders import StudyFolder

if TYPE_CHECKING:
    from sweep.run import RunOptions
    from sweep.spec.spec import SweepSpec
    from trial.store.folders import TrialFolder

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__
)
# What is quoted from a file stays as it is there: no `:x:` becomes a picture.
out = Console(highlight=False, emoji=False)
err = Console(stderr=True, highlight=False, emoji=False)

SpaceArgument = Annotated[
    str, typer.Argument(metavar="SPACE", help="A name in spaces/, or the path of a sweep file.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key: training.max_steps=50."),
]
AddressOption = Annotated[
    str | None, typer.Option(envvar="RAY_ADDRESS", help="An existing Ray cluster.")
]
StorageOption = Annotated[
    str | None,
    typer.Option(
        envvar="GAUDI_SWEEP_STORAGE",
        help="Optuna storage URL; a journal file else. Kept without its password: give it again.",
    ),
]
RunsOption = Annotated[Path, typer.Option("--runs", file_okay=False, help="Folder of all studies.")]
StudyArgument = Annotated[
    str, typer.Argument(metavar="STUDY", help="A study's name, or the path of its folder.")
]


@contextmanager
def _clear_errors() -> Iterator[None]:
    """Bad input ends with exit code 2 and every mistake on its own line, never a traceback."""
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
        if isinstance(error, OSError) and error.errno in FULL:
            text += ": make room and give the command again; what had ended is kept"
        err.print(text, style="bold red", markup=False, soft_wrap=True)
        raise typer.Exit(2) from None


def _load(
    space: str,
    overrides: list[str] | None,
    ray_address: str | None = None,
    *,
    planning: bool = False,
) -> tuple[SweepSpec, Path]:
    """The sweep file, checked down to the model and the data it names.

    When `planning`, a device or a model that is not on this machine is said and not refused.
    """
    from sweep.loading import loader
    from sweep.planning.preflight import glance, preflight

    source, said = loader.find(space), overrides or ()
    spec, wrong = loader.examine(source, said)
    if wrong:
        more = loader.placed(source, said, glance(spec, wrong))
        raise ConfigError(loader.in_order([*wrong, *more]))
    try:
        absent = preflight(spec, here=not ray_address, planning=planning)
    except ConfigError as error:
        raise ConfigError(loader.placed(source, said, error.problems)) from None
    for problem in loader.placed(source, said, absent):
        out.print(f"not on this machine: {problem}", style="yellow", markup=False, soft_wrap=True)
    return spec, source


@app.command()
def check(space: SpaceArgument, overrides: SetOption = None) -> None:
    """Check a sweep file, its model and its data; train nothing."""
    from sweep.planning import memory_check
    from sweep.planning.lint import advice
    from sweep.spec.grid import grid_size
    from sweep.spec.space import Space

    with _clear_errors():
        spec, source = _load(space, overrides, planning=True)
    size = grid_size(Space.of(spec))
    count = "continuous" if size is None else f"{size} configurations"
    out.print(f"{source}: ok ({count}; sampler {spec.sampler.name}; pruner {spec.pruner.name})")
    for line in [*memory_check.lines(spec), *(f"advice: {line}" for line in advice(spec))]:
        out.print(f"  {line}", markup=False, soft_wrap=True)


@app.command()
def plan(
    space: SpaceArgument,
    overrides: SetOption = None,
    count: Annotated[int, typer.Option(min=1, help="Proposals of an adaptive sampler.")] = 10,
    runs: RunsOption = Path("runs"),
    profile: Annotated[bool, typer.Option("--profile", help="Measure one short trial.")] = False,
    workers: Annotated[int | None, typer.Option(min=1, help="Jobs at once; else as here.")] = None,
    price: Annotated[float | None, typer.Option(min=0, help="Price of a device-hour.")] = None,
) -> None:
    """Show what would run and what it costs, by an earlier study or a profiled trial."""
    from sweep.planning import cost
    from sweep.planning.plan import cost_lines, plan_table

    with _clear_errors():
        spec, _ = _load(space, overrides, planning=True)
        plan_table(spec, count, out)
        found = cost.measure(spec) if profile else cost.earlier_profile(spec, runs)
        lines = ["cost: no earlier study of this model and data; --profile measures a short trial"]
        if found is not None:
            price = spec.resources.price_per_device_hour if price is None else price
            lines = cost_lines(spec, found, workers or cost.local_workers(spec), price)
    for line in lines:
        out.print(line, markup=False, soft_wrap=True)


@app.command()
def run(
    space: SpaceArgument,
    overrides: SetOption = None,
    runs: RunsOption = Path("runs"),
    study: Annotated[str | None, typer.Option(help="Study name; the sweep file's else.")] = None,
    trials: Annotated[int | None, typer.Option(help="Trials in all; extends a study.")] = None,
    workers: Annotated[int | None, typer.Option(help="Jobs at once at most.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or hpu.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Keep the old study aside.")] = False,
    fork: Annotated[
        str | None, typer.Option(metavar="NEW", help="A new study with the trials that still fit.")
    ] = None,
    storage: StorageOption = None,
    ray_address: AddressOption = None,
) -> None:
    """Start a sweep, or go on with it."""
    from sweep import run as session

    named = {"stop.trials": trials, "resources.concurrency": workers, "base.device": device}
    extra = [f"{key}={value}" for key, value in named.items() if value is not None]
    with _clear_errors():
        spec, source = _load(space, [*(overrides or ()), *extra], ray_address)
        options = session.RunOptions(
            runs, study, fresh, fork, storage=storage, ray_address=ray_address, command=sys.argv
        )
        _go(spec, source, options)


def _go(spec: SweepSpec, source: Path, options: RunOptions) -> None:
    """Run the sweep, explain it, and end with the exit code that says how it went."""
    from sweep import run as session

    folder = session.study_folder(spec.name, options)
    try:
        ending = session.run(spec, source, options, out)
    except KeyboardInterrupt:
        err.print(f"stopped at once; go on with: {session.command_again()}", soft_wrap=True)
        raise typer.Exit(130) from None
    _explain(folder)
    if ending.interrupted:
        out.print(f"interrupted; go on with: {session.command_again()}", soft_wrap=True)
        raise typer.Exit(130)
    out.print(f"ended: {ending.reason}", markup=False, soft_wrap=True)
    if ending.failed:
        raise typer.Exit(1)


@app.command()
def train(
    config: Annotated[Path, typer.Argument(help="A file in our keys, or the seed's YAML.")],
    overrides: SetOption = None,
    run_dir: Annotated[Path | None, typer.Option(help="The run's folder; save_dir else.")] = None,
    world_size: Annotated[
        int, typer.Option("--world-size", "--world_size", metavar="N", help="Ranks to start.")
    ] = 1,
    use_deepspeed: Annotated[
        bool, typer.Option("--use-deepspeed", "--use_deepspeed", help="Refuse to do without.")
    ] = False,
    merge: Annotated[bool, typer.Option("--merge", help="Write the merged model too.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="The libraries' output too.")] = False,
) -> None:
    """Train once, without a sweep; the same command goes on with what was interrupted."""
    from sweep import single_run as single

    with _clear_errors():
        options = single.SingleRunOptions(
            overrides or (), run_dir, world_size, use_deepspeed, merge, verbose
        )
        code = single.train(config, options, out)
    raise typer.Exit(code)


@app.command()
def resume(
    study: StudyArgument,
    runs: RunsOption = Path("runs"),
    trials: Annotated[int | None, typer.Option(help="Trials in all; extends the study.")] = None,
    workers: Annotated[int | None, typer.Option(help="Jobs at once at most.")] = None,
    prolong: Annotated[
        int | None, typer.Option("--continue", help="Train this finished trial for longer.")
    ] = None,
    overrides: SetOption = None,
    storage: StorageOption = None,
    ray_address: AddressOption = None,
) -> None:
    """Go on with a study by its name, with the sweep file it keeps."""
    from sweep import run as session
    from sweep.planning.preflight import preflight

    with _clear_errors():
        folder = _existing(study, runs)
        if overrides and prolong is None:
            rule = "is for `--continue NUMBER`; a changed study is a fork: run SPACE --fork NEW"
            raise ConfigError([Problem("--set", rule, " ".join(overrides))])
        spec = session.stored_spec(folder, trials=trials, concurrency=workers)
        preflight(spec, here=not ray_address)
        options = session.RunOptions(
            folder.path.parent,
            folder.name,
            prolong=prolong,
            overrides=overrides or (),
            storage=storage,
            ray_address=ray_address,
            command=sys.argv,
        )
        _go(spec, folder.sweep_file, options)


@app.command()
def verify(
    study: StudyArgument, runs: RunsOption = Path("runs"), storage: StorageOption = None
) -> None:
    """Check a study's folders against its journal and say what differs."""
    from sweep import run as session
    from sweep.study.verify import verify as differences

    with _clear_errors():
        folder = _existing(study, runs)
        found = differences(folder, session.stored_storage(folder, storage))
    for finding in found:
        out.print(str(finding), style="red" if finding.wrong else "", markup=False, soft_wrap=True)
    wrong = sum(finding.wrong for finding in found)
    count = len(folder.all_trials())
    out.print(f"{folder.path}: {count} trials, {wrong} difference{'s' * (wrong != 1)}")
    if wrong:
        raise typer.Exit(1)


@app.command()
def status(study: StudyArgument, runs: RunsOption = Path("runs")) -> None:
    """Print the table of a study as it stands, and where its workers' time went."""
    from results import print_status

    with _clear_errors():
        print_status(_existing(study, runs), out)


@app.command()
def report(
    study: StudyArgument,
    runs: RunsOption = Path("runs"),
    price: Annotated[float | None, typer.Option(min=0, help="Price of a device-hour.")] = None,
) -> None:
    """Write the tables and the report of a study, at any moment."""
    with _clear_errors():
        _explain(_existing(study, runs), price)


@app.command()
def export(
    study: StudyArgument,
    target: Annotated[Path, typer.Option("--to", help="A folder that does not exist yet.")],
    trial: Annotated[
        str, typer.Option(help="A number, or `best`: what the report recommends.")
    ] = "best",
    merge: Annotated[bool, typer.Option("--merge", help="The merged model.")] = False,
    runs: RunsOption = Path("runs"),
) -> None:
    """Write a trial's adapter (or merged model), its model card and its configuration."""
    from results import recommended
    from sweep.study.select_trial import choose

    with _clear_errors():
        source = _existing(study, runs)
        taken = recommended(source) if trial == "best" else None
        folder = choose(source, trial if taken is None else str(taken))
        # A process of its own: only merging needs torch, and this one never loads it.
        words = [sys.executable, "-m", "trial.export", str(folder.path), str(target)]
        done = subprocess.run(words + ["--merge"] * merge, capture_output=True, text=True)
        if done.returncode:
            raise ValueError(done.stderr.strip())
    out.print(f"trial {folder.path.name} is in {target}")


@app.command()
def compare(
    studies: Annotated[list[str], typer.Argument(metavar="STUDY...", help="Names or folders.")],
    trials: Annotated[
        str, typer.Option(help='Numbers: "3 7 12"; of several studies "a:3 b:7".')
    ] = "",
    samples: Annotated[bool, typer.Option(help="What each says to a few fixed prompts.")] = True,
    runs: RunsOption = Path("runs"),
) -> None:
    """Write a page that holds trials of one or more studies side by side."""
    from results import compare as write
    from sweep.run import check_links

    with _clear_errors():
        folders = [_existing(study, runs) for study in studies]
        for folder in folders:
            check_links(folder)
        named = trials.replace(",", " ").split()
        page = write(folders, named, before=_sample if samples else None)
    out.print(f"comparison: {page}", soft_wrap=True)


def _sample(trials: Sequence[TrialFolder]) -> None:
    """Let trials say something to fixed prompts, where they have weights to say it with."""
    # A process of its own: generating needs torch, and this one never loads it.
    words = [sys.executable, "-m", "trial.sample", *(str(trial.path) for trial in trials)]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        err.print(f"no samples: {done.stderr.strip()[-300:]}", markup=False)


@app.command()
def dashboard(
    study: StudyArgument,
    runs: RunsOption = Path("runs"),
    port: Annotated[int, typer.Option(help="On loopback.")] = 8080,
    storage: StorageOption = None,
) -> None:
    """Serve Optuna Dashboard over a study, on loopback, until Ctrl-C."""
    from sweep import run as session

    with _clear_errors():
        opened = session.stored_storage(_existing(study, runs), storage)
        session.serve_dashboard(opened, port, out)


@app.command()
def doctor(runs: RunsOption = Path("runs")) -> None:
    """Look at Python, packages, devices, Ray, disk, model and data; say what to do."""
    from sweep.planning.doctor import examine

    colours = {"ok": "green", "warning": "yellow", "error": "red"}
    errors = 0
    for line in examine(runs):
        errors += line.level == "error"
        advice = f" ({line.advice})" if line.advice else ""
        out.print(f"[{colours[line.level]}]{line.level:<8}[/]", end="")
        out.print(f"{line.subject}: {line.found}{advice}", markup=False, soft_wrap=True)
    if errors:
        raise typer.Exit(1)


def _existing(study: str, runs: Path) -> StudyFolder:
    """The folder of a study that has been started."""
    for path in (runs / study, Path(study)):
        if (folder := StudyFolder(path)).exists():
            folder.refuse_other_version()
            return folder
    known = sorted(path.parent.name for path in runs.glob("*/study.json"))
    problem = unknown(study, known, f"study in {runs}")
    raise ConfigError([Problem("STUDY", problem.expected, repr(study), problem.near)])


def _explain(folder: StudyFolder, price: float | None = None) -> None:
    """Print the table; write it and the report."""
    from results import ReportOptions, print_table, trials_table, write_report
    from sweep.run import check_links

    check_links(folder)
    print_table(trials_table(folder), out)
    page = write_report(folder, ReportOptions(price_per_device_hour=price))
    out.print(f"report: {page}", soft_wrap=True)


RARELY = (100_000, 20, 20)
"""Thresholds of Python's garbage collector. Modules, tables and studies stay until the end: by
itself it looks for garbage among them for a third of a command's seconds."""


def main() -> None:
    """Entry point of `gaudi-sweep`."""
    gc.set_threshold(*RARELY)
    # The process is about to end, and all of it with it.
    atexit.register(gc.freeze)
    app(prog_name="gaudi-sweep")
