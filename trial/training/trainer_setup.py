"""What a trial trains with by its objective: trainer, batches and loss; and what it measures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from trial.config.objective_registry import batch_parts
from trial.config.trial_config import TrialConfig
from trial.data.prepare import PreparedData
from trial.devices.device import Device
from trial.store.reference_ratios import read_ratios
from trial.training.trainer import collator, trainer_class, training_loss


@dataclass(frozen=True, slots=True)
class TrainerSetup:
    """A trainer's class and what it is given."""

    trainer_class: type[Any]
    collator: Any
    loss: Any
    train: Any
    prepare: Callable[[Any, Any], None]
    """Takes the new trainer and the tokenizer."""


def trainer_setup(
    config: TrialConfig, device: Device, data: PreparedData, smoothing: float
) -> TrainerSetup:
    """The ordinary trainer for `sft`, else the one that trains with an objective."""
    plain = config.objective.is_plain
    return _plain(config, device, data, smoothing) if plain else _own(config, device, data)


def _plain(
    config: TrialConfig, device: Device, data: PreparedData, smoothing: float
) -> TrainerSetup:
    def prepare(trainer: Any, tokenizer: Any) -> None:
        _examine(trainer, tokenizer, config, data)

    loss = training_loss(device, smoothing)
    return TrainerSetup(trainer_class(device), collator(device), loss, data.train, prepare)


def _own(config: TrialConfig, device: Device, data: PreparedData) -> TrainerSetup:
    from trial.data.unlearning import PairedCollator, paired_dataset
    from trial.objectives import losses
    from trial.training.objective_trainer import objective_trainer_class

    name, arguments = config.objective.name, config.objective.arguments
    sides = batch_parts(name, arguments, forgets=data.unlearning is not None)
    dataset, samplers = paired_dataset(sides, data.train, data.unlearning)
    objective = losses.find(name)

    def prepare(trainer: Any, tokenizer: Any) -> None:
        trainer.objective, trainer.sides = objective, sides
        trainer.part_samplers = samplers
        _examine(trainer, tokenizer, config, data)

    collate = PairedCollator(trim=not device.fixed_shapes)
    return TrainerSetup(objective_trainer_class(device), collate, objective, dataset, prepare)


def _examine(trainer: Any, tokenizer: Any, config: TrialConfig, data: PreparedData) -> None:
    """Let evaluations measure the sets, where there is something to measure."""
    if data.unlearning is None and not config.evaluation.metrics:
        return
    from trial.objectives.evaluate import Examination

    compared = read_ratios(config.evaluation.retain_model)
    trainer.examination = Examination(data.unlearning, config.evaluation, compared)
    trainer.tokenizer_for_words = tokenizer
