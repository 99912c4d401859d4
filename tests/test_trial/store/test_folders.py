"""Reading of study and trial folders: format versions, torn files, and arbitrary bytes."""

from __future__ import annotations

import json
import os
import shutil

import pytest
from helpers.command import invoke
from helpers.fuzz import examples
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from sweep.spec.dimension import Choices
from sweep.spec.spec import SweepSpec
from sweep.storage.open import open_storage
from sweep.study.decider import OptunaDecider
from trial.store.files import read_lines
from trial.store.folders import StudyFolder, TrialFolder
from trial.store.records import Attempt, Evaluation, Result, StudyRecord, TrainLog
from trial.training.checkpoints import Measurement, TrialProgress

ROW = Evaluation(step=1, eval_loss=2.0)


def make_study(folder: StudyFolder) -> StudyFolder:
    """Two trials: one complete, one in flight; a journal that agrees."""
    spec = SweepSpec(
        name=folder.name,
        base={"training": {"max_steps": 10}},
        space={"lora.r": (Choices(choices=(2, 4)),)},
        sampler={"name": "grid"},
    )
    folder.write_record(StudyRecord(name=folder.name, spec=spec.content(), provenance={"a": 1}))
    decider = OptunaDecider(spec, folder.name, open_storage(folder))
    for value in (2.0, None):
        proposal = decider.ask()
        trial = TrialFolder.create(folder.trial(proposal.number).path, proposal.config)
        attempt = Attempt(started=1.0, host="h", pid=1, device="cpu", versions={"torch": "2"})
        trial.append_attempt(attempt)
        for step in (5, 10):
            evaluation = Evaluation(step=step, eval_loss=3.0 - step / 10, metrics={"x": 1.0})
            trial.append(TrainLog(step=step, loss=3.0, learning_rate=1e-3))
            trial.append(evaluation)
            decider.report(proposal.number, evaluation)
        if value is not None:
            result = Result(state="complete", eval_loss=value, best_step=10, steps=10, max_steps=10)
            trial.write_result(result)
            decider.tell(proposal.number, result)
    return folder


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> StudyFolder:
    return make_study(StudyFolder(tmp_path_factory.mktemp("sound") / "study"))


# Names on disk


def test_the_eval_loss_is_called_value_in_a_result_and_in_a_checkpoints_progress(tmp_path):
    folder = TrialFolder(tmp_path)
    folder.write_result(Result(state="pruned", eval_loss=1.5, finished=2.0))
    text = folder.result.read_text()
    content = json.loads(text)
    assert "eval_loss" not in content
    assert list(content)[:3] == ["version", "state", "value"]
    assert content["value"] == folder.read_result().eval_loss == 1.5
    folder.write_result(folder.read_result())
    assert folder.result.read_text() == text

    best = Measurement(step=4, eval_loss=1.5, metrics={"x": 2.0})
    text = TrialProgress(step=9, best=best).model_dump_json()
    assert '"best":{"step":4,"value":1.5,"metrics":{"x":2.0}}' in text
    assert TrialProgress.model_validate_json(text).best == best
    assert TrialProgress.model_validate_json(text).model_dump_json() == text


def test_a_value_that_is_no_number_is_refused_by_its_name_on_disk(tmp_path):
    folder = TrialFolder(tmp_path)
    folder.result.write_text('{"state": "complete", "value": "low"}')
    with pytest.raises(ValueError, match=r"result\.json: value: Input should be a valid number"):
        folder.read_result()


# Versions


VERSIONED = [
    ("study.json", lambda study: study.read_record()),
    ("trials/00000/config.json", lambda study: study.trial(0).read_config()),
    ("trials/00000/result.json", lambda study: study.trial(0).read_result()),
]


@pytest.mark.parametrize(("name", "read"), VERSIONED, ids=[name for name, _ in VERSIONED])
@pytest.mark.parametrize("theirs", [0, 2, "1.5", None])
def test_another_version_is_refused_naming_both(name, read, theirs, sound, tmp_path):
    study = StudyFolder(shutil.copytree(sound.path, tmp_path / "study"))
    path = study.path / name
    path.write_text(json.dumps({**json.loads(path.read_text()), "version": theirs, "later": []}))
    with pytest.raises(ValueError, match="version") as error:
        read(study)
    assert f"{path}: version: was written in version {theirs!r}" in str(error.value)
    assert "reads version 1" in str(error.value)
    done = invoke("verify", "study", "--runs", tmp_path)
    assert done.exit_code in (1, 2)
    assert f"version {theirs!r}" in (done.stdout + done.stderr).replace("\n", "")


@pytest.mark.parametrize("verb", ["status", "report", "verify", "resume", "compare"])
def test_no_command_reads_a_study_of_another_version(verb, tmp_path):
    study = StudyFolder(tmp_path / "x")
    study.write_record(StudyRecord(name="x", spec={}))
    study.record.write_text(study.record.read_text().replace('"version": 1', '"version": 2'))
    done = invoke(verb, "x", "--runs", tmp_path)
    assert done.exit_code == 2, done.output
    assert "written in version 2" in " ".join(done.stderr.split())


@pytest.mark.parametrize(("name", "read"), VERSIONED, ids=[name for name, _ in VERSIONED])
def test_every_file_says_its_version(name, read, sound):
    assert json.loads((sound.path / name).read_text())["version"] == 1
    assert read(sound).version == 1


# Torn and foreign lines


