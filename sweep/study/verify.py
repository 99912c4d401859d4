"""Compares the trial folders of a study with its storage, and their files with their own hashes.

A folder's configuration is compared with what the study proposed, its files with the sizes, or with
`deep` the hashes, that its result and its checkpoints name. Files of earlier versions have none.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import optuna
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from sweep.driver.retry_policy import config_difference
from sweep.sampling.constraints import is_feasible
from sweep.spec.space import Space
from sweep.spec.spec import SweepSpec
from sweep.study.proposed import proposed_config
from trial.config.errors import ConfigError
from trial.store import metrics
from trial.store.folders import StudyFolder, TrialFolder
from trial.store.records import Result, State
from trial.training.checkpoints import COMPLETE, Checkpoints

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


def verify(folder: StudyFolder, storage: BaseStorage, *, deep: bool = False) -> list[Finding]:
    """Every difference between the trial folders and the storage, by trial number.

    Args:
        folder: The study.
        storage: Where its trials are told.
        deep: Whether to read every file and compare its hash; else sizes are compared.

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
            found += _compare_config(trials[number], folders[number], space)
            found += _compare(trials[number], folders[number], spec)
            found += _damage(number, folders[number], deep)
    return found


def _without_folder(trial: FrozenTrial) -> Iterator[Finding]:
    running = not trial.state.is_finished()
    text = "was numbered and has no folder yet" if running else "has no folder"
    yield Finding(trial.number, text, wrong=not running)


def _compare_config(trial: FrozenTrial, folder: TrialFolder, space: Space) -> Iterator[Finding]:
    """Compare the whole configuration in a folder with the one that the study proposed."""
    number, running = trial.number, not trial.state.is_finished()
    try:
        proposed = proposed_config(space, number, trial.params, trial.user_attrs)
    except ConfigError:
        proposed = None
    try:
        config = folder.read_config()
    except FileNotFoundError:
        if proposed is not None:
            yield Finding(number, "has no config.json", wrong=not running)
        return
    except (OSError, ValueError) as error:
        yield Finding(number, str(error))
        return
    told = space.canonical(config.origin.params if config.origin else {})
    if (drawn := space.canonical(trial.params)) != told:
        yield Finding(number, f"drew {drawn}, its folder says {told}")
    elif proposed is not None and (text := config_difference(config, proposed)):
        yield Finding(number, f"config.json: {text}")


def _compare(trial: FrozenTrial, folder: TrialFolder, spec: SweepSpec) -> Iterator[Finding]:
    number = trial.number
    try:
        result = folder.read_result()
    except (OSError, ValueError) as error:
        yield Finding(number, str(error))
        return
    if result is None:
        yield from _without_result(trial)
        if len(spec.objectives) == 1:
            yield from _compare_reported(trial, folder, spec)
        return
    if not trial.state.is_finished():
        yield Finding(number, "has a result that was not told yet", wrong=False)
        return
    yield from _compare_end(trial, folder, result, spec)


def _damage(number: int, folder: TrialFolder, deep: bool) -> Iterator[Finding]:
    """Files that are not as they were when the result, or a checkpoint, was written."""
    try:
        ended = folder.result.exists()
        for text in folder.damage(deep=deep):
            yield Finding(number, text)
        for attempt in folder.read_attempts():
            for text in attempt.damaged:
                # A damaged checkpoint has been made good by then.
                if text.startswith(folder.metrics.name):
                    yield Finding(number, text)
    except (OSError, ValueError):
        return  # `_compare` says that the result cannot be read.
    checkpoints = Checkpoints(folder)
    for checkpoint in checkpoints.complete_ones():
        wrong = checkpoints.damage(checkpoint, deep=deep)
        if not wrong and not ended and (text := checkpoints.metrics_damage(checkpoint)):
            yield Finding(number, text)
        # A running trial may have removed it meanwhile.
        for text in wrong if (checkpoint / COMPLETE).exists() else []:
            after = "cannot be trained for longer" if ended else "goes on from one before, or anew"
            yield Finding(number, f"damaged checkpoint: {text}: the trial {after}")


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
    yield from _compare_reported(trial, folder, spec)
    if ended not in ("complete", "pruned"):
        # The last evaluation of a failed trial is not reported: it may be NaN.
        return
    for step, values in _measured(folder, spec).items():
        if step not in trial.intermediate_values and values != [None]:
            yield Finding(trial.number, f"step {step} is in its metrics and was not reported")


def _compare_reported(
    trial: FrozenTrial, folder: TrialFolder, spec: SweepSpec
) -> Iterator[Finding]:
    """Compare what was reported of each step with what was measured.

    A step counts once in the journal. It is measured again after a resume, then with another
    rounding where an out-of-memory retry has halved the micro-batch or a trial has left its packed
    job.
    """
    measured = _measured(folder, spec)
    for step, value in trial.intermediate_values.items():
        values = measured.get(step, [])
        if not values:
            yield Finding(trial.number, f"step {step} was reported and is not in its metrics")
        elif not any(_same(found, value) for found in values):
            text = f"step {step} was reported as {value}, its metrics say {values[-1]}"
            yield Finding(trial.number, text)


def _measured(folder: TrialFolder, spec: SweepSpec) -> dict[int, list[float | None]]:
    """What each evaluation of a step has measured of the objective, by step."""
    measured: dict[int, list[float | None]] = {}
    for row in folder.read_all_evaluations():
        if row.step > 0:
            value = metrics.of_evaluation(row, spec.objectives[0].metric)
            measured.setdefault(row.step, []).append(value)
    return measured


def _same(measured: float | None, reported: float) -> bool:
    if measured is not None and math.isnan(measured):
        return math.isnan(reported)
    return measured == reported
