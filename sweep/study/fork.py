"""A new study from an old one: the trials that fit the changed sweep file are copied into it."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.storages import BaseStorage
from optuna.trial import FixedTrial, TrialState

from sweep.sampling.constraints import FEASIBLE, MEMORY
from sweep.spec.space import Space
from sweep.spec.spec import SweepSpec
from trial.config import dotted
from trial.config.errors import ConfigError
from trial.config.trial_config import TrialConfig
from trial.store import metrics
from trial.store.folders import StudyFolder, TrialFolder
from trial.store.records import Result


@dataclass(frozen=True, slots=True)
class Lineage:
    """A trial of the old study and the number of its copy."""

    old: int
    new: int | None
    reason: str = ""
    """Why it has no copy."""

    def __str__(self) -> str:
        if self.new is None:
            return f"trial {self.old} is dropped: {self.reason}"
        return f"trial {self.old} becomes {self.new}"


def fork(
    old: StudyFolder, new: StudyFolder, spec: SweepSpec, storage: BaseStorage
) -> list[Lineage]:
    """Copy every finished trial whose exact configuration the new space can propose.

    Raises:
        ValueError: the old study cannot be read.
    """
    try:
        study = optuna.create_study(
            storage=storage,
            study_name=new.name,
            directions=[objective.direction for objective in spec.objectives],
        )
    except optuna.exceptions.DuplicatedStudyError:
        raise ValueError(f"the storage has a study {new.name!r} already: choose a name") from None
    before, after = SweepSpec.from_content(old.read_record().spec), Space.of(spec)
    return [
        _copy_trial(number, folder, new, study, before, after, spec)
        for number, folder in old.all_trials()
    ]


def _copy_trial(
    number: int,
    folder: TrialFolder,
    new: StudyFolder,
    study: optuna.Study,
    before: SweepSpec,
    after: Space,
    spec: SweepSpec,
) -> Lineage:
    try:
        result, config = folder.read_result(), folder.read_config()
    except (OSError, ValueError) as error:
        return Lineage(number, None, str(error))
    if result is None or result.state not in ("complete", "pruned"):
        return Lineage(number, None, result.state if result else "not finished")
    if wrong := folder.damage(deep=True):
        return Lineage(number, None, wrong[0])
    try:
        params = after.encode_point(point_of(config, before, after))
        fresh = after.configure(params, len(study.get_trials(deepcopy=False)))
    except ConfigError as error:
        return Lineage(number, None, str(error.problems[0]))
    if fresh.fingerprint() != config.fingerprint():
        return Lineage(number, None, _difference(config, fresh))
    study.add_trial(_frozen(after, params, result, folder, spec))
    target = new.trial(fresh.origin.number if fresh.origin else 0)
    _copy_folder(folder, target, fresh, f"carried over from trial {number} of {before.name}")
    return Lineage(number, fresh.origin.number if fresh.origin else None)


def point_of(config: TrialConfig, before: SweepSpec, after: Space) -> dict[str, Any]:
    """The old trial as a point of the new space: by path, and by name for variables."""
    content = config.model_dump(mode="json")
    drawn = Space.of(before).named_values(config.origin.params if config.origin else {})
    point: dict[str, Any] = {}
    for name in after.searched_names():
        if name in drawn:
            point[name] = drawn[name]
        elif (value := dotted.get_value(content, name)) is not None:
            point[name] = value
    return point


def _difference(old: TrialConfig, new: TrialConfig) -> str:
    if (found := old.difference(new)) is None:
        return "its configuration differs"
    key, was, now = found
    return f"{key} was {was!r}, is {now!r}"


def _frozen(
    space: Space, params: dict[str, Any], result: Result, folder: TrialFolder, spec: SweepSpec
) -> optuna.trial.FrozenTrial:
    draw = FixedTrial(params)
    space.suggest(draw)
    single = len(spec.objectives) == 1
    metric = spec.objectives[0].metric
    curve = {
        row.step: value
        for row in folder.read_evaluations()
        if row.step > 0 and (value := metrics.of_evaluation(row, metric)) is not None
    }
    measured = (metrics.of_result(result, goal.metric) for goal in spec.objectives)
    values = [value for value in measured if value is not None]
    complete = result.state == "complete" and len(values) == len(spec.objectives)
    pruned = TrialState.PRUNED if single else TrialState.FAIL
    return optuna.trial.create_trial(
        state=TrialState.COMPLETE if complete else pruned,
        values=values if complete else None,
        params=params,
        distributions=draw.distributions,
        intermediate_values=curve if single else {},
        constraints={MEMORY: FEASIBLE} if complete else None,
    )


def _copy_folder(
    source: TrialFolder, target: TrialFolder, config: TrialConfig, change: str
) -> None:
    """Copy a trial's folder under its new number; the result comes last: it marks the end."""
    skip = shutil.ignore_patterns("result.json", "config.json", "checkpoints", ".*")
    shutil.copytree(source.path, target.path, ignore=skip)
    if config.origin:
        origin = config.origin.model_copy(update={"changes": [change]})
        config = config.model_copy(update={"origin": origin})
    TrialFolder.create(target.path, config)
    result = source.read_result()
    if result:
        target.write_result(result)
