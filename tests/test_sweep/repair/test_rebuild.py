"""Damaged files of a study: refused with what repairs them, and repaired from the trial folders."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import optuna
import pytest
from helpers.command import invoke
from helpers.sweeps import fakes
from helpers.sweeps.studies import findings, tell_all
from rich.console import Console

from sweep.loading import loader
from sweep.open_study import RunOptions, open_decider, open_folder
from sweep.spec.spec import SweepSpec
from sweep.storage.open import open_storage
from sweep.study.decider import OptunaDecider
from trial.store.folders import StudyFolder
from trial.store.records import Cause, Evaluation, Result

SWEEP = """\
base: {training: {max_steps: 10}}
space: {lora.r: [2, 4, 8, 16, 32]}
sampler: grid
enqueue: [{lora.r: 8}]
"""
RESULTS = [
    Result(state="complete", eval_loss=2.0 + 2**-51, steps=10, best_step=5),
    Result(state="pruned", eval_loss=3.0, steps=5),
    Result(state="failed", cause=Cause(kind="error", message="boom")),
    Result(state="failed", cause=Cause(kind="diverged", message="loss is NaN", step=5), steps=5),
    None,
]


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> StudyFolder:
    """Trials 0 to 4: complete, pruned, failed, diverged, in flight; with an override."""
    folder = StudyFolder(tmp_path_factory.mktemp("sound") / "old")
    folder.path.mkdir()
    folder.sweep_file.write_text(SWEEP)
    spec = loader.examine(folder.sweep_file, ["training.max_steps=40"]).spec
    tell_all(folder, spec, RESULTS)
    open_decider(spec, folder, options_of(folder))
    assert findings(folder) == []
    return folder


@pytest.fixture
def study(sound, tmp_path) -> StudyFolder:
    shutil.copytree(sound.path, tmp_path / "old")
    return StudyFolder(tmp_path / "old")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def zero(path: Path) -> None:
    path.write_bytes(b"\0" * path.stat().st_size)


def flip(path: Path) -> None:
    """The first quotation mark after the middle gets another bit."""
    content = bytearray(path.read_bytes())
    content[content.index(b'"', len(content) // 2)] ^= 0x10
    path.write_bytes(content)


def delete(path: Path) -> None:
    path.unlink()


def cut_lines(path: Path) -> None:
    """Whole lines are lost at the end."""
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[: len(lines) // 2]))


DAMAGES = (cut, empty, zero, flip, delete)


def content_of(folder: StudyFolder) -> dict[str, str]:
    """Hashes of all files, but the driver's lock."""
    files = [path for path in folder.path.rglob("*") if path.is_file()]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def told(folder: StudyFolder) -> list[tuple]:
    """What the study was told of each trial."""
    study = optuna.load_study(study_name="old", storage=open_storage(folder, repair=False))
    return [
        (
            *(t.number, t.state, t.params, t.distributions),
            *(t.values, t.intermediate_values, t.user_attrs),
        )
        for t in study.get_trials()
    ]


def options_of(folder: StudyFolder) -> RunOptions:
    return RunOptions(runs=folder.path.parent, study="old")


def run_again(folder: StudyFolder) -> None:
    spec = loader.examine(folder.sweep_file, ["training.max_steps=40"]).spec
    options = options_of(folder)
    open_folder(folder, spec, folder.sweep_file, options, Console(quiet=True))
    open_decider(spec, folder, options)


def repaired(folder: StudyFolder) -> str:
    done = invoke("verify", "old", "--repair", "--runs", folder.path.parent)
    assert done.exit_code == 0, done.output
    return " ".join(done.stdout.split())


def kept_aside(folder: StudyFolder, name: str) -> list[Path]:
    return list(folder.path.glob(f"**/{name}.damaged-*"))


@pytest.mark.parametrize("damage", [*DAMAGES, cut_lines], ids=lambda d: d.__name__)
def test_a_damaged_journal_is_refused_unchanged_and_made_anew(sound, study, damage):
    before, was = told(sound), study.journal.read_bytes()
    damage(study.journal)
    files = content_of(study)
    with pytest.raises(ValueError, match=r"verify \S+/old --repair"):
        open_decider(SweepSpec.from_content(study.read_record().spec), study, options_of(study))
    if damage is not cut:  # A torn last line is what a kill leaves.
        assert content_of(study) == files
    assert "is made anew from the trial folders" in repaired(study)
    assert told(study) == before
    assert findings(study) == []
    assert len(kept_aside(study, "journal.log")) == (damage is not delete)
    assert study.journal.read_bytes() != was
    # The next run goes on with the trial in flight, and enqueues nothing twice.
    run_again(study)
    assert len(told(study)) == len(RESULTS)


def test_the_line_of_the_damage_is_named(study):
    lines = study.journal.read_bytes().splitlines(keepends=True)
    study.journal.write_bytes(b"".join([*lines[:4], lines[4].replace(b"{", b"[", 1), *lines[5:]]))
    done = invoke("verify", "old", "--runs", study.path.parent)
    assert done.exit_code == 2
    assert f"{study.journal}:5: is not JSON; repair it with: gaudi-sweep verify" in " ".join(
        done.stderr.split()
    )


