"""`report_to` of TrainingArguments: one run for each trial, with its number and parameters."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.training.packed import StopsAfter, pack
from helpers.training.tracker_standins import Run, Standins
from helpers.training.train import Material
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from trial.config.packing_rules import packing_key
from trial.config.sections import Origin
from trial.packed.job import train_packed
from trial.store.folders import TrialFolder
from trial.train import train
from trial.training.trackers import logged

NAMES = ["wandb", "mlflow", "trackio", "tensorboard"]
TRAINING = {"max_steps": 4, "eval_steps": 2, "logging_steps": 1, "report_to": NAMES}


@pytest.fixture(scope="module")
def material(tmp_path_factory) -> Material:
    return Material(tmp_path_factory.mktemp("trackers"))


@pytest.fixture
def standins(monkeypatch) -> Standins:
    found = Standins()
    found.install(monkeypatch)
    return found


def numbered(material: Material, number: int, **sections: Any):
    origin = Origin(study="ranks", number=number, params={"lora.r": 8})
    training = {**TRAINING, **sections.pop("training", {})}
    config = material.config(training=training, **sections)
    return config.model_copy(update={"origin": origin})


def scalars(folder: TrialFolder, name: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(folder.path / "logs"))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


def check(run: Run, number: int, folder: TrialFolder, loss: str, eval_loss: str) -> None:
    """The run is that of the trial alone, whole and finished."""
    assert (run.name, run.group, run.finished) == (f"ranks/{number}", "ranks", True)
    measured = [row.eval_loss for row in folder.read_evaluations()]
    assert [row[eval_loss] for row in run.logs if eval_loss in row] == pytest.approx(measured)
    losses = [row.loss for row in folder.read_train_logs()]
    assert [row[loss] for row in run.logs if loss in row] == pytest.approx(losses)


def check_all(standins: Standins, folders: list[TrialFolder]) -> None:
    slashed, plain = ("train/loss", "eval/loss"), ("loss", "eval_loss")
    for kind, names in (("wandb", slashed), ("mlflow", plain), ("trackio", slashed)):
        runs = sorted(getattr(standins, kind), key=lambda run: run.name)
        assert len(runs) == len(folders), kind
        for number, (run, folder) in enumerate(zip(runs, folders, strict=True)):
            check(run, number, folder, *names)
    for folder in folders:
        measured = [(row.step, row.eval_loss) for row in folder.read_evaluations()]
        shown = scalars(folder, "eval/loss")
        torch.testing.assert_close(torch.tensor(shown), torch.tensor(measured))


def test_trials_of_a_warm_process_have_a_run_each(material, standins):
    folders = [material.train(numbered(material, number))[0] for number in range(2)]
    check_all(standins, folders)
    assert {run.settings["lora.lora_alpha"] for run in standins.wandb} == {16}
    assert [run.settings["trial"] for run in standins.wandb] == [0, 1]
    assert [run.tags for run in standins.mlflow] == [
        {"study": "ranks", "trial": str(number)} for number in range(2)
    ]


def test_packed_trials_have_a_run_each(material, standins):
    configs = [numbered(material, n, packed=True, lora={"r": 2 + n}) for n in range(3)]
    assert len({packing_key(config) for config in configs} - {None}) == 1
    folders, results = pack(material, *configs, slots=2)
    assert {result.state for result in results} == {"complete"}
    check_all(standins, folders)
    assert [run.settings["drawn.lora.r"] for run in standins.wandb] == [8] * 3


def test_an_interrupted_trial_goes_back_to_its_run(material, standins):
    for packed in (False, True):
        folder = material.folder(numbered(material, 0, packed=packed))
        stop = StopsAfter("interrupt", 2)
        cache = material.process_cache()
        if packed:
            train_packed([folder], slots=1, process_cache=cache, controls=[stop])
            train_packed([folder], slots=1, process_cache=cache)
        else:
            assert train(folder, stop, cache) is None
            train(folder, None, cache)
        assert [row.resumed_from > 0 for row in folder.read_attempts()] == [False, True]
        for runs in (standins.wandb, standins.mlflow):
            check(runs[-1], 0, folder, *(("train/loss", "eval/loss"), ("loss", "eval_loss"))[
                runs is standins.mlflow
            ])  # fmt: skip
    assert len(standins.wandb) == len(standins.mlflow) == 2


@pytest.mark.parametrize("packed", [False, True])
def test_a_failed_trials_run_is_marked_and_the_next_ones_is_its_own(material, standins, packed):
    failing = numbered(material, 0, packed=packed, training={"learning_rate": 1e30})
    good = numbered(material, 1, packed=packed)
    if packed:
        _, results = pack(material, failing, good, slots=2)
    else:
        results = [material.train(config)[1] for config in (failing, good)]
    assert [result.state for result in results] == ["failed", "complete"]
    by_name = {run.name: run for run in standins.wandb}
    assert by_name["ranks/0"].status == "failed"
    assert by_name["ranks/1"].status == "finished"
    assert {run.name: run.status for run in standins.mlflow} == {
        "ranks/0": "FAILED",
        "ranks/1": "FINISHED",
    }


def test_a_tracker_that_fails_at_the_end_does_not_cost_the_packed_trial(material, standins):
    import wandb

    wandb.init = lambda **_: 1 / 0
    _, (result,) = pack(material, numbered(material, 0, packed=True), slots=1)
    assert result.state == "complete"


def test_packed_and_alone_report_the_same_numbers(material, standins):
    shown = []
    for packed in (False, True):
        config = numbered(material, 0, packed=packed, lora={"lora_dropout": 0.0})
        folder = pack(material, config, slots=1)[0][0] if packed else material.train(config)[0]
        names = ("train/loss", "train/learning_rate", "train/epoch", "eval/loss")
        shown.append({name: sorted(dict(scalars(folder, name)).items()) for name in names})
        assert len(list(logged(folder))) == 6
    alone, together = shown
    for name, values in alone.items():
        torch.testing.assert_close(
            torch.tensor(values), torch.tensor(together[name]), atol=2e-4, rtol=1e-4, msg=name
        )


def test_tensorboard_gets_number_and_parameters(material):
    folder, _ = material.train(numbered(material, 7, training={"report_to": "tensorboard"}))
    events = EventAccumulator(str(folder.path / "logs"))
    events.Reload()
    (written,) = events.Tensors("args/text_summary")
    text = written.tensor_proto.string_val[0].decode()
    for entry in (
        '"run_name": "ranks/7"',
        '"trial": 7',
        '"drawn.lora.r": 8',
        '"lora.lora_alpha": 16',
    ):
        assert entry in text
