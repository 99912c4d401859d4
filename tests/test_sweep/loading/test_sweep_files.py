"""Sweep files are found by name, folder or path."""

from pathlib import Path

import pytest
from helpers.sweeps.sweep_files import PLAIN, write

from sweep.loading import sweep_files
from trial.config.errors import ConfigError


def test_find_knows_names_folders_and_paths(tmp_path, monkeypatch):
    folder = tmp_path / "spaces"
    rank = write(folder, PLAIN, "lora_rank.yaml")
    gaudi = write(folder, PLAIN, "gaudi/llama2_7b_lora.yml")
    mine = write(tmp_path, PLAIN, "mine/x.yaml")
    monkeypatch.chdir(tmp_path)
    assert sweep_files.find("lora_rank", folder) == Path("spaces/lora_rank.yaml")
    assert sweep_files.find("lora_rank.yaml", folder).resolve() == rank
    assert sweep_files.find("gaudi/llama2_7b_lora", folder).resolve() == gaudi
    assert sweep_files.find("mine/x.yaml", folder) == Path("mine/x.yaml")
    assert sweep_files.find(str(mine), folder) == mine
    monkeypatch.chdir(tmp_path / "mine")
    assert sweep_files.find("lora_rank", folder) == rank


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("lora_rnk", "did you mean lora_rank?"),
        ("llama2_7b", "did you mean gaudi/llama2_7b_lora?"),
        ("", ""),
        (".", ""),
        ("gaudi", ""),
        ("../spaces/lora_rank", "did you mean lora_rank?"),
        ("a\0b", ""),
        ("x" * 5000, ""),
    ],
)
def test_find_lists_the_names(tmp_path, name, near):
    folder = tmp_path / "spaces"
    write(folder, PLAIN, "lora_rank.yaml")
    write(folder, PLAIN, "gaudi/llama2_7b_lora.yml")
    with pytest.raises(ConfigError) as caught:
        sweep_files.find(name, folder)
    assert "in spaces/: gaudi/llama2_7b_lora, lora_rank" in str(caught.value)
    assert near in str(caught.value)
