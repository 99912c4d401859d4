"""Which configurations a rehearsal covers, what it refuses and where, and what it remembers."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest
import yaml
from helpers.command import invoke, run_command
from helpers.paths import ROOT
from helpers.sweeps.spaces import make_spec
from helpers.training.models import make_model, write_rows

from sweep.planning import rehearsal
from sweep.planning.rehearsal import Rehearsal, RehearsalError, request_for
from trial.config.errors import Problem
from trial.rehearsal.request import known_sound


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parts")
    return make_model(folder / "model", hidden=16), write_rows(folder / "rows.jsonl", 24)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def base_of(parts, **training):
    model, rows = parts
    return {
        "model": {"name_or_path": str(model)},
        "data": {"path": str(rows), "max_length": 48},
        "training": {"max_steps": 2, **training},
        "device": "cpu",
    }


def sweep_file(path, parts, space, **training):
    content = {"base": base_of(parts, **training), "space": space, "sampler": "grid"}
    path.write_text(yaml.safe_dump({**content, "pruner": "none"}))
    return path


def test_every_value_is_rehearsed_and_numbers_alone_make_no_difference(parts, tmp_path):
    models = [str(parts[0])] + [str(tmp_path / f"model{number}") for number in range(27)]
    for folder in models[1:]:
        shutil.copytree(parts[0], folder)
    space = {
        "model.name_or_path": models,
        "lora.r": [2, 4, 8, 16],
        "lora.lora_alpha": [8, 16, 32],
        "lora.lora_dropout": [0.0, 0.1],
        "lora.target_modules": ["all-linear", ".*q_proj"],
        "training.optim": ["adamw_torch", "sgd"],
        "training.lr_scheduler_type": ["cosine", "linear"],
        "data.max_length": [16, 48],
    }
    configs = request_for(make_spec(space, base=base_of(parts))).configs
    assert {config.model.name_or_path for config in configs} == set(models)
    assert {config.lora.r for config in configs} == {2, 4, 8, 16}
    assert {str(config.lora.target_modules) for config in configs} == {"all-linear", ".*q_proj"}
    pairs = {(c.training["optim"], c.training["lr_scheduler_type"]) for c in configs}
    assert len(pairs) == 4
    assert {config.data.max_length for config in configs} == {16, 48}
    assert len(configs) <= 3 * rehearsal.MOST


def test_one_number_more_or_less_needs_no_further_rehearsal(parts):
    space = {"lora.lora_alpha": {"low": 1.0, "high": 9.0}, "lora.lora_dropout": [0.0, 0.1, 0.2]}
    assert len(request_for(make_spec(space, base=base_of(parts))).configs) == 1


@pytest.mark.parametrize(("device", "here", "wanted"), [("cpu", True, "cpu"), ("hpu", True, "")])
def test_a_device_that_one_process_holds_is_left_alone(parts, device, here, wanted):
    spec = make_spec({"lora.r": [2]}, base={**base_of(parts), "device": device})
    assert request_for(spec, here).device == wanted
    assert request_for(spec, here=False).device == ""


def test_a_model_that_is_not_on_this_machine_is_left_out(parts):
    space = {"model.name_or_path": [str(parts[0]), "meta-llama/Llama-2-7b-hf"]}
    (config,) = request_for(make_spec(space, base=base_of(parts))).configs
    assert config.model.name_or_path == str(parts[0])


def test_check_names_the_line_of_what_a_worker_would_refuse_and_quick_does_not(parts, tmp_path):
    source = sweep_file(
        tmp_path / "sweep.yaml", parts, {"training.optim": ["adamw_torch", "adamw_bnb_8bit"]}
    )
    done = invoke("check", source)
    line = source.read_text().splitlines().index("  training.optim:") + 1
    assert done.exit_code == 2, done.output
    assert f"{source}:{line} space.training.optim: what a worker can train with" in done.stderr
    assert "bitsandbytes" in done.stderr
    assert done.stderr.count("space.training.optim") == 1
    assert invoke("check", source, "--quick").exit_code == 0


def test_a_new_sweep_that_is_refused_leaves_no_study(parts, tmp_path):
    source = sweep_file(
        tmp_path / "sweep.yaml", parts, {"training.optim": ["adamw_torch", "adamw_bnb_8bit"]}
    )
    done = run_command("run", source, "--runs", tmp_path / "runs")
    assert done.returncode == 2, done.stdout + done.stderr
    assert "nothing was started" in done.stderr
    assert "space.training.optim: what a worker can train with" in done.stderr
    assert not (tmp_path / "runs" / "sweep").exists()


def test_a_sound_sweep_is_rehearsed_once_until_something_changes(parts, tmp_path, monkeypatch):
    model, rows = shutil.copytree(parts[0], tmp_path / "model"), tmp_path / "rows.jsonl"
    shutil.copy(parts[1], rows)
    source = sweep_file(tmp_path / "sweep.yaml", (model, rows), {"lora.r": [2, 4]})
    started = []
    start = Rehearsal.start
    monkeypatch.setattr(Rehearsal, "start", lambda self: started.append(1) or start(self))
    for _ in range(2):
        assert invoke("check", source).exit_code == 0
    assert len(started) == 1
    spec = make_spec({"lora.r": [2, 4]}, base=base_of((model, rows)))
    key = request_for(spec).key()
    for file in (rows, model / "config.json"):
        file.write_text(file.read_text() + "\n")
        assert request_for(spec).key() != key
        key = request_for(spec).key()
    assert not known_sound(key)
    # Its tokens are those that a trial will look for.
    assert list((tmp_path / "cache" / "gaudi-sweep" / "tokens").iterdir())


def test_a_rehearsal_that_dies_refuses_nothing_and_says_so(parts, monkeypatch):
    words = "import os; os.write(2, b'killed by the test'); os.kill(os.getpid(), 9)"
    popen = subprocess.Popen
    monkeypatch.setattr(
        rehearsal.subprocess,
        "Popen",
        lambda command, **options: popen([sys.executable, "-c", words], **options),
    )
    run = Rehearsal(request_for(make_spec({"lora.r": [2]}, base=base_of(parts))))
    run.start()
    run.refuse()
    assert "without a verdict: killed by the test" in run.failure
    assert not run.known


def test_the_driver_loads_no_torch_for_it(parts, tmp_path):
    source = sweep_file(tmp_path / "sweep.yaml", parts, {"lora.r": [2]})
    code = (
        "import sys; from sweep.loading.loader import load; from pathlib import Path\n"
        "from sweep.planning.rehearsal import Rehearsal, request_for\n"
        f"print(Rehearsal(request_for(load(Path({str(source)!r})))).known)\n"
        "print([n for n in ('torch', 'transformers', 'peft') if n in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.split("\n")[:2] == ["False", "[]"]


def test_a_refused_answer_comes_back_as_it_was(parts, monkeypatch):
    problem = Problem("lora.r", "what a worker can train with", "3", "4", "x:1")
    text = json.dumps([{"key": "lora.r", "expected": problem.expected, "got": "3", "near": "4",
                        "where": "x:1"}])  # fmt: skip
    words = "import sys, pathlib; pathlib.Path(sys.argv[1]).write_text(sys.argv[2])"
    popen = subprocess.Popen
    monkeypatch.setattr(
        rehearsal.subprocess,
        "Popen",
        lambda command, **options: popen(
            [sys.executable, "-c", words, command[-1], text], **options
        ),
    )
    run = Rehearsal(request_for(make_spec({"lora.r": [2]}, base=base_of(parts))))
    run.start()
    with pytest.raises(RehearsalError) as caught:
        run.refuse()
    assert caught.value.problems == (problem,)
