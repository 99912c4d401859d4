"""Open a study: start it, resume it, fork it, or archive an old one for `--fresh`."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from sweep import provenance
from sweep.file_checks import check_code, check_files
from sweep.spec.spec import SweepSpec
from sweep.storage.url import connect, masked, resumed_url, with_absolute_path
from sweep.study import archive, recover
from trial.config import dotted, earlier
from trial.config.errors import ConfigError, Problem
from trial.store.files import write_atomically
from trial.store.folders import StudyFolder
from trial.store.records import StudyRecord

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

    from sweep.study.decider import OptunaDecider

MAY_CHANGE = ("question", "stop", "resources", "failures", "confirm")
"""Keys of a sweep file that may change when a study goes on: they do not touch its trials."""

REPAIRED = ("base", "space", "variables", "objectives", "resources")
"""Keys that must stay as they are after a repair has made `study.json` anew."""

MUST_STAY = ("resources.devices_per_trial",)
"""Exceptions to `MAY_CHANGE`: the number of devices sets the effective batch size, and a checkpoint
resumes only with as many ranks as wrote it."""


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What the command line adds to a sweep file."""

    runs: Path = Path("runs")
    study: str | None = None
    fresh: bool = False
    """Archive an existing study of this name first."""
    fork: str | None = None
    """Name of a new study that carries over what fits of the existing one."""
    extend_trial: int | None = None
    """Number of a finished trial to train for longer, as `overrides` say."""
    overrides: Sequence[str] = ()
    storage: str | None = None
    """Optuna storage URL; None: the journal file in the study's folder."""
    ray_address: str | None = None
    command: Sequence[str] = ()
    """Words of the command line, for the study's provenance."""
    quick: bool = False
    """Start a new study without a rehearsal."""
    trust_code: bool = False
    """Run code that the study brings along (`trial.trust`)."""


def study_folder(spec_name: str, options: RunOptions) -> StudyFolder:
    """The study's folder, `runs/<name>`.

    Raises:
        ConfigError: the name would lead out of `runs`.
    """
    return _folder(options.fork or options.study or spec_name, options)


def _folder(name: str, options: RunOptions) -> StudyFolder:
    if not name or name.startswith(".") or Path(name).name != name or not name.isprintable():
        raise ConfigError([Problem("--study", "a plain folder name", repr(name))])
    return StudyFolder(options.runs / name)


def open_folder(
    folder: StudyFolder, spec: SweepSpec, source: Path, options: RunOptions, console: Console
) -> None:
    """Prepare the folder of a new study, or check that of one that goes on.

    Raises:
        ConfigError: the sweep file differs from the one the study was started with.
        ValueError: the folder holds links or checkpoints that must not be followed or loaded, or
            code that must not be run.
    """
    check_files(folder)
    if not options.trust_code and not options.fresh:
        check_code(folder, spec, source, options.extend_trial)
        if options.fork:
            check_code(_folder(options.study or spec.name, options), spec, source)
    archive_existing(folder, source, options, console)
    if not options.fork or folder.sweep_file.exists():
        # A fork that was cut short has no sweep file yet: it begins again.
        folder.refuse_lost_record()
    if options.fork:
        fork_study(spec, source, folder, options, console)
    _copy_prior_studies(folder, spec, options, console)
    write_record(folder, spec, source, options)


def with_stored_data(spec: SweepSpec, options: RunOptions) -> SweepSpec:
    """The spec with the earlier defaults of `data` keys, where an earlier version made the study.

    A fork takes them from the study it copies, since only equal configurations are carried over.
    """
    folder = _folder(options.study or spec.name, options)
    if options.fresh or not folder.exists():
        return spec
    stored = folder.read_record().spec.get("base", {}).get("data", {})
    given = spec.base.get("data", {})
    if stored.get("tokenize") != earlier.DATA["tokenize"] or set(earlier.DATA) & set(given):
        return spec
    return spec.model_copy(update={"base": earlier.with_data(spec.base)})


def archive_existing(
    folder: StudyFolder, source: Path, options: RunOptions, console: Console
) -> None:
    """Rename an existing study for `--fresh`; first finish a renaming that a kill cut short.

    Raises:
        ConfigError: a renaming was finished, and the sweep file to run has moved with it.
    """

    def storage() -> BaseStorage:
        return stored_storage(folder, options.storage)

    moved = [recover.repair_folder(folder, storage)]
    if options.fresh:
        moved.append(archive.archive_study(folder, storage))
    for old in filter(None, moved):
        console.print(f"the old study is kept in {old.path}", markup=False, soft_wrap=True)
    if moved[0] and source == folder.sweep_file:
        rule = "its --fresh was cut short and is finished now: `gaudi-sweep run` starts it anew"
        raise ConfigError([Problem(str(folder.path), rule)])


def fork_study(
    spec: SweepSpec, source: Path, new: StudyFolder, options: RunOptions, console: Console
) -> None:
    """Start `new` with the trials of the study that the sweep file names, as far as they fit.

    The caller writes its record afterwards: a folder without a record is not a study.

    Raises:
        ConfigError: the new study exists, the old one does not, or a storage cannot be opened.
    """
    from sweep.storage.open import open_storage
    from sweep.study.fork import fork

    old = _folder(options.study or spec.name, options)
    if new.exists() or not old.exists():
        got = f"{new.path} exists already" if new.exists() else f"{old.path} is no study"
        raise ConfigError([Problem("--fork", "a new name, for a study that exists", got)])
    _check_storage(new, options)
    recover.archive_cut_fork(new)
    url = with_absolute_path(options.storage) if options.storage else None
    for line in fork(old, new, spec, open_storage(new, url)):
        console.print(str(line), markup=False, soft_wrap=True)


