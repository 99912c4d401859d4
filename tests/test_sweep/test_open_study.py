"""What may change when a study goes on, and which folder and storage belong together."""

from __future__ import annotations

import pytest

from sweep.open_study import (
    RunOptions,
    differences,
    stored_spec,
    with_stored_data,
    withdraw,
)
from sweep.spec.dimension import Choices
from sweep.spec.spec import ResourceSpec, StopSpec, SweepSpec
from sweep.study.recover import check_same_study
from trial.config.trial_config import TrialConfig
from trial.store.folders import StudyFolder, TrialFolder
from trial.store.records import StudyRecord

CONTENT = {
    "question": "a",
    "base": {"training": {"max_steps": 8}},
    "space": {"lora.r": [2, 4]},
    "stop": {"trials": 4},
    "resources": {"concurrency": 1, "devices_per_trial": 1},
    "failures": {"alike": 3},
}


@pytest.mark.parametrize(
    ("key", "value", "refused"),
    [
        ("question", "b", []),
        ("stop", {"trials": 9}, []),
        ("resources", {"concurrency": 4, "devices_per_trial": 1}, []),
        ("resources", {"concurrency": 1, "devices_per_trial": 2}, ["resources.devices_per_trial"]),
        ("failures", {"alike": 1}, []),
        ("confirm", {"top": 2, "seeds": 3}, []),
        ("space", {"lora.r": [2, 8]}, ["space.lora.r"]),
        ("base", {"training": {"max_steps": 9}}, ["base.training.max_steps"]),
        ("sampler", {"name": "tpe"}, ["sampler.name"]),
    ],
)
def test_which_settings_may_change_when_a_study_goes_on(key, value, refused):
    problems = differences(CONTENT, {**CONTENT, key: value})
    assert [problem.key for problem in problems] == refused


def test_a_difference_names_both_values():
    (problem,) = differences(CONTENT, {**CONTENT, "base": {"training": {"max_steps": 9}}})
    assert "was 8" in str(problem)
    assert "9" in str(problem)


@pytest.mark.parametrize(
    ("folders", "numbered", "finished", "refusal"),
    [
        ([], set(), [], None),
        ([], {0}, [], None),
        ([0], {0, 1}, [0], None),
        ([0, 3], {0, 1, 2}, [0], "trial 3, which its storage does not know"),
        ([], {0, 1}, [0], "choose another name"),
    ],
)
def test_folders_and_storage_of_one_study(folders, numbered, finished, refusal, tmp_path):
    study = StudyFolder(tmp_path / "study")
    for number in folders:
        TrialFolder.create(study.trial(number).path, TrialConfig())
    if refusal is None:
        assert check_same_study(study, numbered, finished) is None
        return
    with pytest.raises(ValueError, match=refusal):
        check_same_study(study, numbered, finished)


@pytest.mark.parametrize(
    ("trials", "concurrency", "expected"),
    [(None, None, (4, 1)), (9, None, (9, 1)), (None, 3, (4, 3)), (9, 3, (9, 3))],
)
def test_the_stored_sweep_file_with_options_laid_over_it(trials, concurrency, expected, tmp_path):
    spec = SweepSpec(
        name="x",
        space={"lora.r": (Choices(choices=(2,)),)},
        stop=StopSpec(trials=4),
        resources=ResourceSpec(concurrency=1),
    )
    study = StudyFolder(tmp_path / "x")
    study.write_record(StudyRecord(name="x", spec=spec.content()))
    stored = stored_spec(study, trials, concurrency)
    assert (stored.stop.trials, stored.resources.concurrency) == expected
    assert stored.space == spec.space


def test_a_study_of_an_earlier_version_keeps_its_defaults_of_data(tmp_path):
    spec = SweepSpec.from_content({"name": "s", "base": {"data": {"max_length": 40}}})
    options = RunOptions(runs=tmp_path)
    assert with_stored_data(spec, options) == spec
    study = StudyFolder(tmp_path / "s")
    study.write_record(StudyRecord(name="s", spec=spec.content()))
    assert with_stored_data(spec, options) == spec
    study.record.write_text(study.record.read_text().replace('"defaults": 2', '"was": 1'))
    kept = with_stored_data(spec, options)
    assert kept.base["data"] == {"max_length": 40, "tokenize": "apart", "train_on": "last"}
    assert kept.content() == stored_spec(study, None, None).content()
    # Started anew, and where the file says otherwise, the file decides.
    assert with_stored_data(spec, RunOptions(runs=tmp_path, fresh=True)) == spec
    own = spec.model_copy(update={"base": {"data": {"tokenize": "together"}}})
    assert with_stored_data(own, options) == own
    fork = with_stored_data(spec, RunOptions(runs=tmp_path, fork="other"))
    assert fork.base == kept.base


@pytest.mark.parametrize("has_copy", [True, False])
def test_a_refused_study_keeps_a_sweep_file_that_is_nowhere_else(tmp_path, has_copy):
    folder, original = StudyFolder(tmp_path / "one"), tmp_path / "one.yaml"
    folder.path.mkdir()
    folder.sweep_file.write_text("space: {}")
    original.write_text("space: {}" if has_copy else "space: {lora.r: [2]}")
    folder.write_record(StudyRecord(name="one", spec={}, source=str(original)))
    withdraw(folder)
    assert original.is_file()
    assert folder.path.exists() != has_copy
    folder.path.mkdir(exist_ok=True)
    folder.sweep_file.write_text("space: {}")
    folder.write_record(StudyRecord(name="one", spec={}, source=str(folder.sweep_file)))
    withdraw(folder)
    assert folder.sweep_file.is_file()
