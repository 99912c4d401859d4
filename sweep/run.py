"""One run of a sweep: opens, holds and closes everything it needs."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

import results
from sweep import provenance
from sweep.console import View, watch
from sweep.driver.disk_guard import DiskGuard
from sweep.driver.driver import Driver
from sweep.driver.interfaces import SweepOutcome
from sweep.driver.progress import SweepProgress
from sweep.planning import cost
from sweep.ray_backend.executor import RayExecutor
from sweep.spec.spec import SweepSpec
from sweep.storage.url import again, connect, is_storage_error, masked, reason, settled
from sweep.study import archive, study_lock
from trial.config import dotted
from trial.config.errors import ConfigError, Problem
from trial.store.disk_full import is_full
from trial.store.files import write_atomically
from trial.store.folders import StudyFolder
from trial.store.records import StudyRecord
from trial.training.checkpoints import Checkpoints

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

    from sweep.study.decider import OptunaDecider

MAY_CHANGE = ("question", "stop", "resources", "failures", "confirm")
"""Keys of a sweep file that may change when a study goes on: they do not touch its trials."""

MUST_STAY = ("resources.devices_per_trial",)
"""It changes the effective batch, and a checkpoint goes on only with as many ranks."""


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What the command line adds to a sweep file."""

    runs: Path = Path("runs")
    study: str | None = None
    fresh: bool = False
    fork: str | None = None
    """Name of a new study that carries over what fits of the existing one."""
    prolong: int | None = None
    """Number of a finished trial to train for longer, as `overrides` say."""
    overrides: Sequence[str] = ()
    storage: str | None = None
    ray_address: str | None = None
    command: Sequence[str] = ()


def study_folder(spec_name: str, options: RunOptions) -> StudyFolder:
    """Where the study lives: `runs/<name>`, never outside `runs`."""
    return _folder(options.fork or options.study or spec_name, options)


def _folder(name: str, options: RunOptions) -> StudyFolder:
    if not name or name.startswith(".") or Path(name).name != name or not name.isprintable():
        raise ConfigError([Problem("--study", "a plain folder name", repr(name))])
    return StudyFolder(options.runs / name)


def run(spec: SweepSpec, source: Path, options: RunOptions, console: Console) -> SweepOutcome:
    """Start the study or go on with it.

    Raises:
        ConfigError: the sweep file differs from the one the study was started with.
        StudyBusyError: another driver runs it.
    """
    folder = study_folder(spec.name, options)
    with study_lock.hold(folder):
        check_inside(folder)
        _set_aside(folder, source, options, console)
        if options.fork:
            _fork(spec, source, folder, options, console)
        _warm(folder, spec, options, console)
        _open_record(folder, spec, source, options)
        with _driver_log(folder):
            return _drive(spec, folder, options, console)


def _fork(
    spec: SweepSpec, source: Path, new: StudyFolder, options: RunOptions, console: Console
) -> None:
    """Start `new` with the trials of the study that the sweep file names, as far as they fit.

    Its record is written after this: until then it is no study.
    """
    from sweep.storage.open import open_storage
    from sweep.study.fork import fork

    old = _folder(options.study or spec.name, options)
    if new.exists() or not old.exists():
        said = f"{new.path} exists already" if new.exists() else f"{old.path} is no study"
        raise ConfigError([Problem("--fork", "a new name, for a study that exists", said)])
    _check_storage(new, options)
    if new.path.exists():
        # Without a record: a fork that was cut short. It is done again, from the beginning.
        new.path.rename(new.path.with_name(f"{new.name}.{time.strftime('%Y%m%d-%H%M%S')}"))
    url = settled(options.storage) if options.storage else None
    for line in fork(old, new, spec, open_storage(new, url)):
        console.print(str(line), markup=False, soft_wrap=True)


def _warm(folder: StudyFolder, spec: SweepSpec, options: RunOptions, console: Console) -> None:
    """Copy what earlier studies have learned into a study that is about to begin."""
    if not spec.warm_start or folder.exists():
        return
    from sweep.study.warm_start import gather, write

    taught = gather(spec, folder, [_folder(name, options) for name in spec.warm_start])
    write(folder, taught)
    for one in taught:
        console.print(str(one), markup=False, soft_wrap=True)


def stored_spec(folder: StudyFolder, trials: int | None, concurrency: int | None) -> SweepSpec:
    """The sweep file a study was last run with, with what may change laid over it."""
    spec = SweepSpec.from_content(folder.read_record().spec)
    stop = spec.stop.model_copy(update={"trials": trials} if trials else {})
    resources = spec.resources.model_copy(
        update={"concurrency": concurrency} if concurrency else {}
    )
    return spec.model_copy(update={"stop": stop, "resources": resources})


def stored_storage(
    folder: StudyFolder, given: str | None = None, *, repair: bool = False
) -> BaseStorage:
    """The storage a study was started with; `given` is its URL once more, with the password.

    Raises:
        ConfigError: it cannot be opened, its password is missing, or another one is given.
    """
    from sweep.storage.open import open_storage

    kept = folder.read_record().provenance.get("storage")
    return open_storage(folder, again(kept, given), repair=repair)


