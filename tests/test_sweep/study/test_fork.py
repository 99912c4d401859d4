"""Forking a study: which trials are copied into the new one."""

from __future__ import annotations

from helpers.sweeps.studies import findings, grid_of_ranks, tell_all

from sweep.storage.open import open_storage
from sweep.study.decider import OptunaDecider
from sweep.study.fork import fork
from trial.store.folders import StudyFolder
from trial.store.records import Cause, Result, StudyRecord


def test_a_fork_carries_over_what_fits_and_says_what_does_not(study, tmp_path):
    new = StudyFolder(tmp_path / "new")
    spec = grid_of_ranks(4, 2, 32)
    lines = [str(line) for line in fork(study, new, spec, open_storage(new))]
    assert lines[:2] == ["trial 0 becomes 0", "trial 1 becomes 1"]
    assert "trial 2 is dropped: failed" in lines[2]
    assert "trial 3 is dropped: not finished" in lines[3]
    new.write_record(StudyRecord(name="new", spec=spec.content()))
    assert findings(new) == []
    decider = OptunaDecider(spec, "new", open_storage(new))
    assert [trial.state.name for trial in decider.study.trials] == ["COMPLETE", "PRUNED"]
    assert decider.ask().config.lora.r == 32
    assert decider.ask() is None
    origin = new.trial(0).read_config().origin
    assert origin.changes == ["carried over from trial 0 of old"]


def test_trials_outside_the_new_space_or_with_another_base_are_dropped(study, tmp_path):
    new = StudyFolder(tmp_path / "outside")
    outside = [str(line) for line in fork(study, new, grid_of_ranks(4, 64), open_storage(new))]
    assert "trial 0 is dropped: lora.r: 2 is not one of 4, 64" in outside[0]
    assert outside[1] == "trial 1 becomes 0"
    other = StudyFolder(tmp_path / "other")
    longer = [
        str(x) for x in fork(study, other, grid_of_ranks(2, 4, steps=20), open_storage(other))
    ]
    assert longer[0] == "trial 0 is dropped: training.max_steps was 10, is 20"


def test_a_trial_without_memory_is_infeasible_and_sound(tmp_path):
    study = StudyFolder(tmp_path / "old")
    none_left = Result(state="failed", cause=Cause(kind="out_of_memory", message="none left"))
    complete = Result(state="complete", eval_loss=2.0, steps=10)
    tell_all(study, grid_of_ranks(2, 4, 8, 16), [none_left, complete, none_left])
    assert findings(study) == []
    trials = OptunaDecider(grid_of_ranks(2, 4, 8, 16), "old", open_storage(study)).study.trials
    assert [trial.state.name for trial in trials[:3]] == ["PRUNED", "COMPLETE", "COMPLETE"]
    study.trial(2).write_result(Result(state="failed", cause=Cause(kind="error", message="boom")))
    assert findings(study) == ["trial 2: ended failed, the journal says COMPLETE"]
    # A fork gives the trials it carries over what GP compares.
    new = StudyFolder(tmp_path / "new")
    fork(study, new, grid_of_ranks(2, 4), open_storage(new))
    (carried,) = OptunaDecider(grid_of_ranks(2, 4), "new", open_storage(new)).study.trials
    assert carried.constraints["out_of_memory"] < 0


def test_a_trial_with_damaged_files_is_not_carried_over(study, tmp_path):
    metrics = study.trial(0).metrics
    metrics.write_text(metrics.read_text().replace("2.0", "1.0"))
    new = StudyFolder(tmp_path / "new")
    lines = [str(line) for line in fork(study, new, grid_of_ranks(4, 2), open_storage(new))]
    said = "trial 0 is dropped: metrics.jsonl has other content than it was written with"
    assert lines[:2] == [said, "trial 1 becomes 0"]