def test_a_changed_value_of_the_journal_is_a_difference_and_repaired(sound, study):
    study.journal.write_text(study.journal.read_text().replace("3.0", "1.0"))
    assert findings(study)
    repaired(study)
    assert told(study) == told(sound)


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda d: d.__name__)
def test_a_damaged_record_is_refused_unchanged_and_made_anew(sound, study, damage):
    damage(study.record)
    files = content_of(study)
    with pytest.raises(ValueError, match=r"study.json.*verify \S+/old --repair"):
        run_again(study)
    done = invoke("verify", "old", "--runs", study.path.parent)
    assert done.exit_code == 2
    assert "--repair" in done.stderr
    assert content_of(study) == files
    assert "study.json is made anew" in repaired(study)
    assert study.read_record().spec == sound.read_record().spec
    assert len(kept_aside(study, "study.json")) == (damage is not delete)
    assert told(study) == told(sound)
    run_again(study)


def test_record_and_journal_may_both_be_lost(sound, study):
    study.record.unlink()
    study.journal.unlink()
    repaired(study)
    assert study.read_record().spec == sound.read_record().spec
    assert told(study) == told(sound)


def test_without_record_and_sweep_file_nothing_is_touched(study):
    study.record.unlink()
    study.sweep_file.unlink()
    files = content_of(study)
    done = invoke("verify", "old", "--repair", "--runs", study.path.parent)
    assert done.exit_code == 2
    assert "sweep.yaml: the sweep file of the study" in " ".join(done.stderr.split())
    assert content_of(study) == files


def test_a_sound_study_is_not_touched(study):
    files = content_of(study)
    repaired(study)
    assert content_of(study) == files


def edit(path: Path) -> None:
    """Another value, in a file that names its own hash."""
    path.write_text(json.dumps({**json.loads(path.read_text()), "value": 1.0}))


@pytest.mark.parametrize("damage", [*DAMAGES, edit], ids=lambda d: d.__name__)
def test_a_damaged_result_puts_its_trial_in_flight_again(study, damage):
    damage(study.trial(0).result)
    assert findings(study)
    repaired(study)
    assert len(kept_aside(study, "result.json")) == (damage is not delete)
    states = [row[1].name for row in told(study)]
    assert states == ["RUNNING", "PRUNED", "FAIL", "PRUNED", "RUNNING"]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda d: d.__name__)
def test_a_damaged_configuration_is_made_as_the_journal_says(sound, study, damage):
    damage(study.trial(1).config)
    repaired(study)
    assert study.trial(1).read_config() == sound.trial(1).read_config()


def test_a_trial_that_neither_folder_nor_journal_knows_is_drawn_again(study):
    study.trial(1).config.unlink()
    study.journal.unlink()
    repaired(study)
    assert kept_aside(study, "00001")
    assert [row[1].name for row in told(study)][1] == "WAITING"


def drive(folder: StudyFolder) -> tuple[fakes.RecordingView, list[int]]:
    """Go on with a study; returns what was shown, and the trials that were trained."""
    spec = SweepSpec.from_content(folder.read_record().spec)
    decider = OptunaDecider(spec, "old", open_storage(folder))
    executor = fakes.ScriptedExecutor(lambda number: [4.0, 3.0, 2.0 + number], width=1)
    driver = fakes.make_driver(folder.path.parent, decider, executor)
    driver.study = folder
    driver.run()
    return driver.view, executor.submitted


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda d: d.__name__)
@pytest.mark.parametrize("number", [0, 3])
def test_a_run_trains_a_trial_anew_whose_result_is_damaged(study, number, damage):
    drive(study)
    before, result = told(study), study.trial(4).read_result()
    assert result.state == "complete"
    damage(study.trial(4 if number == 0 else number).result)
    view, trained = drive(study)
    assert told(study) == before
    if number == 0:
        assert trained == [4]
        again = study.trial(4).read_result()
        assert (again.state, again.eval_loss) == ("complete", result.eval_loss)
    else:
        assert trained == []
        assert study.trial(3).read_result().cause == RESULTS[3].cause
    words = f"trial {4 if number == 0 else number} is trained anew: {study.path}"
    assert [note.startswith(words) for note in view.notes] == ([] if damage is delete else [True])
    assert findings(study) == []


def test_a_pruned_trial_is_pruned_where_it_was(study):
    study.trial(1).result.unlink()
    decider = OptunaDecider(
        SweepSpec.from_content(study.read_record().spec), "old", open_storage(study)
    )
    proposal = decider.again(1)
    assert proposal.config == study.trial(1).read_config()
    prunes = [decider.report(1, Evaluation(step=step, eval_loss=9.0)) for step in (1, 4, 5)]
    assert prunes == [False, False, True]
    decider.tell(1, Result(state="pruned", steps=5))
    assert findings(study) == ["trial 1: is PRUNED in the journal without a result"]
