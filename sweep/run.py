"""Run a sweep: open its study, start the executor, drive it to its end, close everything."""

from __future__ import annotations

import logging
import shlex
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

import results
from sweep.console import open_view
from sweep.driver.disk_guard import DiskGuard
from sweep.driver.driver import Driver
from sweep.driver.interfaces import SweepOutcome
from sweep.driver.progress import SweepProgress
from sweep.open_study import (
    RunOptions,
    has_vanished,
    open_decider,
    open_folder,
    study_folder,
    with_stored_data,
    withdraw,
)
from sweep.planning import cost
from sweep.planning.rehearsal import Rehearsal, RehearsalError, request_for
from sweep.ray_backend.executor import RayExecutor
from sweep.ray_backend.node.settings import RaySettings
from sweep.signals import (
    end_when_stuck,
    graceful_interrupt,
    handled_by,
    raise_keyboard_interrupt,
)
from sweep.spec.spec import SweepSpec
from sweep.storage.url import error_text, is_missing, is_storage_error, masked
from sweep.study import study_lock
from trial.optional_output import report_lost
from trial.store.disk_full import is_full
from trial.store.folders import StudyFolder

if TYPE_CHECKING:
    from sweep.study.decider import OptunaDecider


def run_sweep(spec: SweepSpec, source: Path, options: RunOptions, console: Console) -> SweepOutcome:
    """Start the study or go on with it.

    Raises:
        ConfigError: the sweep file differs from the one the study was started with.
        StudyBusyError: another driver runs it.
        ValueError: the folder must not be used, its disk is full, or the storage does not answer.
    """
    folder = study_folder(spec.name, options)
    with study_lock.hold(folder):
        spec = with_stored_data(spec, options)
        open_folder(folder, spec, source, options, console)
        with _log_to(folder.log):
            return _drive(spec, folder, options, console)


def _drive(
    spec: SweepSpec, folder: StudyFolder, options: RunOptions, console: Console
) -> SweepOutcome:
    goal = spec.objectives[0]
    progress = SweepProgress(
        goal.metric,
        goal.direction == "maximize",
        tuple(other.metric for other in spec.objectives[1:]),
        planned=spec.stop.trials,
        at_most=cost.known_trials(spec),
        base_models=cost.base_models(spec),
        devices_per_trial=spec.resources.devices_per_trial,
        same_failure_limit=spec.failures.alike,
    )
    executor = make_executor(spec, options, folder)
    with explained_errors(folder, options), _closing(executor):
        with console.status("starting Ray ..."):
            decider = _start(executor, spec, folder, options, console)
        console.print(f"study {folder.path}: {executor.describe()}")
        with open_view(console, goal.metric) as view:
            driver = Driver(
                folder,
                decider,
                executor,
                spec.stop,
                view,
                progress,
                failures=spec.failures,
                disk=DiskGuard(folder, spec.resources, spec.objectives),
                ask_ahead=spec.resources.ask_ahead,
                packed=spec.resources.pack != 1,
            )
            # Not earlier: it imports Optuna.
            from sweep.storage.patient import show_waiting

            show_waiting(decider.storage, view.note, lambda: bool(driver.status.interrupt))
            stuck = end_when_stuck(driver.status.is_stopping, _last_words)
            with graceful_interrupt(driver, view), stuck:
                outcome = driver.run()
        return outcome


def make_executor(spec: SweepSpec, options: RunOptions, folder: StudyFolder) -> RayExecutor:
    """The Ray executor, with what the sweep file says about devices."""
    from trial.devices.environment import process_environment

    device, training = spec.base.get("device", "auto"), spec.base.get("training", {})
    lazy, cluster = bool(training.get("use_lazy_mode")), options.ray_address is not None
    settings = RaySettings(
        device=device,
        devices_per_trial=spec.resources.devices_per_trial,
        cpus_per_trial=spec.resources.cpus_per_trial,
        concurrency=spec.resources.concurrency,
        expected_jobs=spec.stop.trials,
        pack=0 if spec.resources.pack == "auto" else spec.resources.pack,
        address=options.ray_address,
        environment=process_environment(
            device,
            lazy,
            folder.path,
            zero_stage=spec.base.get("zero_stage"),
            several_nodes=cluster,
        ),
        fork_server=True,
        hang_seconds=hung * 60 if (hung := spec.failures.hung_minutes) else None,
    )
    return RayExecutor(settings)


