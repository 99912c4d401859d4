"""What the words of a command name: a sweep file, a study."""

from __future__ import annotations

import yaml
from helpers.command import invoke
from helpers.results import make_study
from helpers.training import models


def test_mistakes_of_model_and_data_are_listed_with_those_of_the_file(tmp_path):
    model, rows = models.make_model(tmp_path / "model"), models.write_rows(tmp_path / "rows.jsonl")
    source = tmp_path / "tiny.yaml"
    base = {"model": {"name_or_path": str(model)}, "data": {"path": str(rows), "max_length": 32}}
    content = {"base": base, "space": {"lora.r": [2, 4]}, "sampler": "tpee"}
    source.write_text(yaml.safe_dump(content))
    said = "data.completion_column=answr"
    done = invoke("check", source, "--set", said, "--set", "lora.target_modules=[q_prj]")
    assert done.exit_code == 2
    lines = done.stderr.splitlines()
    assert len(lines) == 4
    for start in (f"{source}:", f"--set {said} base.data.completion_column: ", "--set lora."):
        assert any(line.startswith(start) for line in lines[1:])


def test_an_unknown_study_names_the_nearest(tmp_path):
    make_study(tmp_path / "tiny")
    done = invoke("status", "tinny", "--runs", tmp_path)
    assert done.exit_code == 2
    assert "did you mean tiny?" in done.stderr
