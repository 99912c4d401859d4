"""Which trainer class a trial's objective needs, and what the class is constructed with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trial.config.objective_registry import batch_parts
from trial.config.trial_config import TrialConfig
from trial.data.prepare import PreparedData
from trial.devices.device import Device
from trial.store.reference_ratios import read_ratios
from trial.training.loss import TrainingLoss
from trial.training.trainer import collator, trainer_class

if TYPE_CHECKING:
    from trial.objectives.evaluate import UnlearningEvaluator


@dataclass(frozen=True, slots=True)
class TrainerSetup:
    """A trainer class, and those of its arguments that follow from the objective."""

    trainer_class: type[Any]
    arguments: dict[str, Any]


def trainer_setup(
    config: TrialConfig,
    device: Device,
    data: PreparedData,
    tokenizer: Any,
    *,
    smoothing: float,
    router_factor: float,
) -> TrainerSetup:
    """The ordinary trainer for `sft`, else the one that trains with an objective.

    `smoothing` is the label smoothing of the ordinary loss, `router_factor` that of the loss of a
    mixture's router.
    """
    if config.objective.is_plain:
        loss = TrainingLoss(
            dense=device.fixed_shapes, smoothing=smoothing, router_factor=router_factor
        )
        setup = _plain_setup(device, data, loss)
    else:
        setup = _objective_setup(config, device, data)
    setup.arguments["router_factor"] = router_factor
    setup.arguments["evaluator"] = _evaluator(config, data, tokenizer)
    return setup


def _plain_setup(device: Device, data: PreparedData, loss: TrainingLoss) -> TrainerSetup:
    return TrainerSetup(
        trainer_class(device),
        {
            "data_collator": collator(device),
            "compute_loss_func": loss,
            "train_dataset": data.train,
        },
    )


def _objective_setup(config: TrialConfig, device: Device, data: PreparedData) -> TrainerSetup:
    from trial.data.unlearning import PairedCollator, paired_dataset
    from trial.objectives import losses
    from trial.training.objective_trainer import objective_trainer_class

    name, arguments = config.objective.name, config.objective.arguments
    part_names = batch_parts(name, arguments, forgets=data.unlearning is not None)
    dataset, samplers = paired_dataset(part_names, data.train, data.unlearning)
    return TrainerSetup(
        objective_trainer_class(device),
        {
            "data_collator": PairedCollator(trim=not device.fixed_shapes),
            "train_dataset": dataset,
            "objective": losses.find(name),
            "part_names": part_names,
            "part_samplers": samplers,
        },
    )


def _evaluator(
    config: TrialConfig, data: PreparedData, tokenizer: Any
) -> UnlearningEvaluator | None:
    """What measures the metrics of an evaluation beside the eval loss, if there are any."""
    if data.unlearning is None and not config.evaluation.metrics:
        return None
    from trial.objectives.evaluate import UnlearningEvaluator

    ratios = read_ratios(config.evaluation.retain_model)
    return UnlearningEvaluator(data.unlearning, config.evaluation, tokenizer, ratios)
