"""The journal is synced to disk where a resume could not restore its lines."""

from __future__ import annotations

import itertools
import os
import random

import optuna
import pytest
from optuna.storages.journal import JournalFileBackend

from sweep.spec.dimension import Range
from sweep.spec.spec import SweepSpec
from sweep.storage.open import open_storage
from sweep.study.decider import OptunaDecider
from trial.store.folders import StudyFolder
from trial.store.records import Evaluation, Result

SPEC = SweepSpec(
    name="study",
    space={"training.learning_rate": (Range(type="float", low=1e-5, high=1e-1, log=True),)},
    pruner={"name": "median"},
)
VALUES = {5: 3.0, 10: 1.5}


@pytest.fixture
def folder(tmp_path) -> StudyFolder:
    return StudyFolder(tmp_path / "study")


@pytest.fixture
def synced(monkeypatch) -> list[int]:
    """Sizes that files had when they were synced."""
    sizes: list[int] = []
    fsync = os.fsync

    def noted(descriptor: int) -> None:
        sizes.append(os.fstat(descriptor).st_size)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    return sizes


def test_all_but_evaluations_are_synced(folder, synced):
    decider = OptunaDecider(SPEC, "study", open_storage(folder))
    proposal = decider.ask()
    assert synced[-1] == folder.journal.stat().st_size
    waits = len(synced)
    for step, value in VALUES.items():
        decider.report(proposal.number, Evaluation(step=step, eval_loss=value))
    assert len(synced) == waits
    decider.tell(proposal.number, Result(state="complete", eval_loss=1.5, steps=10))
    assert synced[-1] == folder.journal.stat().st_size


def test_optunas_own_reader_finds_what_was_written(folder):
    decider = OptunaDecider(SPEC, "study", open_storage(folder))
    proposal = decider.ask()
    for step, value in VALUES.items():
        decider.report(proposal.number, Evaluation(step=step, eval_loss=value))
    plain = optuna.storages.JournalStorage(JournalFileBackend(str(folder.journal)))
    (trial,) = optuna.load_study(study_name="study", storage=plain).trials
    assert trial.intermediate_values == VALUES


def test_evaluations_lost_in_a_power_cut_are_reported_again(folder):
    decider = OptunaDecider(SPEC, "study", open_storage(folder))
    number = decider.ask().number
    whole = folder.journal.read_bytes()
    decider.report(number, Evaluation(step=5, eval_loss=3.0))
    folder.journal.write_bytes(whole)
    after = OptunaDecider(SPEC, "study", open_storage(folder))
    assert [proposal.number for proposal in after.pending()] == [number]
    # As the driver does with every line of the trial's folder.
    for step, value in VALUES.items():
        after.report(number, Evaluation(step=step, eval_loss=value))
    assert after.study.trials[number].intermediate_values == VALUES


@pytest.mark.parametrize("seed", range(5))
def test_unfinished_trials_are_those_that_optuna_finds(folder, seed):
    """At every moment of studies that draw, queue, end and are opened again, in one file."""
    drawn = random.Random(seed)
    opened = open_storage(folder)
    plain = optuna.storages.JournalStorage(JournalFileBackend(str(folder.journal)))
    states = (optuna.trial.TrialState.RUNNING, optuna.trial.TrialState.WAITING)
    asked = [*itertools.permutations(states, 1), states, (), None, tuple(optuna.trial.TrialState)]
    running: list[tuple[optuna.Study, optuna.Trial]] = []
    for turn in range(60):
        name = drawn.choice("ab")
        study = optuna.create_study(storage=opened, study_name=name, load_if_exists=True)
        if drawn.random() < 0.4:
            study.enqueue_trial({"x": turn})
        elif drawn.random() < 0.5 or not running:
            running.append((study, study.ask()))
        else:
            study, trial = running.pop(drawn.randrange(len(running)))
            study.tell(trial, drawn.random())
        if drawn.random() < 0.05:
            opened = open_storage(folder)
            running.clear()
        for wanted, deep in itertools.product(asked, (True, False)):
            found = opened.get_all_trials(study._study_id, deep, wanted)
            theirs = plain.get_all_trials(study._study_id, deep, wanted)
            assert [t.number for t in found] == [t.number for t in theirs]
            assert found == theirs
    with pytest.raises(KeyError):
        opened.get_all_trials(99, states=states)
