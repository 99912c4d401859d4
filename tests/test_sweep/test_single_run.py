"""A single run by the command: which file it means."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.command import invoke

from sweep import single_run


@pytest.mark.parametrize(
    ("exists", "name", "means"),
    [
        ("a.yaml", "a.yaml", "a.yaml"),
        ("a.yaml", "a", "a.yaml"),
        ("config/a.yaml", "a.yaml", "config/a.yaml"),
        ("config/a.yaml", "a", "config/a.yaml"),
        ("config/a.yaml", "b", "b"),
    ],
)
def test_a_configuration_by_name_is_found_as_hydra_finds_it(
    tmp_path, monkeypatch, exists, name, means
):
    (tmp_path / "config").mkdir()
    (tmp_path / exists).touch()
    monkeypatch.chdir(tmp_path)
    assert single_run.named_config(name) == Path(means)


@pytest.mark.parametrize("words", [[], ["a.yaml", "--config-name", "a.yaml"]])
def test_one_file_is_trained(words):
    done = invoke("train", *words)
    assert done.exit_code == 2
    assert "CONFIG: a configuration, or --config-name; one of them" in done.stderr


def test_a_name_that_is_nowhere_is_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = invoke("train", "--config-name=nowhere.yaml")
    assert done.exit_code == 2
    assert "nowhere.yaml" in done.stderr
