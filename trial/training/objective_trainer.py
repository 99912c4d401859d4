"""The trainer that trains with an objective: it differs from the ordinary one in the loss alone."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import torch

from trial.data.epoch_sampler import EpochSampler
from trial.data.unlearning import PairedSampler, PartSampler
from trial.devices.device import Device
from trial.model.dropout_hash import row_key
from trial.objectives import losses
from trial.objectives.batch import Model, split, step_counts
from trial.training.trainer import TrialTrainer, mend


class ObjectiveTrainer(TrialTrainer):
    """A mixin over a trainer class; its annotated fields are set before training."""

    objective: losses.Objective
    sides: tuple[str, ...]
    part_samplers: Sequence[PartSampler]

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """This batch's share of the step's loss; `num_items_in_batch` is [2, sides]."""
        config = self.run.config.objective
        columns = {name: inputs.pop(name) for name in _COLUMNS}
        batch = split(columns, self.sides, self._counts(num_items_in_batch, columns))

        def forward(asked: dict[str, torch.Tensor]) -> torch.Tensor:
            # What is left of the inputs are the flags of GaudiTrainer.
            logits: torch.Tensor = model(**asked, **inputs).logits
            return logits

        loss = losses.compute(
            self.objective, config.name, Model(forward, self.model), batch, config.arguments
        )
        # Ranks are averaged, and the counts are those of all ranks.
        return loss * self.accelerator.num_processes if self._counts_all() else loss

    def _counts(
        self, counts: torch.Tensor | None, columns: dict[str, torch.Tensor]
    ) -> torch.Tensor:
        found = step_counts([columns], len(self.sides)) if counts is None else counts
        return found.to(columns["labels"].device)

    def _counts_all(self) -> bool:
        return bool(self.args.average_tokens_across_devices)

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], torch.Tensor | None]:
        """The batches of one optimizer step, and what they hold of each side."""
        batches = list(itertools.islice(epoch_iterator, num_batches))
        self._micro = 0
        if not batches:
            return [], None
        counts = step_counts(batches, len(self.sides)).to(device)
        if self._counts_all():
            # Flat: accelerate's gather on a device wants no more than one dimension of gloo.
            every = self.accelerator.gather(counts.flatten())
            counts = every.view(-1, *counts.shape).sum(dim=0)
        return batches, counts

    get_batch_samples_transformers = get_batch_samples
    """GaudiTrainer's name for it."""

    def _place(self, ids: torch.Tensor) -> None:
        """Rows are numbered within their side, so that dividing a step changes no draw."""
        args, sides = self.args, len(self.sides)
        rows = len(ids) // sides
        first = (self._micro * args.world_size + args.process_index) * rows
        self._micro += 1
        step = self.state.global_step
        keys = [
            row_key(args.seed, step, (first + row) * sides + side)
            for side in range(sides)
            for row in range(rows)
        ]
        self.run.positions.set(keys, ids.shape[1], ids.device)

    def _get_train_sampler(self, train_dataset: Any = None) -> PairedSampler:
        """Rows of the first side as they are always ordered, the others drawn beside them."""
        args, rows = self.args, (train_dataset or self.train_dataset).rows
        step_rows = args.per_device_train_batch_size * args.gradient_accumulation_steps
        order = EpochSampler(
            len(rows),
            step_rows * args.world_size,
            args.seed if args.data_seed is None else args.data_seed,
            lengths=rows.row_lengths() if args.group_by_length else None,
            drop_last=args.dataloader_drop_last,
        )
        return PairedSampler(order, self.part_samplers)


_COLUMNS = ("input_ids", "attention_mask", "labels", "lengths")


@cache
def objective_trainer_class(device: Device) -> type[Any]:
    """The trainer class of a device, training with an objective."""
    mend(device.trainer_class())
    return type("ObjectiveTrainer", (ObjectiveTrainer, device.trainer_class()), {})
