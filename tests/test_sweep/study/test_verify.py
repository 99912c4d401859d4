"""Comparing the folders of a study with its journal."""

from __future__ import annotations

import pytest
from helpers.sweeps.studies import findings, grid_of_ranks, tell_all

from sweep.storage.open import open_storage
from sweep.study.decider import OptunaDecider
from sweep.study.verify import verify
from trial.store.folders import StudyFolder, TrialFolder
from trial.store.records import Cause, Evaluation, Result


def test_a_sound_study_has_no_difference(study):
    assert findings(study) == []
    assert [str(f) for f in verify(study, open_storage(study))] == [
        "trial 3: is in flight: the next run takes it up"
    ]


def lose_result(study: StudyFolder) -> None:
    study.trial(0).result.unlink()


def change_value(study: StudyFolder) -> None:
    study.trial(0).write_result(Result(state="complete", eval_loss=9.0))


def break_result(study: StudyFolder) -> None:
    study.trial(1).result.write_text('{"version": 1, "sta')


def change_state(study: StudyFolder) -> None:
    study.trial(2).write_result(Result(state="complete", eval_loss=1.0))


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
    found = findings(study)
    assert any(said in text for text in found)
    # A changed file is not the one that the result names, either.
    assert all(said in text or "metrics.jsonl" in text for text in found)


def test_a_loss_that_is_no_number_is_no_difference(tmp_path):
    """A driver that comes back reports what is on disk, the last loss of a diverged trial too."""
    study = StudyFolder(tmp_path / "old")
    tell_all(study, grid_of_ranks(2, 4), [None])
    decider = OptunaDecider(grid_of_ranks(2, 4), "old", open_storage(study))
    (pending,) = decider.pending()
    last = Evaluation(step=10, eval_loss=float("nan"))
    study.trial(0).append(last)
    diverged = Result(state="failed", cause=Cause(kind="diverged", message="NaN", step=10))
    study.trial(0).write_result(diverged)
    decider.report(pending.number, last)
    decider.tell(pending.number, diverged)
    assert findings(study) == []
