"""Repairs after a kill that `sweep.study.recover` makes; the driver makes the others."""

from __future__ import annotations

from sweep.storage.open import open_storage
from sweep.study import recover
from sweep.study.archive import NOTE, ArchiveNote
from trial.store.folders import StudyFolder
from trial.store.records import StudyRecord


def test_the_folder_of_a_fork_that_was_cut_short_is_renamed(tmp_path):
    new = StudyFolder(tmp_path / "new")
    new.path.mkdir()
    (new.path / "rest").write_text("of a fork")
    recover.archive_cut_fork(new)
    assert not new.path.exists()
    (kept,) = tmp_path.iterdir()
    assert (kept / "rest").read_text() == "of a fork"


def test_a_study_is_no_fork_that_was_cut_short(study):
    recover.archive_cut_fork(study)
    assert study.exists()


def test_a_renaming_that_was_cut_short_is_finished(tmp_path):
    folder = StudyFolder(tmp_path / "old")
    folder.write_record(StudyRecord(name="old", spec={}))
    (folder.path / NOTE).write_text(ArchiveNote(old="old", new="old.before").model_dump_json())
    moved = recover.repair_folder(folder, lambda: open_storage(folder))
    assert moved is not None
    assert moved.path == tmp_path / "old.before"
    assert not folder.path.exists()
    assert not (moved.path / NOTE).exists()


def test_a_sound_folder_needs_no_repair(study):
    assert recover.repair_folder(study, lambda: open_storage(study)) is None
