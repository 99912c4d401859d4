"""Stored configurations and records without later keys keep the meaning they had."""

import json

import pytest

from trial.config import earlier
from trial.config.trial_config import TrialConfig
from trial.store.folders import StudyFolder, TrialFolder
from trial.store.records import StudyRecord


def data_of(folder):
    data = folder.read_config().data
    return data.tokenize, data.train_on


def test_a_configuration_of_now_is_read_as_it_was_written(tmp_path):
    assert data_of(TrialFolder.create(tmp_path, TrialConfig())) == ("together", "all")


@pytest.mark.parametrize("data", [{}, {"data": {}}, {"data": {"max_length": 40}}])
def test_a_configuration_without_the_keys_is_read_as_before(tmp_path, data):
    (tmp_path / "config.json").write_text(json.dumps({"version": 1, **data}))
    assert data_of(TrialFolder(tmp_path)) == ("apart", "last")


def test_a_configuration_with_one_of_the_keys_is_new(tmp_path):
    (tmp_path / "config.json").write_text('{"data": {"train_on": "last"}}')
    assert data_of(TrialFolder(tmp_path)) == ("together", "last")


@pytest.mark.parametrize("base", [{}, {"data": {"max_length": 40}}])
def test_a_record_tells_its_age(tmp_path, base):
    study = StudyFolder(tmp_path)
    study.write_record(StudyRecord(name="s", spec={"base": base}))
    assert study.read_record().spec["base"] == base
    content = json.loads(study.record.read_text())
    del content["defaults"]
    study.record.write_text(json.dumps(content))
    expected = {**base.get("data", {}), **earlier.DATA}
    assert study.read_record().spec["base"]["data"] == expected


@pytest.mark.parametrize("text", ["", "[1]", "{broken", '{"spec": 3}', '{"spec": {"base": "x"}}'])
def test_what_is_no_record_is_left_to_its_reader(text):
    assert earlier.stored_record(text) == text
    assert earlier.stored_config('"tokenize"' + text) == '"tokenize"' + text
