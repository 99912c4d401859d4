"""Trials that ran out of memory: infeasible for the sampler, never repeated."""

from __future__ import annotations

import warnings

import optuna
from helpers.sweeps.decider import complete, make_spec

from sweep.spec.spec import ConfirmSpec, SamplerSpec
from sweep.storage import compat
from sweep.storage.open import in_memory, open_storage
from sweep.study.decider import OptunaDecider
from trial.store.folders import StudyFolder
from trial.store.records import Cause, Result


def test_a_trial_without_memory_is_infeasible_and_never_repeated():
    spec = make_spec(confirm=ConfirmSpec(top=3, seeds=2))
    decider = OptunaDecider(spec, "study", in_memory())
    cause = Cause(kind="out_of_memory", message="none left")
    failed = Result(state="failed", cause=cause)
    for result in (failed, complete(1.0), complete(2.0), failed):
        decider.tell(decider.ask().number, result)
    trials = decider.study.trials
    assert [t.state.name for t in trials] == ["PRUNED", "COMPLETE", "COMPLETE", "COMPLETE"]
    assert [t.constraints["out_of_memory"] > 0 for t in trials] == [True, False, False, True]
    assert trials[3].value == 2.0
    assert {p.config.origin.confirms for p in decider.confirmations()} == {1, 2}


def test_a_kill_between_the_constraint_and_the_end_tells_it_once(tmp_path):
    folder = StudyFolder(tmp_path / "study")
    before = OptunaDecider(make_spec(), "study", open_storage(folder))
    before.tell(before.ask().number, complete(1.0))
    cut_short = before.ask().number
    (in_flight,) = before.study.get_trials(states=(optuna.trial.TrialState.RUNNING,))
    compat.running_trial(before.study, in_flight).set_constraint("out_of_memory", 1.0)
    after = OptunaDecider(make_spec(), "study", open_storage(folder))
    (back,) = after.pending()
    cause = Cause(kind="out_of_memory", message="none left")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        after.tell(back.number, Result(state="failed", cause=cause))
    assert after.study.trials[cut_short].constraints == {"out_of_memory": 1.0}
    assert after.study.trials[cut_short].value == 1.0


def test_a_study_of_an_older_version_without_constraints_goes_on_with_gp():
    spec = make_spec(sampler=SamplerSpec(name="gp", seed=1, options={"n_startup_trials": 2}))
    decider = OptunaDecider(spec, "study", in_memory())
    for value in (1.0, 2.0):
        decider.study.tell(decider.ask().number, value)
    cause = Cause(kind="out_of_memory", message="none left")
    decider.tell(decider.ask().number, Result(state="failed", cause=cause))
    assert decider.study.trials[2].state.name == "PRUNED"
    assert decider.ask().number == 3