@pytest.mark.parametrize(
    ("tail", "steps"),
    [
        (b"", [1]),
        (b'{"kind": "eval", "step": 2, "eval_loss"', [1]),
        (b'{"kind": "eval", "step": 2, "eval_loss": 1.0}', [1]),
        (b'{"kind": "eval", "step": 2, "eval_loss": 1.0}\n', [1, 2]),
        (b"\xff\xfe\x00\n", [1]),
        (b"[1, 2]\nnull\n7\n", [1]),
        (b"[" * 200_000 + b"\n", [1]),
        (b'{"kind": "eval", "step": "two", "eval_loss": 1.0}\n', [1]),
    ],
)
def test_a_torn_or_foreign_line_is_skipped_and_the_next_one_is_whole(tail, steps, tmp_path):
    folder = TrialFolder(tmp_path)
    folder.append(ROW)
    with open(folder.metrics, "ab") as file:
        file.write(tail)
    assert [row.step for row in folder.read_evaluations()] == steps
    folder.append(Evaluation(step=9, eval_loss=0.5))
    assert [row.step for row in folder.read_evaluations()] == [*steps, 9]


def test_a_copy_of_a_trial_under_another_spelling_is_no_trial(sound, tmp_path):
    study = StudyFolder(shutil.copytree(sound.path, tmp_path / "study"))
    shutil.copytree(study.trial(0).path, study.trials / "0")
    (study.trials / "7").mkdir()
    (study.trials / "00009").write_text("no folder")
    assert [number for number, _ in study.all_trials()] == [0, 1]
    assert study.all_trials()[0][1].path == study.trial(0).path


def test_a_half_written_file_is_never_read(tmp_path, monkeypatch):
    folder = TrialFolder(tmp_path)
    folder.write_result(Result(state="complete", eval_loss=1.0))

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        folder.write_result(Result(state="complete", eval_loss=2.0))
    assert folder.read_result().eval_loss == 1.0
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]


# Anything at all

FILES = [
    "study.json",
    "trials/00000/config.json",
    "trials/00000/result.json",
    "trials/00001/result.json",
    "trials/00000/metrics.jsonl",
    "trials/00001/metrics.jsonl",
    "trials/00000/attempts.jsonl",
]
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from([-1, 0, 10**400, 1e308, "complete", "NaN", [], {}]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)


def mutate(data, content):
    """The content with one value somewhere in it replaced, removed or added."""
    if isinstance(content, dict) and content and data.draw(st.integers(0, 3)):
        key = data.draw(st.sampled_from(sorted(content)))
        return {**content, key: mutate(data, content[key])}
    if isinstance(content, dict) and content and data.draw(st.booleans()):
        key = data.draw(st.sampled_from(sorted(content)))
        return {name: value for name, value in content.items() if name != key}
    return data.draw(VALUES)


def damaged(data, whole: bytes) -> bytes:
    """Random bytes, a truncation, flipped bytes, or a JSON document that says something else."""
    kind = data.draw(st.sampled_from(["bytes", "cut", "flip", "json", "json", "json"]))
    if kind == "bytes":
        return data.draw(st.binary(max_size=200))
    if kind == "cut":
        return whole[: data.draw(st.integers(0, len(whole)))]
    if kind == "flip":
        at = data.draw(st.integers(0, len(whole) - 1))
        return whole[:at] + data.draw(st.binary(max_size=4)) + whole[at + 1 :]
    lines = whole.decode().splitlines()
    if whole.startswith(b"{\n"):
        return json.dumps(mutate(data, json.loads(whole))).encode()
    at = data.draw(st.integers(0, len(lines) - 1))
    lines[at] = json.dumps(mutate(data, json.loads(lines[at])))
    return ("\n".join(lines) + "\n").encode()


FUZZ = settings(
    deadline=None,
    max_examples=examples(100),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.mark.parametrize("verb", ["status", "verify"])
@settings(FUZZ, max_examples=examples(40))
@given(data=st.data())
def test_any_bytes_end_in_a_table_or_a_clear_message(verb, data, sound, tmp_path):
    look_at_damage(verb, data, sound, tmp_path)


@settings(FUZZ, max_examples=examples(5), phases=[Phase.generate])
@given(data=st.data())
def test_any_bytes_end_in_a_report_or_a_clear_message(data, sound, tmp_path):
    """Fewer: each draws every figure."""
    look_at_damage("report", data, sound, tmp_path)


@pytest.mark.parametrize("verb", ["status", "report"])
def test_a_number_too_large_for_a_column_still_has_a_table(verb, sound, tmp_path):
    study = tmp_path / "study"
    shutil.copytree(sound.path, study)
    for name, key in (("config.json", "diverged_above"), ("result.json", "steps")):
        path = study / "trials/00000" / name
        path.write_text(json.dumps({**json.loads(path.read_text()), key: 2**70}))
    done = invoke(verb, "study", "--runs", tmp_path)
    assert done.exception is None, done.exception


def look_at_damage(verb, data, sound, tmp_path):
    study = tmp_path / "study"
    shutil.rmtree(study, ignore_errors=True)
    shutil.copytree(sound.path, study)
    path = study / data.draw(st.sampled_from(FILES))
    before = (sound.path / "trials/00000" / path.name if not path.exists() else path).read_bytes()
    path.write_bytes(damaged(data, before))
    done = invoke(verb, "study", "--runs", tmp_path)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    assert done.exit_code in (0, 1, 2)
    assert "Traceback" not in done.stderr
    assert done.stdout.strip() or done.stderr.strip()


@FUZZ
@given(content=st.binary(max_size=300))
def test_lines_of_any_bytes_are_read(content, tmp_path_factory):
    path = tmp_path_factory.mktemp("lines") / "metrics.jsonl"
    path.write_bytes(content)
    assert all(isinstance(row, dict) for row in read_lines(path))