def _start(
    executor: RayExecutor,
    spec: SweepSpec,
    folder: StudyFolder,
    options: RunOptions,
    console: Console,
) -> OptunaDecider:
    """Start the workers; a new study is rehearsed, and loaded, while they import torch.

    Raises:
        RehearsalError: a worker could not train.
    """
    executor.start()
    # Not earlier: this thread would compete with Ray's start for the GIL.
    threading.Thread(target=results.preload, daemon=True).start()
    rehearsal = _start_rehearsal(executor, spec, folder, options)
    if rehearsal is not None:
        # Imports Optuna meanwhile.
        import sweep.study.decider  # noqa: F401

        try:
            rehearsal.refuse()
        except RehearsalError:
            withdraw(folder)
            raise
        if rehearsal.failure:
            console.print(rehearsal.failure, style="yellow", markup=False, soft_wrap=True)
    return open_decider(spec, folder, options)


def _start_rehearsal(
    executor: RayExecutor, spec: SweepSpec, folder: StudyFolder, options: RunOptions
) -> Rehearsal | None:
    """Start to rehearse a study without trials; None where that is known to go well."""
    if options.quick or folder.all_trials():
        return None
    rehearsal = Rehearsal(request_for(spec, here=options.ray_address is None))
    if rehearsal.known:
        return None
    rehearsal.start(executor.fork_server)
    return rehearsal


@contextmanager
def _closing(executor: RayExecutor) -> Iterator[None]:
    """Free every device whatever happens. While nothing runs yet, a signal ends the sweep."""
    ended = False
    with handled_by(raise_keyboard_interrupt):
        try:
            yield
            ended = True
        finally:
            # After a sweep that ended as it should, the report is written while Ray goes down.
            executor.close(wait=not ended)


def _last_words() -> str:
    return f"stopped at once; go on with: {resume_command()}"


@contextmanager
def explained_errors(folder: StudyFolder, options: RunOptions) -> Iterator[None]:
    """Say how to go on after a full disk, a storage that does not answer, a study that is gone.

    Raises:
        ValueError: one of them ended the sweep.
    """
    try:
        yield
    except Exception as error:
        again = f"nothing is lost, go on with: {resume_command()}"
        if is_full(error, folder.path):
            text = f"the disk of {folder.path} is full; {again}"
        elif is_missing(error) and has_vanished(folder, options.storage):
            repair = shlex.join(["gaudi-sweep", "verify", str(folder.path), "--repair"])
            text = (
                f"the study {folder.name!r} is gone from its storage: something else has deleted "
                f"it; the trial folders in {folder.trials} are whole: {repair} puts them back into "
                f"it, then go on with: {resume_command()}"
            )
        elif is_storage_error(error):
            text = f"the storage of {folder.path} does not answer: {error_text(error)}; {again}"
        else:
            raise
        raise ValueError(text) from error


@contextmanager
def _log_to(path: Path) -> Iterator[None]:
    """Write the driver's warnings and errors to the study's log."""
    handler = logging.FileHandler(path, delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(name)s %(levelname)s %(message)s"))
    root = logging.getLogger()
    root.addHandler(handler)
    report_lost()
    try:
        yield
    finally:
        root.removeHandler(handler)
        handler.close()


def resume_command(argv: Sequence[str] = ()) -> str:
    """The command line that goes on with an interrupted study; this process's own by default."""
    words = [masked(word) for word in argv or sys.argv]
    # A fork or a fresh start has happened by now: name the study instead.
    words = ["--study" if word == "--fork" else word for word in words]
    return shlex.join(["gaudi-sweep", *[word for word in words[1:] if word != "--fresh"]])
