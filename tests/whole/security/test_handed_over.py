"""A study made by somebody else runs code only after `--trust-remote-code` on the command line."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

import pytest
import yaml
from helpers.command import invoke
from helpers.sweeps.studies import tell_all

from sweep.file_checks import check_code
from sweep.loading import loader
from trial import sample
from trial.__main__ import main as train_one
from trial.export.__main__ import main as export_one
from trial.store.folders import StudyFolder, TrialFolder
from trial.store.records import Result, StudyRecord
from trial.trust import FLAG

MARKED = "open({marker!r}, 'w').close()\n"


@pytest.fixture
def marker(tmp_path, monkeypatch) -> Path:
    """A file that the code of a study makes; modules of models are kept apart for each test."""
    from transformers import dynamic_module_utils

    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "cache"))
    return tmp_path / "went-off"


@pytest.fixture
def foreign(tiny, tmp_path, marker) -> Path:
    """A model with a configuration class of its own, in a Python file beside it."""
    folder = tmp_path / "model"
    folder.mkdir()
    for file in tiny[0].iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "foreign", "auto_map": {"AutoConfig": "foreign.ForeignConfig"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "foreign.py").write_text(
        MARKED.format(marker=str(marker)) + "from transformers import LlamaConfig\n"
        "class ForeignConfig(LlamaConfig):\n    model_type = 'foreign'\n"
    )
    return folder


def sweep_file(path: Path, tiny: tuple[Path, Path], **base: object) -> Path:
    content = {
        "base": {
            "model": {"name_or_path": str(tiny[0])},
            "data": {"path": str(tiny[1]), "max_length": 32},
            "training": {"max_steps": 4, "eval_steps": 2},
            "device": "cpu",
            **base,
        },
        "space": {"lora.r": [2, 4, 8]},
        "sampler": "grid",
    }
    path.write_text(yaml.safe_dump(content))
    return path


def handed_over(path: Path, source: Path) -> StudyFolder:
    """A study of a sweep file: two trials have ended and have adapters, the second is in flight."""
    study = StudyFolder(path)
    spec = loader.load(source)
    complete = Result(state="complete", eval_loss=2.0, steps=4)
    tell_all(study, spec, [complete, None, complete])
    study.sweep_file.write_text(source.read_text())
    for number in (0, 2):
        study.trial(number).adapter.mkdir()
    return study


@pytest.fixture
def study(tmp_path, tiny, foreign) -> StudyFolder:
    """A study whose model brings code."""
    model = {"name_or_path": str(foreign), "trust_remote_code": True}
    return handed_over(tmp_path / "runs" / "x", sweep_file(tmp_path / "x.yaml", tiny, model=model))


WORDS = {
    "resume": lambda study, to: ["resume", study.path],
    "continue": lambda study, to: ["resume", study.path, "--continue", "0"],
    "run": lambda study, to: ["run", study.sweep_file, "--runs", study.path.parent],
    "export": lambda study, to: ["export", study.path, "--to", to],
    "merge": lambda study, to: ["export", study.path, "--to", to, "--merge", "--trial", "0"],
    "compare": lambda study, to: ["compare", study.path],
}


@pytest.mark.parametrize("words", WORDS.values(), ids=WORDS)
def test_a_command_refuses_a_study_whose_model_brings_code(words, study, tmp_path, marker):
    done = invoke(*words(study, tmp_path / "out"))
    assert done.exit_code == 2, done.output
    assert "model.trust_remote_code" in done.stderr
    assert FLAG in done.stderr
    assert not marker.exists()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "words",
    [["verify"], ["status"], ["report"], ["compare", "--no-samples"]],
    ids=lambda words: words[0],
)
def test_commands_that_only_read_run_nothing(words, study, marker):
    done = invoke(words[0], study.path, *words[1:])
    assert done.exit_code == 0, done.output
    assert not marker.exists()


def test_a_trial_runs_code_only_after_the_word(study, tmp_path, marker, capsys, monkeypatch):
    """In one process, which loads torch once; the code has run where its marker is."""
    monkeypatch.setattr("trial.__main__.end_with_parent", lambda: None)
    monkeypatch.setattr("trial.__main__.set_environment", lambda *_: None)
    ended, in_flight = str(study.trial(0).path), str(study.trial(1).path)
    programs = {
        "train": lambda *flag: train_one([in_flight, *flag]),
        "sample": lambda *flag: sample.main([*flag, ended]),
        "export": lambda *flag: call_export(
            monkeypatch, ended, str(tmp_path / "out"), "--no-verify", *flag
        ),
    }
    for name, program in programs.items():
        assert program() != 0
        assert FLAG in capsys.readouterr().err
        assert not marker.exists(), name
        # The model is none that could be trained: what matters is that its code has run.
        with suppress(ValueError, KeyError, AttributeError):
            program(FLAG)
        assert marker.exists(), name
        marker.unlink()
        forget_modules(monkeypatch, tmp_path / f"cache-{name}")


def call_export(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr("sys.argv", ["export", *words])
    return export_one()


def forget_modules(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    """Let the model's module be imported again."""
    import sys

    from transformers import dynamic_module_utils

    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(cache))
    for name in [name for name in sys.modules if name.startswith("transformers_modules")]:
        del sys.modules[name]


