"""`--fresh` keeps each old study, however many are kept aside in one second."""

from __future__ import annotations

import optuna
import pytest
from helpers.sweeps.decider import complete, make_spec

from sweep.storage.open import open_storage
from sweep.storage.url import connect
from sweep.study import archive, recover
from sweep.study.decider import OptunaDecider
from trial.store.folders import StudyFolder
from trial.store.records import StudyRecord

NOW = "20261128-120000"


@pytest.fixture(autouse=True)
def one_second(monkeypatch):
    """All of a test happens in one second."""
    monkeypatch.setattr(archive.time, "strftime", lambda form: NOW)


def begin(folder: StudyFolder, url: str | None, loss: float) -> None:
    """A study with one complete trial."""
    folder.path.mkdir(parents=True)
    spec = make_spec(name=folder.name)
    decider = OptunaDecider(spec, folder.name, open_storage(folder, url))
    decider.tell(decider.ask().number, complete(loss))
    record = StudyRecord(name=folder.name, spec=spec.content(), provenance={"storage": url})
    folder.write_record(record)


@pytest.mark.parametrize("kind", ["journal", "sqlite"])
def test_studies_that_are_renamed_in_one_second_are_all_kept(tmp_path, kind):
    url = f"sqlite:///{tmp_path}/studies.db" if kind == "sqlite" else None
    folder = StudyFolder(tmp_path / "runs" / "s")
    for loss in (1.0, 2.0, 3.0):
        begin(folder, url, loss)
        assert archive.archive_study(folder, lambda: open_storage(folder, url)) is not None
    names = [f"s.{NOW}", f"s.{NOW}-2", f"s.{NOW}-3"]
    assert sorted(p.name for p in folder.path.parent.iterdir()) == names
    for name, loss in zip(names, (1.0, 2.0, 3.0), strict=True):
        kept = StudyFolder(folder.path.with_name(name))
        stored = kept.read_record().name if url else "s"
        study = optuna.load_study(study_name=stored, storage=open_storage(kept, url))
        assert [trial.value for trial in study.trials] == [loss]


def test_a_name_that_another_folder_has_in_the_same_storage_is_left_alone(tmp_path):
    url = f"sqlite:///{tmp_path}/studies.db"
    for place, loss in (("one", 1.0), ("two", 2.0)):
        folder = StudyFolder(tmp_path / place / "s")
        begin(folder, url, loss)
        archive.archive_study(folder, lambda: connect(url))
    values = {
        name: optuna.load_study(study_name=name, storage=url).trials[0].value
        for name in optuna.get_all_study_names(url)
    }
    assert values == {f"s.{NOW}": 1.0, f"s.{NOW}-2": 2.0}


def test_two_forks_that_were_cut_short_in_one_second_are_both_kept(tmp_path):
    new = StudyFolder(tmp_path / "new")
    for rest in ("first", "second"):
        new.path.mkdir()
        (new.path / "rest").write_text(rest)
        recover.archive_cut_fork(new)
    kept = {path.name: (path / "rest").read_text() for path in tmp_path.iterdir()}
    assert kept == {f"new.{NOW}": "first", f"new.{NOW}-2": "second"}
