"""Forking a study, and checking its folders against its journal; told trials on a real journal."""

from __future__ import annotations

import pytest

from sweep.spec.dimension import Choices
from sweep.spec.spec import SweepSpec
from sweep.storage.open import open_storage
from sweep.study.decider import OptunaDecider
from sweep.study.extend_trial import mend, prolong
from sweep.study.fork import fork
from sweep.study.verify import verify
from trial.config.errors import ConfigError
from trial.store.folders import StudyFolder, TrialFolder
from trial.store.records import Cause, Evaluation, Result, StudyRecord


def ranks(*choices: int, steps: int = 10) -> SweepSpec:
    return SweepSpec(
        name="old",
        base={"training": {"max_steps": steps}},
        space={"lora.r": (Choices(choices=choices),)},
        sampler={"name": "grid"},
    )


def tell_all(study: StudyFolder, spec: SweepSpec, results: list[Result | None]) -> None:
    """Run a grid without training: each trial gets the next result, None leaves it in flight."""
    study.write_record(StudyRecord(name=study.name, spec=spec.content()))
    decider = OptunaDecider(spec, study.name, open_storage(study))
    for result in results:
        proposal = decider.ask()
        folder = TrialFolder.create(study.trial(proposal.number).path, proposal.config)
        evaluation = Evaluation(step=5, eval_loss=2.0 + proposal.number)
        folder.append(evaluation)
        decider.report(proposal.number, evaluation)
        if result is not None:
            folder.write_result(result)
            decider.tell(proposal.number, result)


@pytest.fixture
def study(tmp_path) -> StudyFolder:
    made = StudyFolder(tmp_path / "old")
    failed = Result(state="failed", cause=Cause(kind="error", message="boom"))
    pruned = Result(state="pruned", value=3.0, steps=5)
    complete = Result(state="complete", value=2.0, steps=10)
    tell_all(made, ranks(2, 4, 8, 16), [complete, pruned, failed, None])
    return made


def findings(study: StudyFolder) -> list[str]:
    return [str(finding) for finding in verify(study, open_storage(study)) if finding.wrong]


def test_a_sound_study_has_no_difference(study):
    assert findings(study) == []
    assert [str(f) for f in verify(study, open_storage(study))] == [
        "trial 3: is in flight: the next run takes it up"
    ]


def lose_result(study: StudyFolder) -> None:
    study.trial(0).result.unlink()


def change_value(study: StudyFolder) -> None:
    study.trial(0).write_result(Result(state="complete", value=9.0))


def break_result(study: StudyFolder) -> None:
    study.trial(1).result.write_text('{"version": 1, "sta')


def change_state(study: StudyFolder) -> None:
    study.trial(2).write_result(Result(state="complete", value=1.0))


def lose_metrics(study: StudyFolder) -> None:
    study.trial(0).metrics.unlink()


def lose_report(study: StudyFolder) -> None:
    study.trial(1).append(Evaluation(step=7, eval_loss=2.0))


def change_config(study: StudyFolder) -> None:
    config = study.trial(0).read_config()
    origin = config.origin.model_copy(update={"params": {"lora.r": 99}})
    TrialFolder.create(study.trial(0).path, config.model_copy(update={"origin": origin}))


def add_folder(study: StudyFolder) -> None:
    TrialFolder.create(study.trial(77).path, study.trial(0).read_config())


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lose_result, "trial 0: is COMPLETE in the journal without a result"),
        (change_value, "trial 0: has [9.0], the journal says [2.0]"),
        (break_result, "result.json"),
        (change_state, "trial 2: ended complete, the journal says FAIL"),
        (lose_metrics, "trial 0: step 5 was reported and is not in its metrics"),
        (lose_report, "trial 1: step 7 is in its metrics and was not reported"),
        (change_config, "trial 0: drew {'lora.r': 2}, its folder says {'lora.r': 99}"),
        (add_folder, "trial 77: has a folder, but the journal does not know it"),
    ],
)
def test_each_kind_of_damage_is_found(study, damage, said):
    damage(study)
    (only,) = findings(study)
    assert said in only


def test_a_fork_carries_over_what_fits_and_says_what_does_not(study, tmp_path):
    new = StudyFolder(tmp_path / "new")
    spec = ranks(4, 2, 32)
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
    outside = [str(line) for line in fork(study, new, ranks(4, 64), open_storage(new))]
    assert "trial 0 is dropped: lora.r: 2 is not one of 4, 64" in outside[0]
    assert outside[1] == "trial 1 becomes 0"
    other = StudyFolder(tmp_path / "other")
    longer = [str(x) for x in fork(study, other, ranks(2, 4, steps=20), open_storage(other))]
    assert longer[0] == "trial 0 is dropped: training.max_steps was 10, is 20"


