"""Names and links never lead reads or writes out of a study's folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml
from helpers.command import invoke

from sweep.file_checks import check_files
from sweep.open_study import RunOptions, study_folder
from sweep.spec.dimension import Choices
from sweep.spec.spec import SweepSpec
from trial.config.errors import ConfigError
from trial.config.trial_config import TrialConfig
from trial.store.folders import StudyFolder, TrialFolder
from trial.store.records import StudyRecord
from trial.training.checkpoints import Checkpoints

NAMES = ["..", ".", "../x", "a/b", "/tmp/x", ".hidden", "x\0y"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("option", ["study", "fork"])
def test_a_study_cannot_be_named_out_of_its_folder(name, option, tmp_path):
    with pytest.raises(ConfigError, match="a plain folder name"):
        study_folder("x", RunOptions(runs=tmp_path, **{option: name}))


@pytest.mark.parametrize("option", ["study", "fork"])
def test_without_a_name_the_study_is_called_as_the_sweep_file(option, tmp_path):
    folder = study_folder("x", RunOptions(runs=tmp_path, **{option: ""}))
    assert folder.path == tmp_path / "x"


@pytest.mark.parametrize("name", ["../x", "/tmp/x", "a/b", ".x", ".."])
def test_a_sweep_file_cannot_name_a_study_out_of_its_folder(name, tmp_path):
    content = {"name": name, "space": {"lora.r": [2]}, "sampler": "grid"}
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(content))
    done = invoke("check", tmp_path / "x.yaml")
    assert done.exit_code == 2
    assert "name" in done.stderr


def make_study(folder: StudyFolder) -> StudyFolder:
    spec = SweepSpec(name="x", space={"lora.r": (Choices(choices=(2,)),)})
    folder.write_record(StudyRecord(name="x", spec=spec.content()))
    TrialFolder.create(folder.trial(0).path, TrialConfig())
    return folder


def link_study(study: StudyFolder, outside: Path) -> None:
    study.path.rename(outside)
    study.path.symlink_to(outside)


def link_trials(study: StudyFolder, outside: Path) -> None:
    study.trials.rename(outside)
    study.trials.symlink_to(outside)


def link_trial(study: StudyFolder, outside: Path) -> None:
    study.trial(0).path.rename(outside)
    study.trial(0).path.symlink_to(outside)


def link_journal(study: StudyFolder, outside: Path) -> None:
    outside.mkdir()
    study.journal.symlink_to(outside / "not-there-yet")


def link_metrics(study: StudyFolder, outside: Path) -> None:
    outside.mkdir()
    (outside / "file").write_text("precious\n")
    study.trial(0).metrics.symlink_to(outside / "file")


def link_adapter(study: StudyFolder, outside: Path) -> None:
    outside.mkdir()
    study.trial(0).adapter.symlink_to(outside)


def link_page(study: StudyFolder, outside: Path) -> None:
    outside.mkdir()
    study.report.mkdir()
    (study.report / "figures").symlink_to(outside)


LINKS = [
    link_study, link_trials, link_trial, link_journal, link_metrics, link_adapter, link_page,
]  # fmt: skip


@pytest.mark.parametrize("link", LINKS)
def test_a_link_out_of_the_study_is_refused_before_anything_is_written(link, tmp_path):
    study = make_study(StudyFolder(tmp_path / "runs" / "x"))
    check_files(study)
    outside = tmp_path / "outside"
    link(study, outside)
    before = sorted(outside.rglob("*"))
    with pytest.raises(ValueError, match="leads out of"):
        check_files(study)
    (tmp_path / "x.yaml").write_text(yaml.safe_dump({"space": {"lora.r": [2]}, "sampler": "grid"}))
    words = ["run", tmp_path / "x.yaml", "--runs", tmp_path / "runs"]
    done = invoke(*words)
    assert done.exit_code == 2, done.output
    assert "leads out of" in done.stderr
    done = invoke("report", study.path)
    assert done.exit_code == 2, done.output
    assert "leads out of" in done.stderr
    assert sorted(outside.rglob("*")) == before


def test_a_link_within_the_study_is_fine(tmp_path):
    study = make_study(StudyFolder(tmp_path / "runs" / "x"))
    (study.path / "best").symlink_to(study.trial(0).path)
    check_files(study)
    done = invoke("report", study.path)
    assert done.exit_code == 0, done.output
    assert (study.report / "report.md").exists()


def test_a_linked_runs_folder_is_fine(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "runs").symlink_to(tmp_path / "disk")
    study = make_study(StudyFolder(tmp_path / "runs" / "x"))
    check_files(study)
    done = invoke("report", study.path)
    assert done.exit_code == 0, done.output
    assert (tmp_path / "disk" / "x" / "report" / "report.md").exists()


def with_checkpoint(study: StudyFolder) -> Checkpoints:
    at = study.trial(0).checkpoints / "checkpoint-5" / "global_step5"
    at.mkdir(parents=True)
    (at / "optimizer.pt").write_bytes(b"a pickle")
    (at.parent / "progress.json").write_text("{}")
    return Checkpoints(study.trial(0))


def of_another_user(study: StudyFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it looks to somebody else; then whose the trial is does not count either."""
    study.trial(0).config.unlink()
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 4242)


def a_link(study: StudyFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    state = study.trial(0).checkpoints / "checkpoint-5" / "global_step5" / "optimizer.pt"
    state.rename(study.path / "elsewhere.pt")
    state.symlink_to(study.path / "elsewhere.pt")


@pytest.mark.parametrize("foreign", [of_another_user, a_link])
def test_a_checkpoint_of_somebody_else_is_not_loaded(foreign, tmp_path, monkeypatch):
    study = make_study(StudyFolder(tmp_path / "runs" / "x"))
    checkpoints = with_checkpoint(study)
    check_files(study)
    assert checkpoints.read_progress(checkpoints.at(5)).step == 0
    foreign(study, monkeypatch)
    for look in (
        lambda: check_files(study),
        lambda: checkpoints.read_progress(checkpoints.at(5)),
    ):
        with pytest.raises(ValueError, match="loading a checkpoint can run code"):
            look()


def test_a_checkpoint_of_the_trials_own_user_is_loaded_by_every_user(tmp_path, monkeypatch):
    study = make_study(StudyFolder(tmp_path / "runs" / "x"))
    checkpoints = with_checkpoint(study)
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 4242)
    check_files(study)
    assert checkpoints.read_progress(checkpoints.at(5)).step == 0
