"""One trial in a slot: what it has come to, what it does next, what it leaves on disk."""

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
from trial.model.weights import StateDict, write_adapter
from trial.multi_lora.adamw import SlotAdamW
from trial.multi_lora.adapter_bank import AdapterBank
from trial.multi_lora.adapter_init import InitialAdapter
from trial.packed.schedule import TrialSchedule
from trial.packed.trial_source import PackedTrial
from trial.store.phase_timer import SharedPhaseTimer
from trial.store.records import TrainLog
from trial.training.context import AttemptContext

STATE = "slot.safetensors"
"""Adapter and moments of a packed trial's checkpoint, at its own rank."""


@dataclass(slots=True)
class Slot:
    """A trial in training."""

    index: int
    trial: PackedTrial
    session: AttemptContext
    plan: TrialSchedule
    drawn: InitialAdapter
    bank: AdapterBank
    adamw: SlotAdamW
    clock: SharedPhaseTimer
    order: Iterator[int]
    """Row numbers without end."""
    rows: list[Batch] = field(default_factory=list)
    """Those of the optimizer step at hand, of all ranks; empty between steps."""
    targets: int = 0
    """Tokens that the loss of the step is taken over."""
    micro: int = 0
    """Micro-batches of the step that are done."""
    began: int = 0
    """Steps that were done when this attempt began."""
    fresh: bool = True
    """Whether there was no checkpoint to go on from."""
    newest: float = 0.0
    """The last micro-batch's share of its step's loss, as far as that was read."""
    loss: float = 0.0
    """What the micro-batches of the step at hand have come to."""
    lost: float = 0.0
    """Sum of the training losses since the last log entry."""
    logged_at: int = 0

    @property
    def run(self) -> Any:
        """The trial as its reports see it."""
        return self.session.run

    @property
    def epoch(self) -> float:
        """Epochs done."""
        return float(self.run.steps / self.plan.epoch_steps)

    def begin_step(self, dataset: Any) -> None:
        """Fetch the rows of the next optimizer step, unless one is under way."""
        if self.rows:
            return
        self.rows = [dataset[index] for index in islice(self.order, self.plan.step_rows)]
        self.targets = sum(int((row["labels"][1:] != -100).sum()) for row in self.rows)

    def places(self, micro: int) -> range:
        """Which rows of the optimizer step are this rank's in a micro-batch of it."""
        size, rank_group = self.plan.args.per_device_train_batch_size, self.run.rank_group
        first = (micro * rank_group.size + rank_group.rank) * size
        return range(first, first + size)

    def count_tokens(self) -> None:
        """Count the tokens of this rank's rows of the step."""
        micros = range(self.plan.args.gradient_accumulation_steps)
        own = [self.rows[place] for micro in micros for place in self.places(micro)]
        self.run.count_tokens(torch.stack([row["attention_mask"].sum() for row in own]).sum())

    def take_loss(self, step: int, value: float) -> None:
        """A micro-batch's share of the loss of the step after `step` others."""
        self.newest = value
        if step == self.run.steps:
            self.loss += value
        else:
            self.lost += value

    def step_again(self) -> None:
        """Forget what has been done of the step at hand."""
        self.micro, self.loss = 0, 0.0
        self.run.discard_step()

    def tells_next(self) -> bool:
        """Whether the step just done, not yet counted, is followed by a report."""
        step, plan = self.run.steps + 1, self.plan
        evaluated = plan.evaluates(step)
        return not self.rows and (plan.logs(step) or evaluated or plan.saves(step, evaluated))

    def end_step(self) -> None:
        """Count an optimizer step.

        Raises:
            Diverged: its loss is above the trial's bound.
        """
        self.lost += self.loss
        self.rows, self.micro, self.loss = [], 0, 0.0
        self.run.end_step(self.run.steps + 1)

    def log(self, norm: float) -> None:
        """Write a training log entry, where one is due.

        Raises:
            Diverged: the loss is not finite, or above the trial's bound.
        """
        step = self.run.steps
        count = step - self.logged_at
        mean, self.lost, self.logged_at = self.lost / count, 0.0, step
        rate = self.plan.rate(step - 1)
        self.run.record_log(
            TrainLog(step=step, loss=round(mean, 4), learning_rate=rate, grad_norm=norm)
        )

    # On disk

    def write_adapter(self, folder: Path) -> None:
        """The adapter as PEFT reads it."""
        tensors: StateDict = {}
        for layer, pair in zip(
            self.drawn.layers, self.bank.read(self.index, self.drawn), strict=True
        ):
            tensors.update(zip(layer.keys, pair, strict=True))
        write_adapter(tensors, self.drawn.config, folder)

    def write_state(self) -> None:
        """A checkpoint: all that exact continuation needs; every rank has it, the first writes."""
        if not self.run.rank_group.rank:
            self._write()
        self.run.record_checkpoint(self.run.steps)

    def _write(self) -> None:
        from safetensors.torch import save_file

        folder = self.run.checkpoints.at(self.run.steps)
        folder.mkdir(parents=True, exist_ok=True)
        about = {"lost": self.lost, "logged_at": self.logged_at}
        save_file(self._tensors(), folder / STATE, metadata={"slot": json.dumps(about)})

    def _tensors(self) -> dict[str, Any]:
        found = {}
        for what, blocks in self._parts():
            for layer, (a, b) in zip(
                self.drawn.layers, self.bank.read(self.index, self.drawn, blocks), strict=True
            ):
                found[f"{what}.a.{layer.name}"] = a.contiguous()
                found[f"{what}.b.{layer.name}"] = b.contiguous()
        return found

    def _parts(self) -> tuple[tuple[str, Any], ...]:
        return ("value", None), ("first", self.adamw.first), ("second", self.adamw.second)

    def read_state(self, checkpoint: Path) -> None:
        """Go on from a checkpoint.

        Raises:
            OSError: it is none of a packed trial.
        """
        from safetensors import safe_open

        with safe_open(checkpoint / STATE, framework="pt") as file:
            about = json.loads(file.metadata()["slot"])
            for what, blocks in self._parts():
                pairs = [
                    tuple(file.get_tensor(f"{what}.{side}.{layer.name}") for side in "ab")
                    for layer in self.drawn.layers
                ]
                self.bank.write(self.index, pairs, blocks)
        self.lost, self.logged_at = about["lost"], about["logged_at"]


def rows_from(rows: int, plan: TrialSchedule, done: int) -> Iterator[int]:
    """Row numbers in training order, from after `done` optimizer steps, without end."""
    args = plan.args
    seed = args.seed if args.data_seed is None else args.data_seed
    order = EpochSampler(rows, plan.step_rows, seed)
    epoch, steps = divmod(done, plan.epoch_steps)
    skipped = steps * plan.step_rows
    while True:
        order.set_epoch(epoch)
        yield from islice(order, skipped, None)
        epoch, skipped = epoch + 1, 0