def _copy_prior_studies(
    folder: StudyFolder, spec: SweepSpec, options: RunOptions, console: Console
) -> None:
    """Copy the results of the studies that `warm_start` names into a new study."""
    if not spec.warm_start or folder.exists():
        return
    from sweep.study.warm_start import collect_prior_studies, write_prior_trials

    folders = [_folder(name, options) for name in spec.warm_start]
    studies = collect_prior_studies(spec, folder, folders)
    write_prior_trials(folder, studies)
    for study in studies:
        console.print(str(study), markup=False, soft_wrap=True)


def write_record(
    folder: StudyFolder, spec: SweepSpec, source: Path, options: RunOptions
) -> StudyRecord:
    """Write `study.json` and the copy of the sweep file.

    Raises:
        ConfigError: settings that must stay differ from those of the study, or its storage
            cannot be opened.
    """
    content = spec.content()
    _check_storage(folder, options)
    made = provenance.collect([masked(word) for word in options.command])
    made["storage"] = masked(with_absolute_path(options.storage)) if options.storage else None
    if folder.exists():
        record = folder.read_record()
        # A record of an older version lacks later keys: validation fills in their defaults.
        problems = differences(SweepSpec.from_content(record.spec).content(), content)
        if record.provenance.get("rebuilt"):
            # Overrides of other keys than these are in no trial, so that a repair has lost them.
            problems = [p for p in problems if p.key.split(".")[0] in REPAIRED]
        if problems:
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


def withdraw(folder: StudyFolder) -> None:
    """Remove the record of a study that is refused before its first trial: it is no study then.

    It stays where the sweep file in the folder is no copy: the user has it nowhere else.
    """
    if not _is_copy(folder.sweep_file, Path(folder.read_record().source)):
        return
    for file in (folder.record, folder.sweep_file):
        file.unlink(missing_ok=True)
    with suppress(OSError):
        # It stays where it is not empty: copies of earlier studies, a log.
        folder.path.rmdir()


def _is_copy(file: Path, original: Path) -> bool:
    """Whether another file has the same content."""
    try:
        return not file.samefile(original) and file.read_bytes() == original.read_bytes()
    except OSError:
        return False


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[Problem]:
    """Settings that must stay and differ between two versions of a sweep file."""
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


def stored_spec(folder: StudyFolder, trials: int | None, concurrency: int | None) -> SweepSpec:
    """The sweep file a study was last run with; `trials` and `concurrency` replace its own."""
    spec = SweepSpec.from_content(folder.read_record().spec)
    stop = spec.stop.model_copy(update={"trials": trials} if trials else {})
    resources = spec.resources.model_copy(
        update={"concurrency": concurrency} if concurrency else {}
    )
    return spec.model_copy(update={"stop": stop, "resources": resources})


def stored_storage(
    folder: StudyFolder, given: str | None = None, *, repair: bool = False
) -> BaseStorage:
    """The storage a study was started with; `given` repeats its URL with the unstored password.

    Raises:
        ConfigError: it cannot be opened, its password is missing, or another one is given.
    """
    from sweep.storage.open import open_storage

    kept = folder.read_record().provenance.get("storage")
    return open_storage(folder, resumed_url(kept, given), repair=repair)


def has_vanished(folder: StudyFolder, given: str | None = None) -> bool:
    """Whether the study is no longer in its storage, which answers: something has deleted it."""
    from sweep.storage.open import study_names

    record = folder.read_record()
    if record.provenance.get("storage") is None and not folder.journal.exists():
        return True
    try:
        return record.name not in study_names(stored_storage(folder, given))
    except Exception:
        # A storage that does not answer, or cannot be read, is another fault.
        return False


def _check_storage(folder: StudyFolder, options: RunOptions) -> None:
    """Refuse a storage that cannot be opened, before anything is written or started."""
    kept = folder.read_record().provenance.get("storage") if folder.exists() else None
    given = with_absolute_path(options.storage) if options.storage else None
    if url := resumed_url(kept, given) if folder.exists() else given:
        connect(url)


def open_decider(spec: SweepSpec, folder: StudyFolder, options: RunOptions) -> OptunaDecider:
    """Load the Optuna study, and repair what a kill has left between it and the folders.

    Raises:
        ValueError: the storage has lost trials, or holds another study of this name.
    """
    from sweep.study.decider import OptunaDecider
    from sweep.study.extend_trial import extend_trial
    from sweep.study.warm_start import read_prior_trials

    storage = stored_storage(folder, options.storage, repair=True)
    record = folder.read_record()
    # Before anything is written: what is lost is not known afterwards.
    recover.refuse_lost_trials(folder, storage, record.name)
    decider = OptunaDecider(spec, record.name, storage, read_prior_trials(folder))
    if not decider.belongs_to(record.created):
        raise ValueError(
            f"the storage has a study {record.name!r} that belongs to another folder than "
            f"{folder.path}: choose another name with --study"
        )
    recover.check_same_study(folder, decider.numbers(), decider.finished())
    recover.repair_study(folder, decider)
    if options.extend_trial is not None:
        extend_trial(folder, decider, options.extend_trial, options.overrides)
    return decider
