"""One trial in a slot of a packed job: its counters, its next rows, and its files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from trial.data.collate import Batch
from trial.data.epoch_sampler import EpochSampler
from trial.data.tokens import IGNORE_INDEX
from trial.model.dropout.dropout_hash import row_key
from trial.model.weights import StateDict, write_adapter
from trial.multi_lora.adapter_init import InitialAdapter
from trial.multi_lora.engine import Engine, MicroBatch
from trial.packed.schedule import TrialSchedule
from trial.packed.trial_source import PackedTrial
from trial.store.phase_timer import SharedPhaseTimer
from trial.store.records import TrainLog
from trial.training.checkpoints import FILES_OF_A_SLOT
from trial.training.context import AttemptContext

(STATE_FILE,) = FILES_OF_A_SLOT
"""Adapter and AdamW moments in a packed trial's checkpoint, at the trial's own rank."""


@dataclass(slots=True)
class Slot:
    """A trial in training, in one slot of the engine."""

    index: int
    """Number of the slot in the engine."""
    trial: PackedTrial
    context: AttemptContext
    schedule: TrialSchedule
    initial: InitialAdapter
    engine: Engine
    clock: SharedPhaseTimer
    row_order: Iterator[int]
    """Row numbers in training order, without end."""
    step_rows: list[Batch] = field(default_factory=list)
    """Rows of the current optimizer step, of all ranks; empty between steps."""
    step_targets: int = 0
    """Labelled tokens of the current step, over which its loss is the mean."""
    micro_batches: int = 0
    """Micro-batches of the current step that are done."""
    resumed_at: int = 0
    """Optimizer steps that were done when this attempt began."""
    fresh: bool = True
    """Whether the attempt began without a checkpoint."""
    newest_loss: float = 0.0
    """The part of its step's mean loss, in nats, that was last read from the device."""
    step_loss: float = 0.0
    """Sum of these parts over the current step."""
    unlogged_loss: float = 0.0
    """Sum of the losses of the steps since the last log entry."""
    logged_at: int = 0
    """Step of the last log entry."""

    @property
    def run(self) -> Any:
        """The trial's `RunState`."""
        return self.context.run

    @property
    def epoch(self) -> float:
        """Epochs done."""
        return float(self.run.steps / self.schedule.epoch_steps)

    # Optimizer steps

    def begin_step(self, dataset: Any) -> None:
        """Fetch the rows of the next optimizer step, unless one has begun."""
        if self.step_rows:
            return
        numbers = islice(self.row_order, self.schedule.step_rows)
        self.step_rows = [dataset[number] for number in numbers]
        self.step_targets = sum(
            int((row["labels"][1:] != IGNORE_INDEX).sum()) for row in self.step_rows
        )

    def rank_rows(self, micro_batch: int) -> range:
        """Which rows of the optimizer step are this rank's in one of its micro-batches."""
        size, ranks = self.schedule.args.per_device_train_batch_size, self.run.rank_group
        first = (micro_batch * ranks.size + ranks.rank) * size
        return range(first, first + size)

    def next_micro_batch(self) -> MicroBatch:
        """This rank's rows of the next micro-batch."""
        rows, seed = self.rank_rows(self.micro_batches), self.schedule.args.seed
        keys = [row_key(seed, self.run.steps, row) for row in rows]
        return MicroBatch(
            self.index, [self.step_rows[row] for row in rows], keys, self.step_targets
        )

    @property
    def step_due(self) -> bool:
        """Whether all micro-batches of the current step are done."""
        return bool(self.micro_batches == self.schedule.args.gradient_accumulation_steps)

    def add_loss(self, step: int, value: float) -> None:
        """Add a micro-batch's part, in nats, of the mean loss of the step after `step` others."""
        self.newest_loss = value
        if step == self.run.steps:
            self.step_loss += value
        else:
            self.unlogged_loss += value

    def restart_step(self) -> None:
        """Forget what is done of the current step; its rows stay."""
        self.micro_batches, self.step_loss = 0, 0.0
        self.run.discard_step()

    def release_rows(self) -> None:
        """After an optimizer step: count the tokens of this rank's rows, and drop the rows."""
        micro_batches = range(self.schedule.args.gradient_accumulation_steps)
        rows = [self.step_rows[row] for micro in micro_batches for row in self.rank_rows(micro)]
        self.run.count_tokens(torch.stack([row["attention_mask"].sum() for row in rows]).sum())
        self.step_rows = []

    def reports_next(self) -> bool:
        """Whether the step just done, not counted yet, is followed by a log, evaluation or save."""
        step, schedule = self.run.steps + 1, self.schedule
        evaluates = schedule.evaluates(step)
        reports = schedule.logs(step) or evaluates or schedule.saves(step, evaluates)
        return not self.step_rows and reports

    def end_step(self) -> None:
        """Count an optimizer step.

        Raises:
            Diverged: its loss is not finite, or above `diverged_above`.
        """
        self.unlogged_loss += self.step_loss
        self.step_rows, self.micro_batches, self.step_loss = [], 0, 0.0
        self.run.end_step(self.run.steps + 1)

    def log(self, grad_norm: float) -> None:
        """Write a training log entry: mean loss in nats since the last one, rate, gradient norm.

        Raises:
            Diverged: the loss is not finite, or above `diverged_above`.
        """
        step = self.run.steps
        mean = self.unlogged_loss / (step - self.logged_at)
        self.unlogged_loss, self.logged_at = 0.0, step
        rate = self.schedule.learning_rate(step - 1)
        self.run.record_log(
            TrainLog(step=step, loss=round(mean, 4), learning_rate=rate, grad_norm=grad_norm)
        )

    # Files

    def write_adapter(self, folder: Path) -> None:
        """Write the adapter in PEFT's format."""
        tensors: StateDict = {}
        pairs = self.engine.bank.read(self.index, self.initial)
        for layer, pair in zip(self.initial.layers, pairs, strict=True):
            tensors.update(zip(layer.keys, pair, strict=True))
        write_adapter(tensors, self.initial.config, folder)

    def write_checkpoint(self) -> None:
        """Write all that exact continuation needs; of several ranks the first writes."""
        if not self.run.rank_group.rank:
            self.run.checkpoints.make_room(self.run.progress)
            self._write_state()
        self.run.record_checkpoint(self.run.steps)

    def _write_state(self) -> None:
        from safetensors.torch import save_file

        folder = self.run.checkpoints.at(self.run.steps)
        folder.mkdir(parents=True, exist_ok=True)
        # The key "lost" means `unlogged_loss`: older checkpoints can be read.
        counters = {"lost": self.unlogged_loss, "logged_at": self.logged_at}
        save_file(
            self._state_tensors(), folder / STATE_FILE, metadata={"slot": json.dumps(counters)}
        )

    def _state_tensors(self) -> dict[str, torch.Tensor]:
        tensors = {}
        for kind, blocks in self._state_blocks():
            pairs = self.engine.bank.read(self.index, self.initial, blocks)
            for layer, (a, b) in zip(self.initial.layers, pairs, strict=True):
                tensors[f"{kind}.a.{layer.name}"] = a.contiguous()
                tensors[f"{kind}.b.{layer.name}"] = b.contiguous()
        return tensors

    def _state_blocks(self) -> tuple[tuple[str, Any], ...]:
        """Blocks that a checkpoint holds, by name there; None stands for the adapter's values."""
        adamw = self.engine.adamw
        return ("value", None), ("first", adamw.exp_avg), ("second", adamw.exp_avg_sq)

    def read_checkpoint(self, checkpoint: Path) -> None:
        """Go on from a packed trial's checkpoint.

        Raises:
            OSError: the folder has no such file.
        """
        from safetensors import safe_open

        with safe_open(checkpoint / STATE_FILE, framework="pt") as file:
            counters = json.loads(file.metadata()["slot"])
            for kind, blocks in self._state_blocks():
                pairs = [
                    tuple(file.get_tensor(f"{kind}.{side}.{layer.name}") for side in "ab")
                    for layer in self.initial.layers
                ]
                self.engine.bank.write(self.index, pairs, blocks)
        self.unlogged_loss, self.logged_at = counters["lost"], counters["logged_at"]


def training_rows(rows: int, schedule: TrialSchedule, steps_done: int) -> Iterator[int]:
    """Row numbers of a dataset of `rows` rows in training order, without end.

    Begins after `steps_done` optimizer steps.
    """
    args = schedule.args
    seed = args.seed if args.data_seed is None else args.data_seed
    order = EpochSampler(rows, schedule.step_rows, seed)
    epoch, steps = divmod(steps_done, schedule.epoch_steps)
    skipped = steps * schedule.step_rows
    while True:
        order.set_epoch(epoch)
        yield from islice(order, skipped, None)
        epoch, skipped = epoch + 1, 0
