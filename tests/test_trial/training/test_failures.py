"""A trial that fails has a result with the kind, message and step of its cause."""

import json
import math
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from helpers.training.models import make_tokenizer, model_config
from helpers.training.train import Material, Recorder
from transformers import AutoModelForCausalLM

from trial.preload import finish_imports
from trial.store.folders import TrialFolder
from trial.store.log_capture import capture
from trial.train import train
from trial.training.process_cache import ProcessCache


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    return Material(tmp_path_factory.mktemp("failures"))


def test_a_diverged_trial_stops_within_the_step(material):
    config = material.config(training={"learning_rate": 1e30, "warmup_ratio": 0.0})
    folder, result = material.train(config)
    assert (result.state, result.cause.kind) == ("failed", "diverged")
    assert result.eval_loss is None
    assert result.cause.step == result.steps + 1 <= 4
    assert "loss is nan at step" in result.cause.message
    assert "Traceback" in folder.log.read_text()
    assert folder.read_result() == result
    assert not folder.checkpoints.exists()


def test_a_model_that_is_nan_diverges_at_its_first_evaluation(material):
    path = material.root / "nan"
    model = AutoModelForCausalLM.from_config(model_config("llama", len(make_tokenizer())))
    with torch.no_grad():
        model.lm_head.weight[0, 0] = float("nan")
    model.save_pretrained(path)
    make_tokenizer().save_pretrained(path)
    config = material.config(
        model={"name_or_path": str(path)}, training={"eval_on_start": True, "max_steps": 3}
    )
    folder, result = material.train(config, recorder := Recorder())
    assert (result.cause.kind, result.cause.step, result.steps) == ("diverged", 0, 0)
    assert math.isnan(folder.read_evaluations()[0].eval_loss)
    assert recorder.evaluations == []


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_loss_above_the_bound_is_divergence(material, accumulation):
    training = {"gradient_accumulation_steps": accumulation, "eval_on_start": True}
    config = material.config(training=training, diverged_above=5.0)
    _, result = material.train(config)
    assert (result.cause.kind, result.cause.step) == ("diverged", 1)
    config = material.config(training={**training, "max_steps": 3}, diverged_above=6.5)
    assert material.train(config)[1].state == "complete"


class Raising(Recorder):
    """Raises an error when it is asked for the n-th time."""

    def __init__(self, error: Exception, asked: int) -> None:
        super().__init__(asked=asked)
        self.error = error

    def stop_reason(self, folder: TrialFolder):
        super().stop_reason(folder)
        if self.asked == self.at:
            raise self.error


def test_an_exception_is_a_result_and_the_process_is_not_reusable(material):
    process_cache, folder = ProcessCache(finish_imports), material.folder(material.config())
    result = train(folder, Raising(RuntimeError("boom\nsecond line"), 2 + 6), process_cache)
    assert (result.state, result.cause.kind) == ("failed", "error")
    assert result.cause.message == "RuntimeError: boom"
    assert result.cause.step == result.steps == 6
    assert result.seconds.total > 0
    assert "second line" in folder.log.read_text()
    assert not process_cache.reusable
    with pytest.raises(RuntimeError, match="fresh"):
        train(material.folder(material.config()), None, process_cache)


def test_ranks_that_would_drift_apart_are_refused(material, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    _, result = material.train(material.config())
    assert result.cause.message.startswith("several ranks on cpu need a `zero_stage`")


def run_module(folder, *arguments: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "trial", str(folder), *arguments]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ}
    )


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "no config.json"),
        ("{", "not JSON"),
        ('{"lora": {"rank": 4}, "training": {"lerning_rate": 1}}', "learning_rate"),
        ('{"model": {"name_or_path": "/no/such/folder"}}', "model.name_or_path"),
        ('{"version": 7}', "version"),
    ],
)
def test_a_wrong_folder_ends_with_2_and_no_traceback(tmp_path, content, expected):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    process = run_module(tmp_path)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 2
    assert expected in err
    assert "Traceback" not in out + err
    assert not (tmp_path / "train.log").exists()


def test_a_trial_by_hand_repeats_its_losses_and_goes_on_after_ctrl_c(material):
    config = material.config(training={"max_steps": 120, "eval_steps": 20})
    original, _ = material.train(config)
    copy = material.root / "elsewhere"
    copy.mkdir()
    (copy / "config.json").write_bytes(original.config.read_bytes())
    process = run_module(copy)
    lines = [process.stdout.readline() for _ in range(3)]
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130, out + err
    assert "120 steps on cpu" in lines[0]
    assert f"python -m trial {copy}" in out
    evaluated = [row.eval_loss for row in original.read_evaluations()]
    assert f"eval_loss {evaluated[0]:.6f}" in lines[1]
    process = run_module(copy)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, out + err
    assert "complete" in out
    assert [row.eval_loss for row in TrialFolder(copy).read_evaluations()] == evaluated
    assert json.loads((copy / "attempts.jsonl").read_text().splitlines()[1])["resumed_from"] > 20


def test_everything_a_process_prints_is_in_the_log(tmp_path, capfd):
    folder = TrialFolder(tmp_path)
    with capture(folder) as terminal:
        print("from python")
        os.write(2, b"from C\n")
        subprocess.run(["echo", "from a child"], check=True)
        print("to the person", file=terminal)
    with capture(folder, echo=True):
        os.write(1, b"twice\n")
    print("afterwards")
    log = folder.log.read_text()
    assert log.splitlines() == ["from python", "from C", "from a child", "twice"]
    assert capfd.readouterr().out == "to the person\ntwice\nafterwards\n"


def test_waiting_for_imports_is_charged_once(material):
    began = time.perf_counter()
    _, first = material.train(material.config(training={"max_steps": 1}))
    _, second = material.train(material.config(training={"max_steps": 1}))
    assert first.seconds.total + second.seconds.total <= time.perf_counter() - began + 60
    assert second.seconds.startup < 0.5