def with_deepspeed_checkpoint(trial: TrialFolder) -> None:
    states = trial.checkpoints / "checkpoint-2" / "global_step2"
    states.mkdir(parents=True)
    (states / "mp_rank_00_model_states.pt").write_bytes(b"a pickle")


@pytest.mark.parametrize("stage", [None, 0, 2])
def test_deepspeeds_pickles_need_the_word_where_the_study_alone_asks_for_them(
    stage, tiny, tmp_path
):
    base = {"zero_stage": stage, "training": {"max_steps": 4, "bf16": False}}
    source = sweep_file(tmp_path / "x.yaml", tiny, **base)
    study = handed_over(tmp_path / "runs" / "x", source)
    spec = loader.load(source)
    check_code(study, spec, study.sweep_file)
    with_deepspeed_checkpoint(study.trial(1))
    with pytest.raises(ValueError, match=f"pickles.*{FLAG}"):
        check_code(study, spec, study.sweep_file)
    if stage is None:
        # The user's own file trains without DeepSpeed: this checkpoint was put there.
        with pytest.raises(ValueError, match="pickles"):
            check_code(study, spec, source)
    else:
        check_code(study, spec, source)
    done = invoke("resume", study.path)
    assert done.exit_code == 2, done.output
    assert FLAG in done.stderr
    assert train_one([str(study.trial(1).path)]) == 2


def test_checkpoints_of_a_finished_trial_count_where_it_is_continued(tiny, tmp_path):
    source = sweep_file(tmp_path / "x.yaml", tiny)
    study = handed_over(tmp_path / "runs" / "x", source)
    with_deepspeed_checkpoint(study.trial(0))
    spec = loader.load(source)
    check_code(study, spec, study.sweep_file)
    with pytest.raises(ValueError, match="pickles"):
        check_code(study, spec, study.sweep_file, extended=0)


CODE = {
    "trust_remote_code": {"model": {"trust_remote_code": True}},
    "kernel": {"model": {"attn_implementation": "somebody/attention"}},
    "objective": {"objective": {"name": "shutil:rmtree"}},
    "short objective": {"objective": "shutil:rmtree"},
    "metric": {"evaluation": {"metrics": ["shutil:rmtree"]}},
}


@pytest.mark.parametrize("changed", CODE.values(), ids=CODE)
def test_a_configuration_in_flight_that_the_sweep_file_does_not_know(changed, tiny, tmp_path):
    """Somebody has edited `config.json` of a trial: a worker would follow it."""
    source = sweep_file(tmp_path / "x.yaml", tiny)
    study = handed_over(tmp_path / "runs" / "x", source)
    spec = loader.load(source)
    for number in (0, 1):
        file = study.trial(number).config
        file.write_text(json.dumps(json.loads(file.read_text()) | changed))
        for given in (source, study.sweep_file):
            if number:
                with pytest.raises(ValueError, match=FLAG):
                    check_code(study, spec, given)
            else:
                check_code(study, spec, given)


SEARCHED = [
    ("model.trust_remote_code", [True, False]),
    ("model.trust_remote_code", {"value": True}),
    ("model.trust_remote_code", {"expression": "lora.r > 2"}),
    ("model.attn_implementation", ["eager", "somebody/attention"]),
    ("objective.name", ["sft", "shutil:rmtree"]),
]


@pytest.mark.parametrize(("key", "dimension"), SEARCHED, ids=str)
def test_code_that_only_some_trials_would_run(key, dimension, tiny, tmp_path):
    source = sweep_file(tmp_path / "x.yaml", tiny)
    content = yaml.safe_load(source.read_text())
    content["space"][key] = dimension
    source.write_text(yaml.safe_dump(content))
    spec = loader.examine(source).spec
    study = StudyFolder(tmp_path / "runs" / "x")
    study.write_record(StudyRecord(name="x", spec={}))
    check_code(study, spec, source)
    study.sweep_file.write_text(source.read_text())
    with pytest.raises(ValueError, match=FLAG):
        check_code(study, spec, study.sweep_file)


def test_a_study_without_code_needs_no_word(tiny, tmp_path):
    source = sweep_file(tmp_path / "x.yaml", tiny)
    study = handed_over(tmp_path / "runs" / "x", source)
    check_code(study, loader.load(source), study.sweep_file)
    sample.main([str(study.trial(1).path)])
