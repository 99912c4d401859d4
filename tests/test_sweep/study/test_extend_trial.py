"""Training a finished trial for longer, with kills in between."""

from __future__ import annotations

import shutil

import pytest
from helpers.sweeps.studies import grid_of_ranks

from sweep.storage.open import open_storage
from sweep.study.decider import OptunaDecider
from sweep.study.extend_trial import extend_trial, finish_extensions
from trial.config.errors import ConfigError
from trial.store.folders import StudyFolder
from trial.store.records import Result
from trial.training.checkpoints import COMPLETE, Checkpoints, TrialProgress


def with_checkpoint(study: StudyFolder) -> None:
    (study.trial(0).checkpoints / "checkpoint-10").mkdir(parents=True)
    (study.trial(0).checkpoints / "checkpoint-10" / "optimizer.pt").write_text("state")
    Checkpoints(study.trial(0)).complete(TrialProgress(step=10))


def test_a_longer_trial_whose_command_was_interrupted_is_not_made_twice(study):
    with_checkpoint(study)
    spec, longer = grid_of_ranks(2, 4, 8, 16), ["training.max_steps=20"]
    new = extend_trial(study, OptunaDecider(spec, "old", open_storage(study)), 0, longer)
    assert new == 4
    # Another one was better meanwhile, and the source has lost its checkpoint.
    shutil.rmtree(study.trial(0).checkpoints)
    decider = OptunaDecider(spec, "old", open_storage(study))
    assert extend_trial(study, decider, 0, longer) == 4
    assert [trial.number for trial in decider.study.trials] == [0, 1, 2, 3, 4]
    by_number = {proposal.number: proposal for proposal in decider.pending()}
    assert by_number[4].duplicate_of is None
    complete = Result(state="complete", eval_loss=1.0, steps=20)
    study.trial(4).write_result(complete)
    decider.tell(4, complete)
    with pytest.raises(ConfigError, match="trial 4 is trial 0 trained that long"):
        extend_trial(study, OptunaDecider(spec, "old", open_storage(study)), 0, longer)


@pytest.mark.parametrize("there", ["nothing", "half a checkpoint"])
def test_a_longer_trial_cut_short_before_its_folder_was_whole_still_goes_on(study, there):
    """Without this it would start from nothing, and end as another trial."""
    with_checkpoint(study)
    spec = grid_of_ranks(2, 4, 8, 16)
    decider = OptunaDecider(spec, "old", open_storage(study))
    extend_trial(study, decider, 0, ["training.max_steps=20"])
    folder = study.trial(4)
    whole = folder.checkpoints / "checkpoint-10" / "optimizer.pt"
    folder.config.unlink()
    whole.unlink()
    if there == "nothing":
        folder.metrics.unlink()
        shutil.rmtree(folder.checkpoints)
        folder.path.rmdir()
    finish_extensions(study, OptunaDecider(spec, "old", open_storage(study)))
    assert whole.read_text() == "state"
    assert folder.read_config().origin.continues == 0
    assert folder.read_config().training["max_steps"] == 20
    assert [row.step for row in folder.read_evaluations()] == [5]


@pytest.mark.parametrize("damage", ["flipped", "deleted", "never complete"])
def test_a_trial_with_a_damaged_checkpoint_is_not_made_longer(study, damage):
    with_checkpoint(study)
    file = study.trial(0).checkpoints / "checkpoint-10" / "optimizer.pt"
    if damage == "flipped":
        file.write_text("stbte")
    elif damage == "deleted":
        file.unlink()
    else:
        (file.parent / COMPLETE).unlink()
    decider = OptunaDecider(grid_of_ranks(2, 4, 8, 16), "old", open_storage(study))
    with pytest.raises(
        ConfigError, match=r"a trial whose last checkpoint is whole; that of trial 0"
    ):
        extend_trial(study, decider, 0, ["training.max_steps=20"])
    assert [trial.number for trial in decider.study.trials] == [0, 1, 2, 3]


def test_a_longer_trial_whose_copy_is_damaged_gets_another(study):
    with_checkpoint(study)
    decider = OptunaDecider(grid_of_ranks(2, 4, 8, 16), "old", open_storage(study))
    new = study.trial(extend_trial(study, decider, 0, ["training.max_steps=20"]))
    copied = new.checkpoints / "checkpoint-10" / "optimizer.pt"
    copied.write_text("stbte")
    finish_extensions(study, OptunaDecider(grid_of_ranks(2, 4, 8, 16), "old", open_storage(study)))
    assert copied.read_text() == "state"
