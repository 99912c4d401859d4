"""Compares the trial folders of a study with its storage, by default the journal."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import optuna
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from sweep.sampling.constraints import is_feasible
from sweep.spec.space import Space
from sweep.spec.spec import SweepSpec
from trial.store import metrics
from trial.store.folders import StudyFolder, TrialFolder
from trial.store.records import Result, State

EXPECTED = {"complete": "COMPLETE", "pruned": "PRUNED", "failed": "FAIL", "duplicate": "FAIL"}
"""Optuna's state of a trial by the state in its folder."""
TOLD_AS_PRUNED = ("diverged", "out_of_memory")
"""Failures that are told as pruned, so that the sampler learns from them."""
TOLD_AS_INFEASIBLE = "out_of_memory"
"""This one is told as complete with a violated constraint, once any trial is complete."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One difference; `wrong` is False where the next run repairs it."""

    number: int
    text: str
    wrong: bool = True

    def __str__(self) -> str:
        return f"trial {self.number}: {self.text}"


def verify(folder: StudyFolder, storage: BaseStorage) -> list[Finding]:
    """Every difference between the trial folders and the storage, by trial number.

    Raises:
        ValueError: the study's record cannot be read, or the storage does not hold the study.
    """
    record = folder.read_record()
    spec = SweepSpec.from_content(record.spec)
    space = Space.of(spec)
    try:
        study = optuna.load_study(study_name=record.name, storage=storage)
    except KeyError:
        raise ValueError(f"{folder.path}: the storage holds no study {record.name!r}") from None
    trials = {trial.number: trial for trial in study.get_trials(deepcopy=False)}
    folders = dict(folder.all_trials())
    found: list[Finding] = []
    for number in sorted({*trials, *folders}):
        if number not in trials:
            found.append(Finding(number, "has a folder, but the journal does not know it"))
        elif number not in folders:
            found += _without_folder(trials[number])
        else:
            found += _compare(trials[number], folders[number], spec, space)
    return found


def _without_folder(trial: FrozenTrial) -> Iterator[Finding]:
    running = not trial.state.is_finished()
    text = "was numbered and has no folder yet" if running else "has no folder"
    yield Finding(trial.number, text, wrong=not running)


def _compare(
    trial: FrozenTrial, folder: TrialFolder, spec: SweepSpec, space: Space
) -> Iterator[Finding]:
    number = trial.number
    try:
        result, config = folder.read_result(), None
        if folder.config.exists():
            config = folder.read_config()
    except (OSError, ValueError) as error:
        yield Finding(number, str(error))
        return
    if config and config.origin:
        drawn, told = space.canonical(trial.params), space.canonical(config.origin.params)
        if drawn != told:
            yield Finding(number, f"drew {drawn}, its folder says {told}")
    if result is None:
        yield from _without_result(trial)
        return
    if not trial.state.is_finished():
        yield Finding(number, "has a result that was not told yet", wrong=False)
        return
    yield from _compare_end(trial, folder, result, spec)


def _without_result(trial: FrozenTrial) -> Iterator[Finding]:
    if trial.state.is_finished():
        yield Finding(trial.number, f"is {trial.state.name} in the journal without a result")
    else:
        yield Finding(trial.number, "is in flight: the next run takes it up", wrong=False)


def _compare_end(
    trial: FrozenTrial, folder: TrialFolder, result: Result, spec: SweepSpec
) -> Iterator[Finding]:
    expected = EXPECTED[result.state]
    if result.cause and result.cause.kind in TOLD_AS_PRUNED and len(spec.objectives) == 1:
        expected = "PRUNED"
    values = [metrics.of_result(result, goal.metric) for goal in spec.objectives]
    if result.state == "complete" and None in values:
        expected = "FAIL"
    if result.cause and result.cause.kind == TOLD_AS_INFEASIBLE and not is_feasible(trial):
        expected, values = trial.state.name, trial.values
    if trial.state.name != expected:
        text = f"ended {result.state}, the journal says {trial.state.name}"
        yield Finding(trial.number, text)
    elif trial.state == TrialState.COMPLETE and trial.values != values:
        yield Finding(trial.number, f"has {values}, the journal says {trial.values}")
    if len(spec.objectives) == 1:
        yield from _compare_curve(trial, folder, result.state, spec)


def _compare_curve(
    trial: FrozenTrial, folder: TrialFolder, ended: State, spec: SweepSpec
) -> Iterator[Finding]:
    measured = {
        row.step: metrics.of_evaluation(row, spec.objectives[0].metric)
        for row in folder.read_evaluations()
        if row.step > 0
    }
    reported = trial.intermediate_values
    for step, value in reported.items():
        if step not in measured:
            yield Finding(trial.number, f"step {step} was reported and is not in its metrics")
        elif not _same(measured[step], value):
            text = f"step {step} was reported as {value}, its metrics say {measured[step]}"
            yield Finding(trial.number, text)
    for step, found in measured.items():
        # The last evaluation of a failed trial is not reported: it may be NaN.
        if found is not None and step not in reported and ended in ("complete", "pruned"):
            yield Finding(trial.number, f"step {step} is in its metrics and was not reported")


def _same(measured: float | None, reported: float) -> bool:
    if measured is not None and math.isnan(measured):
        return math.isnan(reported)
    return measured == reported
