"""A tiny model and a few rows, shared by the tests that train."""

from pathlib import Path

import pytest
from helpers.training import models


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> tuple[Path, Path]:
    """The folder of a model, and a file of rows."""
    folder = tmp_path_factory.mktemp("tiny")
    return models.make_model(folder / "model"), models.write_rows(folder / "r.jsonl")
