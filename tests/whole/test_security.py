"""Nothing runs code that nobody asked for; paths stay inside; nothing listens to strangers."""

from __future__ import annotations

import json
import logging
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from helpers import models
from helpers.command import invoke
from helpers.paths import ROOT

from sweep.file_checks import check_files
from sweep.open_study import RunOptions, stored_storage, study_folder
from sweep.spec.dimension import Choices
from sweep.spec.spec import SweepSpec
from sweep.study.verify import verify
from trial.config.errors import ConfigError
from trial.config.sections import ModelConfig
from trial.config.trial_config import TrialConfig, parse
from trial.model import load
from trial.store.folders import StudyFolder, TrialFolder
from trial.store.log_capture import capture
from trial.store.records import StudyRecord
from trial.train import train
from trial.training.checkpoints import Checkpoints


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("tiny")
    return models.make_model(folder / "model"), models.write_rows(folder / "r.jsonl")


class Bomb:
    """Runs a command when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch '{self.marker}'",)


def test_the_bomb_works(tmp_path):
    pickle.loads(pickle.dumps(Bomb(tmp_path / "went-off")))
    assert (tmp_path / "went-off").exists()


# Sweep files

TAGS = [
    "!!python/object/apply:os.system ['touch {marker}']",
    "!!python/object/new:subprocess.Popen [['touch', '{marker}']]",
    "!!python/name:os.system",
    "!!python/module:os",
]


@pytest.mark.parametrize("tag", TAGS)
@pytest.mark.parametrize("place", ["name", "base", "space", "linked"])
def test_no_tag_of_a_sweep_file_runs_code(tag, place, tmp_path):
    marker = tmp_path / "went-off"
    text = tag.format(marker=marker)
    source, base = tmp_path / "x.yaml", tmp_path / "base.yaml"
    rows = {
        "name": f"name: {text}\nspace: {{lora.r: [2]}}\n",
        "base": f"base: {{device: {text}}}\nspace: {{lora.r: [2]}}\n",
        "space": f"space: {{lora.r: {text}}}\n",
        "linked": "base: base.yaml\nspace: {lora.r: [2]}\n",
    }
    source.write_text(rows[place] + "sampler: grid\n")
    base.write_text(f"device: {text}\n")
    done = invoke("check", source)
    assert done.exit_code == 2, done.output
    assert "Traceback" not in done.stderr
    assert not marker.exists()


EXPRESSIONS = ["__import__('os').system('touch {m}')", "open('{m}', 'w')", "().__class__"]


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_no_expression_of_a_sweep_file_runs_code(expression, tmp_path):
    marker = tmp_path / "went-off"
    space = {"lora.r": [2], "lora.lora_alpha": {"expression": expression.format(m=marker)}}
    content = {"space": space, "sampler": "grid"}
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(content))
    done = invoke("check", str(tmp_path / "x.yaml"))
    assert done.exit_code == 2, done.output
    assert "Traceback" not in done.stderr
    assert not marker.exists()


# Paths

NAMES = ["..", ".", "", "../x", "a/b", "/tmp/x", ".hidden", "x\0y"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("option", ["--study", "--fork"])
def test_a_study_cannot_be_named_out_of_its_folder(name, option, tmp_path):
    given = {"study": name} if option == "--study" else {"fork": name}
    if not name:
        given = {"study": name}
        assert study_folder("x", RunOptions(runs=tmp_path, **given)).name == "x"
        return
    with pytest.raises(ConfigError, match="a plain folder name"):
        study_folder("x", RunOptions(runs=tmp_path, **given))


@pytest.mark.parametrize("name", ["../x", "/tmp/x", "a/b", ".x", ".."])
def test_a_sweep_file_cannot_name_a_study_out_of_its_folder(name, tmp_path):
    content = {"name": name, "space": {"lora.r": [2]}, "sampler": "grid"}
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(content))
    done = invoke("check", str(tmp_path / "x.yaml"))
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
    words = ["run", str(tmp_path / "x.yaml"), "--runs", str(tmp_path / "runs")]
    done = invoke(*words)
    assert done.exit_code == 2, done.output
    assert "leads out of" in done.stderr
    done = invoke("report", str(study.path))
    assert done.exit_code == 2, done.output
    assert "leads out of" in done.stderr
    assert sorted(outside.rglob("*")) == before


def test_a_link_within_the_study_is_fine(tmp_path):
    study = make_study(StudyFolder(tmp_path / "runs" / "x"))
    (study.path / "best").symlink_to(study.trial(0).path)
    check_files(study)


def test_a_linked_runs_folder_is_fine(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "runs").symlink_to(tmp_path / "disk")
    check_files(make_study(StudyFolder(tmp_path / "runs" / "x")))


# Models and checkpoints


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


def test_a_checkpoint_of_the_trials_own_user_is_everybodys_to_go_on_from(tmp_path, monkeypatch):
    study = make_study(StudyFolder(tmp_path / "runs" / "x"))
    with_checkpoint(study)
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 4242)
    check_files(study)


def with_pickled_weights(source: Path, folder: Path, marker: Path) -> Path:
    """The model with its weights as a pickle that does something else as well."""
    folder.mkdir()
    for file in source.iterdir():
        if file.suffix != ".safetensors":
            (folder / file.name).write_bytes(file.read_bytes())
    torch.save({"lm_head.weight": Bomb(marker)}, folder / "pytorch_model.bin")
    return folder


def test_a_pickle_among_the_base_weights_runs_nothing(tiny, tmp_path):
    marker = tmp_path / "went-off"
    folder = with_pickled_weights(tiny[0], tmp_path / "model", marker)
    with pytest.raises(Exception, match=r"(?i)weights_only|unsupported|pickle"):
        load.load_base(ModelConfig(name_or_path=str(folder)), None)
    assert not marker.exists()


def tiny_trial(folder: Path, tiny: tuple[Path, Path], **changes) -> TrialFolder:
    content = {
        "model": {"name_or_path": str(tiny[0])},
        "data": {"path": str(tiny[1]), "max_length": 32},
        "training": {"max_steps": 6, "eval_steps": 3, "warmup_ratio": 0.0},
        "device": "cpu",
        **changes,
    }
    return TrialFolder.create(folder, parse(content))


class Interrupting:
    """Lets the trial run to its first evaluation and asks it to leave."""

    def __init__(self) -> None:
        self.reason: str | None = None

    def started(self, folder, device, max_steps): ...

    def alive(self, folder): ...

    def evaluated(self, folder, evaluation):
        self.reason = "interrupt"

    def stop_reason(self, folder):
        return self.reason


@pytest.mark.parametrize("name", ["optimizer.pt", "rng_state.pth", "scheduler.pt"])
def test_a_pickle_in_a_checkpoint_runs_nothing(name, tiny, tmp_path):
    folder = tiny_trial(tmp_path / "trial", tiny)
    assert train(folder, Interrupting()) is None
    marker, newest = tmp_path / "went-off", Checkpoints(folder).newest()
    assert (newest / name).exists()
    torch.save(Bomb(marker), newest / name)
    result = train(folder)
    assert result.state == "failed"
    assert result.cause.kind == "error"
    assert not marker.exists()


def foreign_model(source: Path, folder: Path, marker: Path) -> Path:
    """A model that brings its own configuration class, in a Python file beside it."""
    folder.mkdir()
    for file in source.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "foreign", "auto_map": {"AutoConfig": "foreign.ForeignConfig"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "foreign.py").write_text(
        f"open({str(marker)!r}, 'w').close()\n"
        "from transformers import LlamaConfig\n"
        "class ForeignConfig(LlamaConfig):\n    model_type = 'foreign'\n"
    )
    return folder


def test_code_beside_a_model_runs_only_when_it_is_asked_for_and_is_announced(
    tiny, tmp_path, monkeypatch
):
    from transformers import dynamic_module_utils

    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "cache"))
    marker, trial = tmp_path / "went-off", TrialFolder(tmp_path)
    folder = foreign_model(tiny[0], tmp_path / "model", marker)
    off = ModelConfig(name_or_path=str(folder))
    with capture(trial), pytest.raises(ValueError, match=r"trust_remote_code|model type"):
        load.load_base(off, None)
    assert not marker.exists()
    assert "running Python files" not in trial.log.read_text()
    asked = off.model_copy(update={"trust_remote_code": True})
    with capture(trial), pytest.raises(ValueError, match="Unrecognized configuration class"):
        load.load_base(asked, None)
    assert marker.exists()
    assert f"running Python files that come with {folder}" in trial.log.read_text()
    logging.getLogger("trial").handlers.clear()


def test_adapters_are_safetensors_only(tiny, tmp_path):
    folder = tiny_trial(tmp_path / "trial", tiny)
    assert train(folder).state == "complete"
    names = {path.name for path in folder.adapter.iterdir()}
    assert "adapter_model.safetensors" in names
    assert not {name for name in names if name.endswith((".bin", ".pt", ".pth", ".pkl"))}


# The network and the environment

LISTEN = """
import psutil
from sweep.ray_backend.executor import RayExecutor
executor = RayExecutor(device="cpu", concurrency=1, expected_jobs=1)
executor.start()
try:
    me = psutil.Process()
    for process in [me, *me.children(recursive=True)]:
        for found in process.net_connections(kind="inet"):
            if found.status == psutil.CONN_LISTEN:
                print("LISTEN", process.name(), found.laddr.ip)
