"""A model folder and rows that a test may damage."""

import json

import pytest
from helpers.training.preflight import ROWS

from trial.builtin import model_path
from trial.config.sections import DataConfig, ModelConfig
from trial.config.trial_config import TrialConfig


@pytest.fixture
def rows_file(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in ROWS))
    return str(path)


@pytest.fixture
def model(tmp_path):
    """A whole small model folder of its own, to be damaged."""
    folder = tmp_path / "model"
    folder.mkdir()
    for file in model_path().iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


@pytest.fixture
def config(model, rows_file):
    return TrialConfig(
        model=ModelConfig(name_or_path=str(model)), data=DataConfig(path=rows_file, max_length=64)
    )
