"""Commands about a study on disk: `verify`, `status`, `report`, `export` and others."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sweep.cli.arguments import (
    RunsOption,
    StorageOption,
    StudyArgument,
    TrustOption,
    find_study,
)
from sweep.cli.output import err, exit_on_bad_input, out, print_report
from trial import trust
from trial.sample import needs_sampling

if TYPE_CHECKING:
    from trial.store.folders import StudyFolder, TrialFolder


def verify(
    study: StudyArgument,
    runs: RunsOption = Path("runs"),
    storage: StorageOption = None,
    deep: Annotated[
        bool, typer.Option("--deep", help="Read every file and compare its hash.")
    ] = False,
    repair: Annotated[
        bool, typer.Option("--repair", help="Make damaged files anew from the trial folders.")
    ] = False,
) -> None:
    """Check a study's folders against its journal and say what differs."""
    from sweep.open_study import stored_storage
    from sweep.study.verify import verify as compare_with_storage

    with exit_on_bad_input():
        folder = _repaired(study, runs, storage) if repair else find_study(study, runs)
        findings = compare_with_storage(folder, stored_storage(folder, storage), deep=deep)
    for finding in findings:
        out.print(str(finding), style="red" if finding.wrong else "", markup=False, soft_wrap=True)
    wrong = sum(finding.wrong for finding in findings)
    count = len(folder.all_trials())
    out.print(f"{folder.path}: {count} trials, {wrong} difference{'s' * (wrong != 1)}")
    if wrong:
        if not repair:
            err.print(folder.repair_hint, markup=False, soft_wrap=True)
        raise typer.Exit(1)


def _repaired(study: str, runs: Path, storage: str | None) -> StudyFolder:
    """The folder of a study, once it has been repaired; prints what was done."""
    from sweep.file_checks import check_links
    from sweep.repair.rebuild import repair
    from sweep.study import study_lock
    from trial.store.files import DamagedFileError
    from trial.store.folders import StudyFolder

    places = [StudyFolder(path) for path in (runs / study, Path(study)) if path.is_dir()]
    try:
        folder = find_study(study, runs)
    except DamagedFileError:
        folder = places[0]
    check_links(folder)
    with study_lock.hold(folder):
        for line in repair(folder, storage):
            out.print(line, markup=False, soft_wrap=True)
    return folder


def status(study: StudyArgument, runs: RunsOption = Path("runs")) -> None:
    """Print the table of a study as it stands, and where its workers' time went."""
    from results import print_status

    with exit_on_bad_input():
        print_status(find_study(study, runs), out)


def report(
    study: StudyArgument,
    runs: RunsOption = Path("runs"),
    price: Annotated[float | None, typer.Option(min=0, help="Price of a device-hour.")] = None,
) -> None:
    """Write the tables and the report of a study, at any moment."""
    with exit_on_bad_input():
        print_report(find_study(study, runs), price)


def export(
    study: StudyArgument,
    target: Annotated[Path, typer.Option("--to", help="A folder that does not exist yet.")],
    trial: Annotated[
        str, typer.Option(help="A number, or `best`: what the report recommends.")
    ] = "best",
    merge: Annotated[bool, typer.Option("--merge", help="The merged model.")] = False,
    dtype: Annotated[
        str | None, typer.Option(help="Type of merged weights, if not the base model's.")
    ] = None,
    verify: Annotated[
        bool, typer.Option(help="Load it again in a fresh process and measure its loss.")
    ] = True,
    runs: RunsOption = Path("runs"),
    trust_remote_code: TrustOption = False,
) -> None:
    """Write a trial's adapter (or merged model), its model card and its configuration."""
    from results import recommended
    from sweep.study.select_trial import select_trial

    with exit_on_bad_input():
        source = find_study(study, runs)
        best = recommended(source) if trial == "best" else None
        folder = select_trial(source, trial if best is None else str(best))
        # A process of its own: it needs torch, and this process never loads it.
        words = [sys.executable, "-m", "trial.export", str(folder.path), str(target)]
        words += ["--merge"] * merge + ["--no-verify"] * (not verify)
        words += ["--dtype", dtype] if dtype else []
        words += [trust.FLAG] * trust_remote_code
        done = _run(words)
        if done.returncode:
            raise ValueError(done.stderr.strip())
    out.print(f"trial {folder.path.name} is in {target}")
    out.print(f"loss, loaded again: {done.stdout.strip().splitlines()[-1]}", markup=False)


def compare(
    studies: Annotated[list[str], typer.Argument(metavar="STUDY...", help="Names or folders.")],
    trials: Annotated[
        str, typer.Option(help='Numbers: "3 7 12"; of several studies "a:3 b:7".')
    ] = "",
    samples: Annotated[bool, typer.Option(help="What each says to a few fixed prompts.")] = True,
    runs: RunsOption = Path("runs"),
    trust_remote_code: TrustOption = False,
) -> None:
    """Write a page that holds trials of one or more studies side by side."""
    from results import compare as write_comparison
    from sweep.file_checks import check_links

    with exit_on_bad_input():
        folders = [find_study(study, runs) for study in studies]
        for folder in folders:
            check_links(folder)
        chosen = trials.replace(",", " ").split()
        before = partial(_write_samples, trusted=trust_remote_code) if samples else None
        page = write_comparison(folders, chosen, before=before)
    out.print(f"comparison: {page}", soft_wrap=True)


def _run(words: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a program, which can ask nothing: its question would not be seen."""
    return subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True)


def _write_samples(trials: Sequence[TrialFolder], trusted: bool) -> None:
    """Write completions of a few fixed prompts, for the trials that still have weights.

    Raises:
        ValueError: loading one of them would run its code, and `trusted` is not said.
    """
    if not trusted:
        for trial in trials:
            if needs_sampling(trial):
                trust.refuse_code(
                    f"{trial.path} (--no-samples loads no model)",
                    trust.code_of_model(trial.read_config()),
                )
    # A process of its own: generating needs torch, and this process never loads it.
    words = [sys.executable, "-m", "trial.sample", *[trust.FLAG] * trusted]
    done = _run([*words, *(str(trial.path) for trial in trials)])
    if done.returncode:
        err.print(f"no samples: {done.stderr.strip()[-300:]}", markup=False)


def dashboard(
    study: StudyArgument,
    runs: RunsOption = Path("runs"),
    port: Annotated[int, typer.Option(help="On loopback; 0 takes a free one.")] = 8080,
    storage: StorageOption = None,
) -> None:
    """Show a study in Optuna Dashboard, on loopback, until Ctrl-C; the URL holds its token."""
    from sweep.open_study import stored_storage

    with exit_on_bad_input():
        opened = stored_storage(find_study(study, runs), storage)
        from sweep.dashboard import Dashboard

        server = Dashboard(opened, port)
        out.print(f"{server.url} (read-only; Ctrl-C ends it)", soft_wrap=True)
        with contextlib.suppress(KeyboardInterrupt):
            server.serve()
