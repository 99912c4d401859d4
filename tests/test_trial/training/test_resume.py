"""A killed or interrupted trial has the losses and weights of an undisturbed one, to the bit."""

import multiprocessing
import shutil
import signal

import pytest
import torch
from helpers.training.train import Material, Recorder, train_and_die, train_to_end

from trial.preload import finish_imports
from trial.store.folders import TrialFolder
from trial.train import train
from trial.training.checkpoints import COMPLETE, Checkpoints, Measurement, TrialProgress
from trial.training.process_cache import ProcessCache

# Eleven steps an epoch: what follows step 15 is the middle of the second.
TRAINING = {"max_steps": 26, "eval_steps": 5}


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    return Material(tmp_path_factory.mktemp("resume"))


@pytest.fixture(scope="module")
def processes():
    """Fresh processes without import time: the imports are made once, in the fork server."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        [
            "trial.training.attempt",
            "trial.devices.optimum_habana",
            "helpers.training.train",
            "deepspeed",
        ]
    )
    return context


def run_in(processes, target, *arguments) -> int:
    process = processes.Process(target=target, args=(*arguments, torch.get_num_threads()))
    process.start()
    process.join(120)
    return process.exitcode


def losses_of(folder: TrialFolder) -> dict[int, float]:
    return {row.step: row.eval_loss for row in folder.read_evaluations()}


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"zero_stage": 1, "deepspeed": {"offload_optimizer": "cpu"}},
        {"zero_stage": 3},
        {"lora": {"r": 0}, "training": {**TRAINING, "learning_rate": 1e-3}},
        {"training": {**TRAINING, "group_by_length": True, "gradient_accumulation_steps": 2}},
    ],
    ids=str,
)
def test_a_killed_trial_ends_as_if_nothing_had_happened(material, processes, sections):
    config = material.config(**{"training": TRAINING, **sections})
    killed, whole = material.folder(config), material.folder(config)
    # Asked once before loading, once before the first step, then after every step: step 17.
    assert run_in(processes, train_and_die, str(killed.path), 19) == -signal.SIGKILL
    assert killed.read_result() is None
    # Leftovers of a kill in the middle of a save, newer than the whole checkpoint.
    shutil.copytree(killed.checkpoints / "checkpoint-15", killed.checkpoints / "checkpoint-16")
    (killed.checkpoints / "checkpoint-16" / COMPLETE).unlink()
    (killed.checkpoints / "checkpoint-17").mkdir()

    resumed = train(killed, None, material.process_cache())
    reference = train(whole, None, material.process_cache())
    assert resumed.state == reference.state == "complete"
    assert losses_of(killed) == losses_of(whole)
    assert resumed.eval_loss == reference.eval_loss
    assert resumed.tokens == reference.tokens
    assert [attempt.resumed_from for attempt in killed.read_attempts()] == [0, 15]
    weights = (killed.adapter if config.lora.r else killed.model).glob("*.safetensors")
    for file in weights:
        other = (whole.adapter if config.lora.r else whole.model) / file.name
        assert file.read_bytes() == other.read_bytes()


@pytest.fixture(scope="module")
def undisturbed(material):
    """A trial and its result, for each evaluation strategy."""
    by_epoch = {"max_steps": -1, "num_train_epochs": 2, "eval_strategy": "epoch"}
    return {
        "steps": material.train(material.config(training={**TRAINING, "eval_on_start": True})),
        "epoch": material.train(material.config(training=by_epoch)),
    }


@pytest.mark.parametrize(("asked", "stage"), [(1, None), (2, None), (7, 0), (13, 2), (20, None)])
def test_an_interrupted_trial_goes_on_as_if_nothing_had_happened(
    material, undisturbed, asked, stage
):
    whole, reference = undisturbed["steps"]
    config = whole.read_config().model_copy(update={"zero_stage": stage})
    folder = material.folder(config)
    assert train(folder, Recorder("interrupt", asked), material.process_cache()) is None
    assert not folder.result.exists()
    newest = Checkpoints(folder).newest()
    assert (newest.name if newest else None) == (f"checkpoint-{asked - 2}" if asked > 2 else None)
    result = train(folder, None, material.process_cache())
    # Stages 0 to 2 round as no DeepSpeed does, on one rank.
    assert losses_of(folder) == losses_of(whole)
    assert result.eval_loss == reference.eval_loss
    assert result.initial_eval_loss == reference.initial_eval_loss
    assert result.tokens == reference.tokens


@pytest.mark.parametrize("asked", [5, 13, 14])
def test_interrupts_around_the_end_of_an_epoch(material, undisturbed, asked):
    """Step 11 ends the first epoch and is its evaluation; step 12 is none."""
    whole, reference = undisturbed["epoch"]
    folder = material.folder(whole.read_config())
    assert train(folder, Recorder("interrupt", asked), material.process_cache()) is None
    assert train(folder, None, material.process_cache()).eval_loss == reference.eval_loss
    assert losses_of(folder) == losses_of(whole)
    assert set(losses_of(folder)) == {11, 22}


def test_a_pruned_trial_stops_at_the_step_it_is_told(material):
    folder = material.folder(material.config())
    result = train(folder, recorder := Recorder("prune", 2 + 12), material.process_cache())
    assert result.state == "pruned"
    assert result.steps == 12
    assert recorder.asked == 14
    assert result.eval_loss == losses_of(folder)[10] == recorder.evaluations[-1].eval_loss
    assert folder.read_result() == result
    assert not folder.checkpoints.exists()
    assert not folder.adapter.exists()


def test_a_trial_pruned_before_it_starts_has_no_value(material):
    folder = material.folder(material.config())
    result = train(folder, Recorder("prune", 1), material.process_cache())
    assert (result.state, result.eval_loss, result.steps) == ("pruned", None, 0)


def test_a_trial_saved_by_its_own_interval(material):
    training = {**TRAINING, "save_steps": 4, "eval_steps": 10}
    folder = material.folder(material.config(training=training))
    assert train(folder, Recorder("interrupt", 2 + 9), material.process_cache()) is None
    assert Checkpoints(folder).newest().name == "checkpoint-9"
    result = train(folder, None, material.process_cache())
    assert result.state == "complete"
    assert [attempt.resumed_from for attempt in folder.read_attempts()] == [0, 9]


def test_a_warm_process_trains_as_a_fresh_one(material, processes):
    """Stages alternate: state that leaks into the next trial would change its losses."""
    fresh: dict[int | None, dict[int, float]] = {}
    process_cache = ProcessCache(finish_imports)
    for stage in (None, 2, None, 0, 2, None):
        config = material.config(zero_stage=stage, training={"max_steps": 10})
        if stage not in fresh:
            folder = material.folder(config)
            assert run_in(processes, train_to_end, str(folder.path)) == 0
            fresh[stage] = losses_of(folder)
        warm = material.folder(config)
        train(warm, None, process_cache)
        assert losses_of(warm) == fresh[stage]
    assert process_cache.reusable


def test_only_deepspeed_trials_are_deepspeed_trials(material):
    """The files of a checkpoint show which engine wrote it, in a process that has used both."""
    for stage in (2, None, 1, None):
        folder = material.folder(material.config(zero_stage=stage))
        assert train(folder, Recorder("interrupt", 2 + 3), material.process_cache()) is None
        files = {path.name for path in (folder.checkpoints / "checkpoint-3").iterdir()}
        assert ("global_step3" in files) == (stage is not None)
        assert ("optimizer.pt" in files) == (stage is None)


def test_the_newest_complete_checkpoint_counts(tmp_path):
    folder = TrialFolder(tmp_path)
    checkpoints = Checkpoints(folder)
    assert checkpoints.newest() is None
    for step in (5, 10, 90, 100):
        checkpoints.at(step).mkdir(parents=True)
    checkpoints.best(5).mkdir()
    checkpoints.best(8).mkdir()
    for step in (5, 10):
        (checkpoints.at(step) / COMPLETE).touch()
    assert checkpoints.newest() == checkpoints.at(10)
    progress = TrialProgress(step=90, tokens=7, best=Measurement(step=8, eval_loss=1.0))
    checkpoints.complete(progress)
    # The one before stays until the next one is about to be written.
    kept = {"checkpoint-10", "checkpoint-90", "best-8"}
    assert {path.name for path in checkpoints.path.iterdir()} == kept
    checkpoints.make_room(progress)
    assert {path.name for path in checkpoints.path.iterdir()} == {"checkpoint-90", "best-8"}
    assert checkpoints.read_progress(checkpoints.newest()) == progress
