"""Neither pickled weights nor checkpoints run code; a model's own code runs only when asked for."""

from __future__ import annotations

import json
import logging
import os
import pickle
from pathlib import Path

import pytest
import torch

from trial.config.sections import ModelConfig
from trial.config.trial_config import parse
from trial.model import load
from trial.store.folders import TrialFolder
from trial.store.log_capture import capture
from trial.train import train
from trial.training.checkpoints import Checkpoints


class Bomb:
    """Runs a command when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch '{self.marker}'",)


def test_the_bomb_works(tmp_path):
    pickle.loads(pickle.dumps(Bomb(tmp_path / "went-off")))
    assert (tmp_path / "went-off").exists()


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
    # Who can write the file can write the list of files as well.
    checkpoints = Checkpoints(folder)
    checkpoints.complete(checkpoints.read_progress(newest))
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
