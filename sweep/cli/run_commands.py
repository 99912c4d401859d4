"""Commands that train: `run`, `resume` and `train`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sweep.cli.arguments import (
    AddressOption,
    QuickOption,
    RunsOption,
    SetOption,
    SpaceArgument,
    StorageOption,
    StudyArgument,
    TrustOption,
    find_study,
    load_sweep_file,
    located,
)
from sweep.cli.output import err, exit_on_bad_input, out, print_report
from trial.config.errors import ConfigError, Problem
from trial.optional_output import optional_output

if TYPE_CHECKING:
    from sweep.open_study import RunOptions
    from sweep.spec.spec import SweepSpec


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
    quick: QuickOption = False,
    trust_remote_code: TrustOption = False,
) -> None:
    """Start a sweep, or go on with it."""
    from sweep.open_study import RunOptions

    named = {"stop.trials": trials, "resources.concurrency": workers, "base.device": device}
    extra = [f"{key}={value}" for key, value in named.items() if value is not None]
    with optional_output(), exit_on_bad_input():
        given = [*(overrides or ()), *extra]
        spec, source = load_sweep_file(space, given, ray_address)
        options = RunOptions(
            runs,
            study,
            fresh,
            fork,
            storage=storage,
            ray_address=ray_address,
            command=sys.argv,
            quick=quick,
            trust_code=trust_remote_code,
        )
        with located(space, given):
            _run_and_report(spec, source, options)


def _run_and_report(spec: SweepSpec, source: Path, options: RunOptions) -> None:
    """Run the sweep, write its report, and end with the exit code that says how it went."""
    from sweep.driver.interfaces import OutcomeKind
    from sweep.open_study import study_folder
    from sweep.run import resume_command, run_sweep

    folder = study_folder(spec.name, options)
    try:
        outcome = run_sweep(spec, source, options, out)
    except KeyboardInterrupt:
        err.print(f"stopped at once; go on with: {resume_command()}", soft_wrap=True)
        raise typer.Exit(130) from None
    print_report(folder)
    if outcome.kind is OutcomeKind.INTERRUPTED:
        out.print(f"interrupted; go on with: {resume_command()}", soft_wrap=True)
        raise typer.Exit(130)
    out.print(f"ended: {outcome.reason}", markup=False, soft_wrap=True)
    if outcome.resumable:
        out.print(f"nothing is lost, go on with: {resume_command()}", soft_wrap=True)
    if outcome.kind is OutcomeKind.FAILED:
        raise typer.Exit(1)


def train(
    config: Annotated[
        Path | None,
        typer.Argument(help="A configuration, or gaudi-finetune-lora-deepspeed's YAML."),
    ] = None,
    config_name: Annotated[
        str | None,
        typer.Option("--config-name", "--config_name", help="The same, also found in config/."),
    ] = None,
    overrides: SetOption = None,
    run_dir: Annotated[
        Path | None, typer.Option(help="Folder of the run; default: save_dir.")
    ] = None,
    world_size: Annotated[
        int, typer.Option("--world-size", "--world_size", metavar="N", help="Ranks to start.")
    ] = 1,
    use_deepspeed: Annotated[
        bool,
        typer.Option("--use-deepspeed", "--use_deepspeed", help="Fail unless DeepSpeed is used."),
    ] = False,
    merge: Annotated[bool, typer.Option("--merge", help="Write the merged model too.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="The libraries' output too.")] = False,
) -> None:
    """Train once, without a sweep; the same command goes on with what was interrupted."""
    from sweep.single_run import SingleRunOptions, named_config, train_once

    with optional_output(), exit_on_bad_input():
        if (config is None) == (config_name is None):
            rule = "a configuration, or --config-name; one of them"
            raise ConfigError([Problem("CONFIG", rule)])
        config = config or named_config(str(config_name))
        options = SingleRunOptions(
            overrides or (), run_dir, world_size, use_deepspeed, merge, verbose
        )
        code = train_once(config, options, out)
    raise typer.Exit(code)


def resume(
    study: StudyArgument,
    runs: RunsOption = Path("runs"),
    trials: Annotated[int | None, typer.Option(help="Trials in all; extends the study.")] = None,
    workers: Annotated[int | None, typer.Option(help="Jobs at once at most.")] = None,
    extend_trial: Annotated[
        int | None, typer.Option("--continue", help="Train this finished trial for longer.")
    ] = None,
    overrides: SetOption = None,
    storage: StorageOption = None,
    ray_address: AddressOption = None,
    trust_remote_code: TrustOption = False,
) -> None:
    """Go on with a study by its name, with the sweep file it keeps."""
    from sweep.open_study import RunOptions, stored_spec
    from sweep.planning.preflight import preflight

    with optional_output(), exit_on_bad_input():
        folder = find_study(study, runs)
        if overrides and extend_trial is None:
            rule = "is for `--continue NUMBER`; a changed study is a fork: run SPACE --fork NEW"
            raise ConfigError([Problem("--set", rule, " ".join(overrides))])
        spec = stored_spec(folder, trials=trials, concurrency=workers)
        preflight(spec, here=not ray_address)
        options = RunOptions(
            folder.path.parent,
            folder.name,
            extend_trial=extend_trial,
            overrides=overrides or (),
            storage=storage,
            ray_address=ray_address,
            command=sys.argv,
            # The study was accepted when it was started.
            quick=True,
            trust_code=trust_remote_code,
        )
        _run_and_report(spec, folder.sweep_file, options)
