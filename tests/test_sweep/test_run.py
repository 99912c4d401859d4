"""The command that goes on with a study."""

from __future__ import annotations

import os
import shlex
import sys

import optuna
import pytest
from helpers.sweeps.studies import grid_of_ranks

from sweep.open_study import RunOptions
from sweep.run import explained_errors, resume_command
from sweep.storage.open import open_storage
from sweep.study.decider import OptunaDecider
from trial.store.folders import StudyFolder
from trial.store.records import Evaluation, Result, StudyRecord


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["run", "smoke"], "gaudi-sweep run smoke"),
        (["run", "smoke", "--fresh"], "gaudi-sweep run smoke"),
        (["run", "smoke", "--fork", "new"], "gaudi-sweep run smoke --study new"),
        (["resume", "a study"], "gaudi-sweep resume 'a study'"),
        (
            ["run", "x", "--storage", "postgresql://me:sesame@h/db"],
            "gaudi-sweep run x --storage 'postgresql://me:***@h/db'",
        ),
    ],
)
def test_the_command_that_goes_on(words, expected):
    assert resume_command(["/some/where/sweep/__main__.py", *words]) == expected


def delete_study(study: StudyFolder, url: str | None) -> None:
    """As another program does: the dashboard of an earlier version, a script."""
    optuna.delete_study(study_name=study.name, storage=open_storage(study, url, repair=False))


def remove_journal(study: StudyFolder, url: str | None) -> None:
    study.journal.unlink()


def rename_journal(study: StudyFolder, url: str | None) -> None:
    os.rename(study.journal, study.path / "kept-aside")


def report_and_tell(decider: OptunaDecider) -> None:
    decider.report(0, Evaluation(step=5, eval_loss=2.0))
    decider.tell(0, Result(state="complete", eval_loss=2.0, steps=10))


OPERATIONS = {
    "ask": lambda decider: decider.ask(),
    "report": report_and_tell,
    "tell": lambda decider: decider.tell(0, Result(state="complete", eval_loss=2.0, steps=10)),
}


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize(
    ("take_away", "sqlite"),
    [(delete_study, False), (delete_study, True), (remove_journal, False), (rename_journal, False)],
)
def test_a_study_that_vanishes_is_a_sentence_with_the_command_that_repairs(
    take_away, sqlite, operation, tmp_path, monkeypatch
):
    monkeypatch.setattr(sys, "argv", ["gaudi-sweep", "run", "x.yaml"])
    study = StudyFolder(tmp_path / "runs" / "a study")
    url = f"sqlite:///{tmp_path}/study.db" if sqlite else None
    spec = grid_of_ranks(4, 8)
    record = StudyRecord(name=study.name, spec=spec.content(), provenance={"storage": url})
    study.write_record(record)
    decider = OptunaDecider(spec, study.name, open_storage(study, url))
    decider.ask()
    take_away(study, url)
    with (
        pytest.raises(ValueError, match=r"the study 'a study' is gone") as caught,
        explained_errors(study, RunOptions(tmp_path / "runs", storage=url)),
    ):
        OPERATIONS[operation](decider)
    said = str(caught.value)
    assert f"gaudi-sweep verify {shlex.quote(str(study.path))} --repair" in said
    assert said.endswith("go on with: gaudi-sweep run x.yaml")
    assert not (take_away is not delete_study and study.journal.exists())


def test_another_error_stays_what_it_is(tmp_path):
    study = StudyFolder(tmp_path / "old")
    spec = grid_of_ranks(4, 8)
    study.write_record(StudyRecord(name=study.name, spec=spec.content()))
    OptunaDecider(spec, study.name, open_storage(study))
    for error in (KeyError("x"), FileNotFoundError("y"), RuntimeError("z")):
        with pytest.raises(type(error)), explained_errors(study, RunOptions(tmp_path)):
            raise error
