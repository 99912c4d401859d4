"""Comparing the folders of a study with its journal."""

from __future__ import annotations

import json

import pytest
from helpers.sweeps.studies import findings, grid_of_ranks, tell_all

from sweep.driver.retry_policy import halve_micro_batch
from sweep.storage.open import open_storage
from sweep.study.decider import OptunaDecider
from sweep.study.verify import verify
from trial.config import dotted
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


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("training.learning_rate", 0.5, "training.learning_rate is 0.5, the study proposed"),
        ("training.seed", 7, "training.seed is 7, the study proposed 42"),
        ("lora.lora_alpha", 64, "lora.lora_alpha is 64.0, the study proposed"),
        ("data.max_length", 99, "data.max_length is 99, the study proposed"),
        ("origin.number", 3, "origin.number is 3, the study proposed 0"),
    ],
)
def test_every_key_of_a_configuration_is_compared(study, path, value, said):
    file = study.trial(0).config
    content = json.loads(file.read_text())
    dotted.set_value(content, path, value)
    file.write_text(json.dumps(content))
    (only,) = findings(study)
    assert only.startswith(f"trial 0: config.json: {said}")


def test_what_a_run_decides_is_no_difference(study):
    for update in ({"keep_checkpoint": True}, {"packed": True}):
        changed = study.trial(0).read_config().model_copy(update=update)
        TrialFolder.create(study.trial(0).path, changed)
    smaller = halve_micro_batch(study.trial(1).read_config())
    assert smaller.training["gradient_accumulation_steps"] == 2
    TrialFolder.create(study.trial(1).path, smaller)
    assert findings(study) == []


def test_a_step_that_is_measured_again_in_halves_is_no_difference(tmp_path):
    """The journal has the value of before memory ran out, the trial one that is rounded apart."""
    study = StudyFolder(tmp_path / "old")
    tell_all(study, grid_of_ranks(2, 4), [None])
    decider = OptunaDecider(grid_of_ranks(2, 4), "old", open_storage(study))
    (pending,) = decider.pending()
    folder = study.trial(0)
    for step, loss in ((5, 2.0000002), (10, 1.5)):
        folder.append(Evaluation(step=step, eval_loss=loss))
        decider.report(pending.number, Evaluation(step=step, eval_loss=loss))
    complete = Result(state="complete", eval_loss=1.5, steps=10)
    folder.write_result(complete)
    decider.tell(0, complete)
    assert [row.eval_loss for row in folder.read_evaluations()] == [2.0000002, 1.5]
    assert decider.study.trials[0].intermediate_values == {5: 2.0, 10: 1.5}
    assert findings(study) == []


def test_what_was_reported_of_a_trial_in_flight_is_compared(study):
    study.trial(3).metrics.write_text(study.trial(3).metrics.read_text().replace("5.0", "4.0"))
    (only,) = findings(study)
    assert only == "trial 3: step 5 was reported as 5.0, its metrics say 4.0"


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