def serve_dashboard(storage: BaseStorage, port: int, console: Console) -> None:
    """Serve Optuna Dashboard on loopback until Ctrl-C.

    Raises:
        OSError: the port is taken.
    """
    import optuna_dashboard

    console.print(f"http://127.0.0.1:{port}/dashboard (Ctrl-C ends it)")
    with contextlib.suppress(KeyboardInterrupt):
        optuna_dashboard.run_server(storage, host="127.0.0.1", port=port)


def check_inside(folder: StudyFolder) -> None:
    """See that nothing leads out of the study, and that its checkpoints are ours to load.

    Raises:
        ValueError: a link does, or a checkpoint is another user's.
    """
    check_links(folder)
    for _, trial in folder.all_trials():
        Checkpoints(trial).refuse_foreign()


def check_links(folder: StudyFolder) -> None:
    """No link may lead writes out of the study; `runs` itself may be one.

    Raises:
        ValueError: a link does.
    """
    home = folder.path.parent.resolve() / folder.name
    for path in (folder.path, *_links(folder.path)):
        if (path.exists() or path.is_symlink()) and not path.resolve().is_relative_to(home):
            raise ValueError(f"{path}: leads out of {home}, to {path.resolve()}")


def _links(folder: Path) -> Iterator[Path]:
    """Every link below a folder."""
    if not folder.is_dir():
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_symlink():
                yield Path(entry.path)
            elif entry.is_dir(follow_symlinks=False):
                yield from _links(Path(entry.path))


def _set_aside(folder: StudyFolder, source: Path, options: RunOptions, console: Console) -> None:
    """Move an existing study out of the way; finish what a kill cut short before."""

    def storage() -> BaseStorage:
        return stored_storage(folder, options.storage)

    moved = [archive.mend(folder, storage)]
    if options.fresh:
        moved.append(archive.archive(folder, storage))
    for old in filter(None, moved):
        console.print(f"the old study is kept in {old.path}", markup=False, soft_wrap=True)
    if moved[0] and source == folder.sweep_file:
        rule = "its --fresh was cut short and is finished now: `gaudi-sweep run` starts it anew"
        raise ConfigError([Problem(str(folder.path), rule)])


def _open_record(
    folder: StudyFolder, spec: SweepSpec, source: Path, options: RunOptions
) -> StudyRecord:
    content = spec.content()
    _check_storage(folder, options)
    made = provenance.collect([masked(word) for word in options.command])
    made["storage"] = masked(settled(options.storage)) if options.storage else None
    if folder.exists():
        record = folder.read_record()
        # A study of an older version says nothing of keys that came later.
        if problems := differences(SweepSpec.from_content(record.spec).content(), content):
            hint = (
                "--fork NEW starts a study with the trials that still fit; "
                f"--fresh starts anew and keeps {folder.path} aside"
            )
            raise ConfigError([*problems, Problem("", f"the study has other settings: {hint}")])
        record = record.model_copy(update={"spec": content})
    else:
        record = StudyRecord(name=folder.name, spec=content, source=str(source), provenance=made)
    folder.write_record(record)
    if source != folder.sweep_file:
        write_atomically(folder.sweep_file, source.read_text(encoding="utf-8"))
    return record


def _check_storage(folder: StudyFolder, options: RunOptions) -> None:
    """A storage that cannot be opened is refused before anything is written or started."""
    kept = folder.read_record().provenance.get("storage") if folder.exists() else None
    given = settled(options.storage) if options.storage else None
    if url := again(kept, given) if folder.exists() else given:
        connect(url)


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[Problem]:
    """What changed between two versions of a sweep file, but for what may."""
    before, after = dotted.flatten(old), dotted.flatten(new)
    keys = [
        key
        for key in {**before, **after}
        if key in MUST_STAY or key.split(".")[0] not in MAY_CHANGE
    ]
    return [
        Problem(key, f"was {before.get(key, 'absent')!r}", repr(after.get(key, "absent")))
        for key in keys
        if before.get(key) != after.get(key)
    ]


def _drive(
    spec: SweepSpec, folder: StudyFolder, options: RunOptions, console: Console
) -> SweepOutcome:
    goal = spec.objectives[0]
    progress = SweepProgress(
        goal.metric,
        goal.direction == "maximize",
        planned=spec.stop.trials,
        at_most=cost.known_trials(spec),
        same_failure_limit=spec.failures.alike,
    )
    executor = make_executor(spec, options, folder)
    with _clear_ends(folder), _closing(executor):
        with console.status("starting Ray ..."):
            decider = _start(executor, spec, folder, options)
        console.print(f"study {folder.path}: {executor.describe()}")
        with watch(console, goal.metric) as view:
            driver = Driver(
                folder,
                decider,
                executor,
                spec.stop,
                view,
                progress,
                failures=spec.failures,
                disk=DiskGuard(folder, spec.resources, goal),
                ask_ahead=spec.resources.ask_ahead,
                packed=spec.resources.pack != 1,
            )
            with _interruptible(driver, view):
                ending = driver.run()
        return ending