finally:
    executor.close()
"""


def test_ray_listens_on_loopback_alone():
    done = subprocess.run(
        [sys.executable, "-c", LISTEN],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    found = [line.split() for line in done.stdout.splitlines() if line.startswith("LISTEN")]
    assert {"gcs_server", "raylet"} <= {name for _, name, *_ in found}
    assert {line[-1].removeprefix("::ffff:") for line in found} <= {"127.0.0.1", "::1"}, found


SECRETS = {
    "WANDB_API_KEY": "wandb-sesame",
    "HF_TOKEN": "hf_sesame",
    "AWS_SECRET_ACCESS_KEY": "aws-sesame",
    "AWS_SESSION_TOKEN": "session-sesame",
}


def test_secrets_of_the_environment_reach_no_file_and_no_terminal(tiny, tmp_path):
    content = {
        "base": {
            "model": {"name_or_path": str(tiny[0])},
            "data": {"path": str(tiny[1]), "max_length": 32},
            "training": {"max_steps": 4, "eval_steps": 2, "learning_rate": 1e30},
        },
        "space": {"training.seed": [1, 2]},
        "sampler": "grid",
    }
    source = tmp_path / "x.yaml"
    source.write_text(yaml.safe_dump(content))
    done = subprocess.run(
        [sys.executable, "-m", "sweep", "run", str(source), "--runs", str(tmp_path / "runs")],
        env={**os.environ, **SECRETS, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=240,
    )
    study = StudyFolder(tmp_path / "runs" / "x")
    # Failed trials write the most: tracebacks, causes, logs.
    assert {folder.read_result().state for _, folder in study.all_trials()} == {"failed"}
    assert "sesame" not in done.stdout + done.stderr
    files = [path for path in (tmp_path / "runs").rglob("*") if path.is_file()]
    assert {"study.json", "train.log", "report.md"} <= {path.name for path in files}
    assert [path for path in files if b"sesame" in path.read_bytes()] == []
    assert verify(study, stored_storage(study)) == []
