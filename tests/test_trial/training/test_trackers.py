"""`report_to` of TrainingArguments: trackers get the trial's number and parameters too."""

from __future__ import annotations

from helpers.training import models
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from trial.config.sections import DataConfig, ModelConfig, Origin
from trial.config.trial_config import TrialConfig
from trial.store.folders import TrialFolder
from trial.train import train


def test_tensorboard_gets_curves_number_and_parameters(tmp_path):
    model = models.make_model(tmp_path / "model")
    rows = models.write_rows(tmp_path / "rows.jsonl")
    config = TrialConfig(
        model=ModelConfig(name_or_path=str(model)),
        data=DataConfig(path=str(rows), max_length=32),
        training={"max_steps": 4, "eval_steps": 2, "logging_steps": 1, "report_to": "tensorboard"},
        device="cpu",
        origin=Origin(study="ranks", number=7, params={"lora.r": 8}),
    )
    folder = TrialFolder.create(tmp_path / "trial", config)
    result = train(folder)
    assert result.state == "complete", result.cause
    events = EventAccumulator(str(folder.path / "logs"))
    events.Reload()
    losses = [event.value for event in events.Scalars("eval/loss")]
    assert len(losses) == 2
    assert abs(losses[-1] - folder.read_evaluations()[-1].eval_loss) < 1e-5
    (written,) = events.Tensors("args/text_summary")
    text = written.tensor_proto.string_val[0].decode()
    for entry in (
        '"run_name": "ranks/7"',
        '"trial": 7',
        '"drawn.lora.r": 8',
        '"lora.lora_alpha": 16',
    ):
        assert entry in text