def _start(
    executor: RayExecutor, spec: SweepSpec, folder: StudyFolder, options: RunOptions
) -> OptunaDecider:
    """Start the workers; the study loads while they import torch."""
    executor.start()
    # Not before: Ray's start takes the interpreter, and this would hold it up.
    threading.Thread(target=results.preload, daemon=True).start()
    # Ray has put its own handler there, which ends the process without a word.
    signal.signal(signal.SIGTERM, _stop_at_once)
    from sweep.study.decider import OptunaDecider
    from sweep.study.extend_trial import mend, prolong
    from sweep.study.warm_start import read as read_earlier

    storage = stored_storage(folder, options.storage, repair=True)
    record = folder.read_record()
    decider = OptunaDecider(spec, record.name, storage, read_earlier(folder))
    if not decider.belongs_to(record.created):
        raise ValueError(
            f"the storage has a study {record.name!r} that belongs to another folder than "
            f"{folder.path}: choose another name with --study"
        )
    check_same_study(folder, decider.numbered(), decider.finished())
    mend(folder, decider)
    if options.prolong is not None:
        prolong(folder, decider, options.prolong, options.overrides)
    return decider


def _stop_at_once(number: int, frame: object) -> None:
    raise KeyboardInterrupt


@contextmanager
def _closing(executor: RayExecutor) -> Iterator[None]:
    """Free every device whatever happens. While nothing runs yet, a signal ends the sweep."""
    before = signal.signal(signal.SIGTERM, _stop_at_once)
    ended = False
    try:
        yield
        ended = True
    except SystemExit:
        # Ray's own handler of SIGTERM, while Ray starts.
        raise KeyboardInterrupt from None
    finally:
        # After a sweep that ended as it should, the report is written while Ray goes down.
        executor.close(wait=not ended)
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _clear_ends(folder: StudyFolder) -> Iterator[None]:
    """A full disk or a storage that is gone ends the sweep with a clear word; nothing is lost."""
    try:
        yield
    except Exception as error:
        if is_full(error, folder.path):
            text = f"the disk of {folder.path} is full"
        elif is_storage_error(error):
            text = f"the storage of {folder.path} does not answer: {reason(error)}"
        else:
            raise
        raise ValueError(f"{text}; nothing is lost, go on with: {command_again()}") from error


def check_same_study(folder: StudyFolder, numbered: set[int], finished: list[int]) -> None:
    """A trial is numbered before its folder exists, and told after its result is in the folder.

    Raises:
        ValueError: the storage has lost trials, or holds another study of this name.
    """
    folders = {number for number, _ in folder.all_trials()}
    if ahead := sorted(folders - numbered):
        raise ValueError(
            f"{folder.path} has a folder of trial {ahead[0]}, which its storage does not know: the "
            "storage was lost or replaced. `gaudi-sweep verify` says more; --fresh starts anew and "
            "keeps the folders aside"
        )
    if finished and not folders:
        raise ValueError(
            f"the storage has a study {folder.name!r} with {len(finished)} finished trials, and "
            f"{folder.path} has none of them: choose another name with --study"
        )


def make_executor(spec: SweepSpec, options: RunOptions, folder: StudyFolder) -> RayExecutor:
    """Ray with what the sweep file says about devices."""
    from trial.devices.environment import environment

    device, training = spec.base.get("device", "auto"), spec.base.get("training", {})
    lazy, cluster = bool(training.get("use_lazy_mode")), options.ray_address is not None
    return RayExecutor(
        device=device,
        devices_per_trial=spec.resources.devices_per_trial,
        cpus_per_trial=spec.resources.cpus_per_trial,
        concurrency=spec.resources.concurrency,
        expected_jobs=spec.stop.trials,
        pack=0 if spec.resources.pack == "auto" else spec.resources.pack,
        address=options.ray_address,
        environment=environment(
            device,
            lazy,
            folder.path,
            zero_stage=spec.base.get("zero_stage"),
            several_nodes=cluster,
        ),
        fork_server=True,
        hang_seconds=hung * 60 if (hung := spec.failures.hung_minutes) else None,
    )


@contextmanager
def _interruptible(driver: Driver, view: View) -> Iterator[None]:
    """First Ctrl-C or SIGTERM: checkpoint and leave. Second: stop now."""

    def first(number: int, frame: object) -> None:
        for name in (signal.SIGINT, signal.SIGTERM):
            signal.signal(name, second)
        view.note("stopping: running trials write a checkpoint; once more stops at once")
        driver.interrupt()

    def second(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = {name: signal.signal(name, first) for name in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)


@contextmanager
def _driver_log(folder: StudyFolder) -> Iterator[None]:
    """Warnings and worse of the deciding side go to the study's own log."""
    handler = logging.FileHandler(folder.log, delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(name)s %(levelname)s %(message)s"))
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)
        handler.close()


def command_again(argv: Sequence[str] = ()) -> str:
    """The command that goes on with an interrupted study."""
    import shlex

    words = [masked(word) for word in argv or sys.argv]
    # What was forked or started anew is there now: name it.
    words = ["--study" if word == "--fork" else word for word in words]
    return shlex.join(["gaudi-sweep", *[word for word in words[1:] if word != "--fresh"]])
