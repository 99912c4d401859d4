"""Problems that keep a trial from starting, by key; and that a good one has none."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.training.preflight import changed, only_problem

from trial.config.sections import DataConfig, DeepSpeedSection, ModelConfig
from trial.config.trial_config import TrialConfig
from trial.devices import detect
from trial.preflight.checks import preflight


def test_good_trials_pass(config):
    assert preflight(TrialConfig()) == []
    assert preflight(config) == []


def test_the_check_loads_no_torch(config):
    program = (
        "import json, sys; from trial.preflight.checks import preflight;"
        "from trial.config.trial_config import parse;"
        "assert preflight(parse(json.loads(sys.argv[1]))) == [];"
        "print([name for name in ('torch', 'transformers', 'peft') if name in sys.modules])"
    )
    content = json.dumps(config.model_dump(mode="json"))
    done = subprocess.run(
        [sys.executable, "-c", program, content], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_every_mistake_at_once(config):
    bad = changed(config, "data", path="nowhere/rows.csv", prompt_format="lama2", max_length=9999)
    bad = changed(bad, "lora", target_modules=["q_prooj", "v_proj"])
    assert {problem.key: problem.near for problem in preflight(bad)} == {
        "data.max_length": "",
        "lora.target_modules": "q_proj",
        "data.prompt_format": "llama2",
        "data.path": "",
    }


def test_data_is_read_again_when_the_file_changes(config, rows_file):
    assert preflight(config) == []
    Path(rows_file).write_text(json.dumps({"question": "q", "answer": ""}))
    assert "at least one row" in only_problem(config).expected
    Path(rows_file).write_text('{"question": "q", "anser": "a"}')
    assert only_problem(config).key == "data.completion_column"


def test_an_eval_file_is_looked_at_too(config):
    assert only_problem(changed(config, "data", eval_path="none/x.csv")).key == "data.eval_path"


@pytest.mark.parametrize(
    ("name", "content", "part"),
    [
        ("ds.json", '{"zero_optimization": {"stage": 2}}', None),
        ("ds.json", "[1]", "not a JSON object"),
        ("ds.json", "{'a': 1}", "line 1"),
        ("sd.json", "{}", "an existing JSON file"),
    ],
)
def test_deepspeed_files(config, tmp_path, name, content, part):
    (tmp_path / name).write_text(content)
    section = DeepSpeedSection(config=str(tmp_path / "ds.json"))
    problems = preflight(config.model_copy(update={"deepspeed": section}))
    assert [problem.key for problem in problems] == (["deepspeed.config"] if part else [])
    assert part is None or part in problems[0].expected


def test_devices(config, tmp_path, monkeypatch):
    monkeypatch.setattr(detect, "CUDA_FILES", (str(tmp_path / "nvidia0"),))
    cuda = config.model_copy(update={"device": "cuda"})
    assert only_problem(cuda).key == "device"
    assert preflight(cuda, here=False) == []
    (tmp_path / "nvidia0").touch()
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert preflight(cuda) == []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert only_problem(cuda).key == "device"

    hpu = config.model_copy(update={"device": "hpu"})
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    if "habana_frameworks" not in sys.modules and not detect.has_gaudi_software():
        assert only_problem(hpu).key == "device"
    (tmp_path / "habana_frameworks").mkdir()
    (tmp_path / "habana_frameworks" / "__init__.py").touch()
    assert preflight(hpu) == []


@pytest.mark.parametrize("report_to", ["mlflow", ["tensorboard", "mlflow"]])
def test_a_tracker_that_is_not_installed_is_found_before_any_trial(monkeypatch, report_to):
    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n: None if n == "mlflow" else there(n))
    wanted = TrialConfig(
        model=ModelConfig(name_or_path="builtin:tiny-llama"),
        data=DataConfig(path="builtin:python-docs"),
        training={"report_to": report_to},
    )
    (problem,) = preflight(wanted)
    assert str(problem) == "training.report_to: an installed package 'mlflow', got 'mlflow'"
    assert preflight(wanted, here=False) == []
