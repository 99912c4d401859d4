"""Two ranks train one trial: the losses of one rank, exact resumption after a kill, joint stops."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys

import pytest
from helpers.training.ranks import KILLED, run_rank, run_ranks
from helpers.training.train import Material, Recorder
from peft import PeftModel
from transformers import AutoModelForCausalLM

from trial.config.trial_config import TrialConfig
from trial.distributed.rank_group import TrialTakenOver
from trial.store.folders import TrialFolder
from trial.store.records import Attempt
from trial.train import train
from trial.training.checkpoints import Checkpoints

NOTHING = ("", 0)
TRAINING = {"max_steps": 8, "eval_steps": 2, "per_device_train_batch_size": 4}


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    return Material(tmp_path_factory.mktemp("ranks"))


@pytest.fixture(scope="module")
def processes():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        [
            "trial.training.attempt",
            "trial.devices.optimum_habana",
            "helpers.training.ranks",
            "deepspeed",
        ]
    )
    return context


@pytest.fixture
def train_two(processes):
    def train(folder: TrialFolder, *scripts: tuple[str, int]) -> list[int]:
        given = [(str(folder.path), script) for script in scripts or (NOTHING, NOTHING)]
        return run_ranks(processes, run_rank, *given)

    return train


def losses_of(folder: TrialFolder) -> dict[int, float]:
    return {row.step: row.eval_loss for row in folder.read_evaluations()}


def asked(folder: TrialFolder) -> set[str]:
    return {file.read_text() for file in folder.path.glob("asked-*")}


LONG = pytest.mark.faults


@pytest.mark.parametrize(
    "stage",
    [pytest.param(0, marks=LONG), pytest.param(1, marks=LONG), pytest.param(2, marks=LONG), 3],
)
def test_two_ranks_have_the_losses_of_one_and_a_kill_changes_nothing(material, train_two, stage):
    two = material.config(zero_stage=stage, lora={"lora_dropout": 0.0}, training=TRAINING)
    one = material.config(
        zero_stage=min(stage, 2),
        lora={"lora_dropout": 0.0},
        training={**TRAINING, "per_device_train_batch_size": 8},
    )
    whole, killed = material.folder(two), material.folder(two)
    assert train_two(whole) == [0, 0]
    alone, reference = material.train(one)
    result = whole.read_result()
    assert result.devices == 2
    assert result.state == "complete"
    assert losses_of(whole) == pytest.approx(losses_of(alone), rel=1e-6)
    assert (result.tokens, result.trainable_parameters) == (
        reference.tokens,
        reference.trainable_parameters,
    )
    # The saved adapter is the whole one, not a rank's part.
    base = AutoModelForCausalLM.from_pretrained(material.model)
    PeftModel.from_pretrained(base, whole.adapter)
    assert (whole.adapter / "adapter_model.safetensors").stat().st_size == (
        alone.adapter / "adapter_model.safetensors"
    ).stat().st_size

    # Asked before loading, before the first step and after each: rank 1 dies after step 5.
    assert train_two(killed, NOTHING, ("die", 2 + 5)) == [KILLED, KILLED]
    assert killed.read_result() is None
    assert Checkpoints(killed).newest().name == "checkpoint-4"
    assert train_two(killed) == [0, 0]
    assert losses_of(killed) == losses_of(whole)
    assert killed.read_result().eval_loss == result.eval_loss
    assert killed.read_result().tokens == result.tokens
    assert [row.resumed_from for row in killed.read_attempts()] == [0, 4]
    weights = "adapter/adapter_model.safetensors"
    assert (killed.path / weights).read_bytes() == (whole.path / weights).read_bytes()


@pytest.mark.parametrize(
    "stage",
    [0, pytest.param(1, marks=LONG), pytest.param(2, marks=LONG), pytest.param(3, marks=LONG)],
)
def test_a_kill_of_two_ranks_in_the_second_epoch_changes_nothing(material, train_two, stage):
    """Six steps an epoch; with dropout, whose draws differ by rank."""
    training = {"max_steps": 14, "eval_steps": 4, "per_device_train_batch_size": 8}
    config = material.config(zero_stage=stage, lora={"lora_dropout": 0.2}, training=training)
    whole, killed = material.folder(config), material.folder(config)
    assert train_two(whole) == [0, 0]
    assert train_two(killed, ("die", 2 + 10), NOTHING) == [KILLED, KILLED]
    assert Checkpoints(killed).newest().name == "checkpoint-8"
    assert train_two(killed) == [0, 0]
    assert [row.resumed_from for row in killed.read_attempts()] == [0, 8]
    assert losses_of(killed) == losses_of(whole)
    assert killed.read_evaluations()[-1].epoch > 2
    weights = "adapter/adapter_model.safetensors"
    assert (killed.path / weights).read_bytes() == (whole.path / weights).read_bytes()


def test_both_ranks_obey_the_control_of_rank_0_at_the_same_step(material, train_two):
    config = material.config(zero_stage=1, training=TRAINING)
    folder = material.folder(config)
    # The control of rank 1 asks for a prune earlier: it is not read.
    assert train_two(folder, ("interrupt", 2 + 5), ("prune", 2 + 3)) == [0, 0]
    assert folder.read_result() is None
    assert Checkpoints(folder).newest().name == "checkpoint-5"
    assert asked(folder) == {"7"}
    assert train_two(folder, ("prune", 2 + 2), NOTHING) == [0, 0]
    result = folder.read_result()
    assert (result.state, result.steps) == ("pruned", 7)
    assert asked(folder) == {"4"}
    assert not folder.checkpoints.exists()


def test_a_loss_that_only_one_rank_sees_ends_both(material, train_two):
    config = material.config(
        zero_stage=1, diverged_above=1.0, training={**TRAINING, "eval_strategy": "no"}
    )
    folder = material.folder(config)
    assert train_two(folder) == [0, 0]
    result = folder.read_result()
    assert (result.cause.kind, result.cause.step) == ("diverged", 1)


class RestartedElsewhere(Recorder):
    """Another process starts the same trial when this control is asked for the n-th time."""

    def stop_reason(self, folder: TrialFolder) -> None:
        super().stop_reason(folder)
        if self.asked == self.at:
            folder.append_attempt(Attempt(started=0.0, host="elsewhere", pid=1, device="cpu"))


@pytest.mark.parametrize("asked", [1, 2, 2 + 3, 2 + 7])
def test_a_process_whose_trial_was_restarted_elsewhere_writes_no_more(material, asked):
    """A node that is cut off from the cluster trains on for minutes."""
    folder = material.folder(material.config(training=TRAINING))
    with pytest.raises(TrialTakenOver):
        train(folder, RestartedElsewhere(asked=asked), material.process_cache())
    assert folder.read_result() is None
    assert all(row.step <= asked for row in folder.read_evaluations())
    assert not folder.adapter.exists()
    result = train(folder, None, material.process_cache())
    assert result.state == "complete"


def command(folder: TrialFolder) -> list[str]:
    return [sys.executable, "-m", "trial", str(folder.path), "--world-size", "2"]


def test_the_command_starts_ranks_and_ctrl_c_reaches_them(material):
    config = material.config(zero_stage=0, training={**TRAINING, "max_steps": 10**6})
    folder = material.folder(config)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    running = subprocess.Popen(
        command(folder), env=environment, stdout=subprocess.PIPE, text=True, stderr=subprocess.PIPE
    )
    lines = iter(running.stdout.readline, "")
    assert next(line for line in lines if line.startswith("step"))
    running.send_signal(signal.SIGINT)
    rest, errors = running.communicate(timeout=60)
    assert running.returncode == 130, errors
    assert "interrupted; goes on with" in rest
    newest = Checkpoints(folder).newest()
    assert json.loads((newest / "progress.json").read_text())["step"] > 0
    assert (folder.path / "train.rank1.log").exists()


@pytest.mark.parametrize(("stage", "size", "said"), [(None, 2, "zero_stage"), (1, 0, "at least 1")])
def test_ranks_that_cannot_start_are_refused(material, stage, size, said):
    config: TrialConfig = material.config(zero_stage=stage)
    folder = material.folder(config)
    done = subprocess.run(
        [*command(folder)[:-1], str(size)], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 2
    assert said in done.stderr
    assert not folder.attempts.exists()
