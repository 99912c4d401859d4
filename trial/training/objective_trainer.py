"""The trainer of objectives other than `sft`: a `TrialTrainer` with other loss and batches."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch

from trial.data.unlearning import PairedSampler, PartSampler
from trial.devices.compat import patch_trainer
from trial.devices.device import Device
from trial.objectives import losses
from trial.objectives.batch import COLUMNS, Model, divide, step_counts
from trial.training.trainer import TrialTrainer


class ObjectiveTrainer(TrialTrainer):
    """A mixin over a trainer class; `objective_trainer_class` combines the two."""

    def __init__(
        self,
        *,
        objective: losses.LossFunction,
        part_names: tuple[str, ...],
        part_samplers: Sequence[PartSampler],
        **arguments: Any,
    ) -> None:
        """Construct the trainer.

        Args:
            objective: the loss function.
            part_names: parts of a batch, in the order in which their rows stand.
            part_samplers: how the rows of each part are chosen.
            **arguments: go to `TrialTrainer`.
        """
        self.objective = objective
        self.part_names = part_names
        self.part_samplers = part_samplers
        self.batch_parts = len(part_names)
        # With a loss function of its own the Trainer does not divide by the number of batches.
        super().__init__(compute_loss_func=objective, **arguments)

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """This batch's share of the step's loss.

        `num_items_in_batch` is what `step_counts` returned, int64 [2, parts].
        """
        config = self.run.config.objective
        columns = {name: inputs.pop(name) for name in COLUMNS}
        if num_items_in_batch is None:
            num_items_in_batch = step_counts([columns], self.batch_parts)
        batch = divide(columns, self.part_names, num_items_in_batch.to(columns["labels"].device))
        router_losses: list[torch.Tensor] = []

        def forward(batch_inputs: dict[str, torch.Tensor]) -> torch.Tensor:
            # What is left in `inputs` are flags of GaudiTrainer.
            outputs = model(**batch_inputs, **inputs)
            if self.router_factor and torch.is_grad_enabled():
                router_losses.append(outputs.aux_loss)
            logits: torch.Tensor = outputs.logits
            return logits

        loss = losses.compute(
            self.objective, config.name, Model(forward, self.model), batch, config.arguments
        )
        if router_losses:
            targets = step_counts([columns], self.batch_parts)[1].sum().to(loss.device)
            share = targets / num_items_in_batch[1].sum().to(loss.device)
            loss = loss + self.router_factor * torch.stack(router_losses).mean() * share
        # The counts are those of all ranks, and the gradients of ranks are averaged.
        averaged = self.args.average_tokens_across_devices
        return loss * self.accelerator.num_processes if averaged else loss

    def step_counts(self, batches: list[Any], device: torch.device) -> torch.Tensor:
        """[2, parts]: rows and labelled tokens of an optimizer step, as `TrialTrainer`'s."""
        counts = step_counts(batches, self.batch_parts).to(device)
        if self.args.average_tokens_across_devices:
            # Flat: accelerate's gather over gloo takes one dimension only.
            by_rank = self.accelerator.gather(counts.flatten())
            counts = by_rank.view(-1, *counts.shape).sum(dim=0)
        return counts

    def _get_train_sampler(self, train_dataset: Any = None) -> PairedSampler:
        """The first part's rows, ordered as in `TrialTrainer`, each with rows of other parts."""
        rows = (train_dataset or self.train_dataset).rows
        return PairedSampler(self.epoch_sampler(rows), self.part_samplers)


@cache
def objective_trainer_class(device: Device) -> type[Any]:
    """The device's trainer class with `ObjectiveTrainer` mixed in."""
    patch_trainer(device.trainer_class())
    return type("ObjectiveTrainer", (ObjectiveTrainer, device.trainer_class()), {})
