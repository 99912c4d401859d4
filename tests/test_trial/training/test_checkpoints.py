"""Which checkpoint a trial goes on from when files of it are damaged, and which ones stay."""

from __future__ import annotations

import json

import pytest
from helpers.training.train import Material, Recorder

from trial.store.folders import TrialFolder
from trial.store.records import Evaluation
from trial.train import train
from trial.training.checkpoints import COMPLETE, Checkpoints, Measurement, TrialProgress


def write(checkpoints: Checkpoints, step: int, best: int | None = None) -> None:
    """A checkpoint like a trainer's, with best weights where they are named."""
    folder = checkpoints.at(step)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    for name in ("optimizer.pt", "scheduler.pt"):
        (folder / name).write_text(f"{name} of {step}")
    measured = None
    if best is not None:
        checkpoints.best(best).mkdir(exist_ok=True)
        (checkpoints.best(best) / "adapter_model.safetensors").write_text(f"best {best}")
        measured = Measurement(step=best, eval_loss=1.0)
    checkpoints.complete(TrialProgress(step=step, best=measured))


@pytest.fixture
def checkpoints(tmp_path) -> Checkpoints:
    made = Checkpoints(TrialFolder(tmp_path))
    write(made, 5, best=5)
    write(made, 10, best=10)
    return made


def names(checkpoints: Checkpoints) -> set[str]:
    return {path.name for path in checkpoints.path.iterdir()}


def as_an_earlier_version_wrote_it(checkpoints: Checkpoints, step: int) -> None:
    progress = checkpoints.at(step) / "progress.json"
    progress.write_text(TrialProgress(step=step).model_dump_json())
    (checkpoints.at(step) / COMPLETE).write_text("")


def test_the_one_before_stays_with_its_best_weights_until_more_is_written(checkpoints):
    assert names(checkpoints) == {"checkpoint-5", "best-5", "checkpoint-10", "best-10"}
    best = TrialProgress(step=12, best=Measurement(step=12, eval_loss=0.5))
    checkpoints.at(15).mkdir()  # Another rank has begun to write it.
    checkpoints.make_room(best)
    assert names(checkpoints) == {"checkpoint-10", "best-10", "checkpoint-15"}
    write(checkpoints, 15, best=12)
    assert names(checkpoints) == {"checkpoint-10", "best-10", "checkpoint-15", "best-12"}


@pytest.mark.parametrize(
    "name",
    [
        "checkpoint-10/optimizer.pt",
        "checkpoint-10/scheduler.pt",
        "best-10/adapter_model.safetensors",
    ],
)
def test_a_damaged_checkpoint_gives_way_to_the_one_before(checkpoints, name):
    file = checkpoints.path / name
    file.write_text(file.read_text().replace("10", "11"))
    found = checkpoints.newest_whole()
    assert found.checkpoint == checkpoints.at(5)
    assert found.damaged == (f"{name} has other content than it was written with",)
    file.unlink()
    assert checkpoints.newest_whole().damaged == (f"{name} is missing",)
    (checkpoints.at(5) / "progress.json").write_text("{")
    assert checkpoints.newest_whole().checkpoint is None


def test_best_weights_that_are_written_anew_are_read_anew(checkpoints):
    """The stamps of best weights are kept, since many checkpoints may name them."""
    write(checkpoints, 15, best=10)
    assert checkpoints.newest_whole().damaged == ()
    checkpoints.best(10).rename(checkpoints.path / "aside")
    write(checkpoints, 20, best=10)
    (checkpoints.best(10) / "adapter_model.safetensors").write_text("best 11")
    assert checkpoints.newest_whole().damaged[0].startswith("best-10/adapter_model.safetensors")


def test_what_can_be_known_of_an_earlier_version_is_checked(checkpoints):
    as_an_earlier_version_wrote_it(checkpoints, 10)
    assert checkpoints.newest_whole() == (checkpoints.at(10), ())
    (checkpoints.at(10) / "optimizer.pt").unlink()
    wrong = "checkpoint-10 lacks the state of the optimizer or of the schedule"
    assert checkpoints.newest_whole() == (checkpoints.at(5), (wrong,))
    (checkpoints.at(10) / "optimizer.pt").write_text("again")
    (checkpoints.at(10) / "trainer_state.json").write_text('{"global_step": 9}')
    wrong = "checkpoint-10/trainer_state.json is of step 9"
    assert checkpoints.newest_whole() == (checkpoints.at(5), (wrong,))


def test_an_emptied_mark_is_not_that_of_an_earlier_version(checkpoints):
    (checkpoints.at(10) / COMPLETE).write_text("")
    assert checkpoints.newest_whole().checkpoint == checkpoints.at(5)


def test_metrics_are_compared_up_to_the_checkpoint(tmp_path):
    folder = TrialFolder(tmp_path)
    checkpoints = Checkpoints(folder)
    folder.append(Evaluation(step=5, eval_loss=2.5))
    write(checkpoints, 5)
    folder.append(Evaluation(step=6, eval_loss=2.25))
    assert checkpoints.metrics_damage(checkpoints.at(5)) == ""
    folder.metrics.write_text(folder.metrics.read_text().replace("2.5", "2.6"))
    assert "is not as it was at step 5" in checkpoints.metrics_damage(checkpoints.at(5))


@pytest.fixture(scope="module")
def material(tmp_path_factory) -> Material:
    return Material(tmp_path_factory.mktemp("checkpoints"))


def test_a_longer_trial_without_a_whole_checkpoint_fails_and_does_not_start_anew(material):
    """From step 0 it would be another trial."""
    config = material.config(training={"max_steps": 10})
    folder = material.folder(config)
    assert train(folder, Recorder("interrupt", 2 + 5), material.process_cache()) is None
    (folder.checkpoints / "checkpoint-5" / "optimizer.pt").unlink()
    origin = {"study": "s", "number": 4, "continues": 1}
    longer = type(config).model_validate({**config.model_dump(), "origin": origin})
    result = train(TrialFolder.create(folder.path, longer), None, material.process_cache())
    assert result.state == "failed"
    expected = "no whole checkpoint of trial 1 to go on from: checkpoint-5/optimizer.pt is missing"
    assert result.cause.message == expected