def test_a_trial_without_memory_is_infeasible_and_sound(tmp_path):
    study = StudyFolder(tmp_path / "old")
    none_left = Result(state="failed", cause=Cause(kind="out_of_memory", message="none left"))
    complete = Result(state="complete", value=2.0, steps=10)
    tell_all(study, ranks(2, 4, 8, 16), [none_left, complete, none_left])
    assert findings(study) == []
    trials = OptunaDecider(ranks(2, 4, 8, 16), "old", open_storage(study)).study.trials
    assert [trial.state.name for trial in trials[:3]] == ["PRUNED", "COMPLETE", "COMPLETE"]
    study.trial(2).write_result(Result(state="failed", cause=Cause(kind="error", message="boom")))
    assert findings(study) == ["trial 2: ended failed, the journal says COMPLETE"]
    # A fork gives the trials it carries over what GP compares.
    new = StudyFolder(tmp_path / "new")
    fork(study, new, ranks(2, 4), open_storage(new))
    (carried,) = OptunaDecider(ranks(2, 4), "new", open_storage(new)).study.trials
    assert carried.constraints["out_of_memory"] < 0


def test_a_loss_that_is_no_number_is_no_difference(tmp_path):
    """A driver that comes back reports what is on disk, the last loss of a diverged trial too."""
    study = StudyFolder(tmp_path / "old")
    tell_all(study, ranks(2, 4), [None])
    decider = OptunaDecider(ranks(2, 4), "old", open_storage(study))
    (pending,) = decider.pending()
    last = Evaluation(step=10, eval_loss=float("nan"))
    study.trial(0).append(last)
    diverged = Result(state="failed", cause=Cause(kind="diverged", message="NaN", step=10))
    study.trial(0).write_result(diverged)
    decider.report(pending.number, last)
    decider.tell(pending.number, diverged)
    assert findings(study) == []


# Longer trials


def with_checkpoint(study: StudyFolder) -> None:
    (study.trial(0).checkpoints / "checkpoint-10").mkdir(parents=True)
    (study.trial(0).checkpoints / "checkpoint-10" / "optimizer.pt").write_text("state")


def test_a_longer_trial_whose_command_was_interrupted_is_not_made_twice(study):
    with_checkpoint(study)
    spec, longer = ranks(2, 4, 8, 16), ["training.max_steps=20"]
    new = prolong(study, OptunaDecider(spec, "old", open_storage(study)), 0, longer)
    assert new == 4
    # Another one was better meanwhile, and the source has lost its checkpoint.
    (study.trial(0).checkpoints / "checkpoint-10" / "optimizer.pt").unlink()
    (study.trial(0).checkpoints / "checkpoint-10").rmdir()
    study.trial(0).checkpoints.rmdir()
    decider = OptunaDecider(spec, "old", open_storage(study))
    assert prolong(study, decider, 0, longer) == 4
    assert [trial.number for trial in decider.study.trials] == [0, 1, 2, 3, 4]
    by_number = {proposal.number: proposal for proposal in decider.pending()}
    assert by_number[4].duplicate_of is None
    complete = Result(state="complete", value=1.0, steps=20)
    study.trial(4).write_result(complete)
    decider.tell(4, complete)
    with pytest.raises(ConfigError, match="trial 4 is trial 0 trained that long"):
        prolong(study, OptunaDecider(spec, "old", open_storage(study)), 0, longer)


@pytest.mark.parametrize("there", ["nothing", "half a checkpoint"])
def test_a_longer_trial_cut_short_before_its_folder_was_whole_still_goes_on(study, there):
    """Without this it would start from nothing, and end as another trial."""
    with_checkpoint(study)
    spec = ranks(2, 4, 8, 16)
    decider = OptunaDecider(spec, "old", open_storage(study))
    prolong(study, decider, 0, ["training.max_steps=20"])
    folder = study.trial(4)
    whole = folder.checkpoints / "checkpoint-10" / "optimizer.pt"
    folder.config.unlink()
    whole.unlink()
    if there == "nothing":
        folder.metrics.unlink()
        whole.parent.rmdir()
        folder.checkpoints.rmdir()
        folder.path.rmdir()
    mend(study, OptunaDecider(spec, "old", open_storage(study)))
    assert whole.read_text() == "state"
    assert folder.read_config().origin.continues == 0
    assert folder.read_config().training["max_steps"] == 20
    assert [row.step for row in folder.read_evaluations()] == [5]
