"""Repairs a study from its trial folders; each damaged file is kept aside under a new name.

| damaged or lost | made anew from |
|---|---|
| `study.json` | `sweep.yaml`, and the configurations of the trials (`lost_record`) |
| `result.json` of a trial | the trial: it is in flight again, and the next run trains it anew |
| `config.json` of a trial | what the storage says of its parameters; else the folder is set aside |
| the journal, or the study in a storage of many | the trial folders, told in the order they ended |

A study in a storage is made anew only where that leaves fewer differences than there are.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import optuna
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from sweep.repair.lost_record import rebuilt_record
from sweep.spec.spec import SamplerSpec, SweepSpec
from sweep.storage import compat
from sweep.storage.open import in_memory, open_storage, rename_study
from sweep.storage.url import resumed_url
from sweep.study.archive import free_name
from sweep.study.decider import OWNER, OptunaDecider
from sweep.study.proposed import proposed_config
from sweep.study.verify import verify
from trial.config.errors import ConfigError
from trial.config.trial_config import TrialConfig
from trial.store import manifest
from trial.store.files import DamagedFileError, set_aside
from trial.store.folders import StudyFolder, TrialFolder
from trial.store.records import Result, StudyRecord


def repair(folder: StudyFolder, given: str | None = None) -> Iterator[str]:
    """Repair what can be repaired; yields a line for each thing done. Nobody else may hold it.

    Args:
        folder: The study.
        given: The URL of its storage, where that has a password, or `study.json` is lost.

    Raises:
        ConfigError: `study.json` is lost and the sweep file too, or the storage cannot be opened.
        ValueError: another version wrote a file.
    """
    yield from _repair_record(folder, given)
    record = folder.read_record()
    url = resumed_url(record.provenance.get("storage"), given)
    storage, damage = _opened(folder, url)
    if damage:
        yield damage
    known = _trials(storage, record.name)
    spec = SweepSpec.from_content(record.spec)
    yield from _repair_trials(folder, spec, known)
    before = _count_wrong(folder, storage)
    if before == 0:
        return
    made = rebuilt_study(folder, record, spec, known)
    after = _count_wrong(folder, made)
    if before is not None and after is not None and after >= before:
        return
    yield _replace(folder, record, url, storage, made)


def _repair_record(folder: StudyFolder, given: str | None) -> Iterator[str]:
    try:
        folder.read_record()
        return
    except FileNotFoundError:
        aside = "there was none"
    except DamagedFileError:
        aside = "the damaged one"
    record = rebuilt_record(folder, given)
    storage, _ = _opened(folder, given)
    if (owner := _owner(storage, record.name)) is not None:
        # By this time the storage knows whose study it is.
        record = record.model_copy(update={"created": owner})
    if folder.record.exists():
        aside = f"{aside} is kept as {set_aside(folder.record).name}"
    folder.write_record(record)
    yield f"{folder.record} is made anew from {folder.sweep_file.name} and the trials; {aside}"


def _opened(folder: StudyFolder, url: str | None) -> tuple[BaseStorage | None, str]:
    """The storage, None where it cannot be read, and a line that says why."""
    try:
        return open_storage(folder, url, repair=False), ""
    except ConfigError:
        raise
    except ValueError as error:
        return None, str(error).partition("; repair it")[0]


def _owner(storage: BaseStorage | None, name: str) -> float | None:
    """When the folder of a study was created, as its storage says."""
    if storage is None:
        return None
    try:
        owner: float | None = optuna.load_study(study_name=name, storage=storage).user_attrs.get(
            OWNER
        )
    except KeyError:
        return None
    return owner


def _trials(storage: BaseStorage | None, name: str) -> dict[int, FrozenTrial]:
    if storage is None:
        return {}
    try:
        study = optuna.load_study(study_name=name, storage=storage)
    except KeyError:
        return {}
    return {trial.number: trial for trial in study.get_trials(deepcopy=False)}


def _count_wrong(folder: StudyFolder, storage: BaseStorage | None) -> int | None:
    """Number of differences that no run repairs; None where there is nothing to compare with."""
    if storage is None:
        return None
    try:
        return sum(finding.wrong for finding in verify(folder, storage))
    except DamagedFileError:
        raise
    except ValueError:
        return None


# Trials


def _repair_trials(
    folder: StudyFolder, spec: SweepSpec, known: Mapping[int, FrozenTrial]
) -> Iterator[str]:
    for number, trial in folder.all_trials():
        try:
            sealed = trial.read_result() is None or manifest.is_sealed(
                json.loads(trial.result.read_text(encoding="utf-8"))
            )
            wrong = "" if sealed else f"{trial.result}: has been changed since it was written"
        except DamagedFileError as error:
            wrong = str(error)
        if wrong:
            aside = set_aside(trial.result)
            yield f"{wrong}; kept as {aside.name}; the next run trains trial {number} anew"
        yield from _repair_config(number, trial, spec, known.get(number))


def _repair_config(
    number: int, trial: TrialFolder, spec: SweepSpec, known: FrozenTrial | None
) -> Iterator[str]:
    try:
        trial.read_config()
        return
    except FileNotFoundError:
        result = trial.read_result()
        if result is not None and result.state in ("failed", "duplicate"):
            return  # A proposal without a valid configuration has none.
        wrong = f"{trial.config}: is missing"
    except DamagedFileError as error:
        wrong = str(error)
    config = _config_of(number, spec, known)
    if config is None:
        aside = set_aside(trial.path)
        yield f"{wrong}; the storage does not know it; the folder is kept as {aside.name}"
        return
    kept = f"; kept as {set_aside(trial.config).name}" if trial.config.exists() else ""
    TrialFolder.create(trial.path, config)
    yield f"{wrong}; made anew as the storage says{kept}"


def _config_of(number: int, spec: SweepSpec, known: FrozenTrial | None) -> TrialConfig | None:
    from sweep.spec.space import Space

    if known is None:
        return None
    try:
        return proposed_config(Space.of(spec), number, known.params, known.user_attrs)
    except (ConfigError, ValueError, KeyError):
        return None


# The study in its storage


def rebuilt_study(
    folder: StudyFolder, record: StudyRecord, spec: SweepSpec, known: Mapping[int, FrozenTrial]
) -> BaseStorage:
    """A storage in memory with the study as its trial folders say.

    A number without a folder is as the old storage knew it, or waits to be drawn.
    """
    storage, folders = in_memory(), dict(folder.all_trials())
    # What is enqueued would take the numbers of the trials; nothing is drawn here.
    plain = spec.model_copy(update={"enqueue": (), "sampler": SamplerSpec(name="random")})
    decider = OptunaDecider(plain, record.name, storage)
    decider.belongs_to(record.created)
    results: dict[int, Result] = {}
    for number in range(max([*folders, *known], default=-1) + 1):
        if number not in folders:
            old = known.get(number) or optuna.trial.create_trial(state=TrialState.WAITING)
            decider.study.add_trial(old)
            continue
        params, marks = _origin(folders[number], known.get(number))
        compat.create_running_trial(decider.study, params, marks)
        if (result := folders[number].read_result()) is not None:
            results[number] = result
    for proposal in decider.pending():
        for evaluation in folders[proposal.number].read_evaluations():
            decider.report(proposal.number, evaluation)
    for number, result in sorted(results.items(), key=lambda item: item[1].finished):
        decider.tell(number, result)
    return storage


def _origin(trial: TrialFolder, known: FrozenTrial | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Parameters of a trial, and what it is marked with in the study."""
    origin = trial.read_config().origin if trial.config.exists() else None
    if origin is None:
        return (dict(known.params), {}) if known else ({}, {})
    config = trial.read_config()
    marks: dict[str, Any] = {}
    if origin.confirms is not None:
        marks = {"confirms": origin.confirms, "seed": config.training["seed"]}
    if origin.continues is not None:
        marks |= {"continues": origin.continues, "config": config.model_dump_json()}
    return origin.params, marks


def _replace(
    folder: StudyFolder,
    record: StudyRecord,
    url: str | None,
    storage: BaseStorage | None,
    made: BaseStorage,
) -> str:
    """Put the study that was made in the place of the one in the storage."""
    name = record.name
    if url is None:
        new = StudyFolder(folder.path / ".repair")
        new.journal.unlink(missing_ok=True)
        optuna.copy_study(
            from_study_name=name,
            from_storage=made,
            to_storage=open_storage(new),
            to_study_name=name,
        )
        aside = "there was none"
        if folder.journal.exists():
            aside = f"the old one is kept as {set_aside(folder.journal).name}"
        new.journal.rename(folder.journal)
        new.path.rmdir()
        return f"{folder.journal} is made anew from the trial folders; {aside}"
    if storage is None:
        raise ValueError(f"{folder.path}: its storage cannot be read")
    aside = free_name(folder)
    rename_study(storage, name, aside)
    optuna.copy_study(
        from_study_name=name, from_storage=made, to_storage=storage, to_study_name=name
    )
    return f"study {name} is made anew in its storage; the old one is kept as {aside}"
