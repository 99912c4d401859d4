"""Forward, backward, step and evaluation of several trials over one frozen base model.

Knows tensors and slots, nothing of trial folders: `trial.packed.job` decides what a slot does when.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from itertools import pairwise
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch.nn import functional as F  # noqa: N812 (as torch names it)

from trial.data.collate import Batch, Collator, with_full_attention
from trial.data.tokens import IGNORE_INDEX
from trial.devices import optimum_habana
from trial.devices.device import Device
from trial.multi_lora import onednn_linear
from trial.multi_lora.adamw import SlotAdamW, StepSettings
from trial.multi_lora.adapter_bank import AdapterBank
from trial.multi_lora.adapter_init import InitialAdapter
from trial.multi_lora.batch_view import dropout_inputs, make_view, slot_inputs
from trial.multi_lora.causal_attention import maskless_attention
from trial.multi_lora.cuda_graphs import GraphRunner, Inputs
from trial.multi_lora.linear_cross_entropy import (
    ChunkSizes,
    LinearCrossEntropy,
    extract_output_layer,
)
from trial.multi_lora.packable import (
    refuse_failing_passes,
    refuse_own_dropout,
    refuse_random_passes,
    refuse_routed_layers,
    refuse_router_loss,
)
from trial.multi_lora.slot_linear import install, uninstall
from trial.training.loss import sum_losses, summed_loss, target_cross_entropy

# Gradients are views of one block on purpose.
warnings.filterwarnings("ignore", message="grad and param do not obey the gradient layout")


class MicroBatch(NamedTuple):
    """One slot's rows in the next pass (forward and backward)."""

    slot: int
    rows: list[Batch]
    row_keys: list[int]
    """`dropout_hash.row_key` of each row."""
    step_targets: int
    """Labelled tokens of the slot's whole optimizer step, over which its loss is the mean."""


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """Sizes that decide speed; results differ by rounding at most."""

    pass_tokens: int = 1024
    """On a CPU slots go through the model in groups of about so many tokens: larger groups exceed
    its caches and gain nothing. Without effect on results."""
    recurring_eval_shapes: int = 8
    """oneDNN, which generates code for each shape, computes evaluations of at most so many."""
    chunks: ChunkSizes = field(default_factory=ChunkSizes)
    chunked_loss: bool = True
    """Whether output layer and loss are computed in chunks, where the model allows it."""


class Engine:
    """One base model with a bank of slots over it; `close` gives the base model back untouched.

    Training batches are all `columns` wide: if they were as wide as their longest row, the rounding
    of a trial's sums would depend on the rows of the other trials.
    """

    def __init__(
        self,
        base: Any,
        device: Device,
        args: Any,
        initial: InitialAdapter,
        slots: int,
        rank: int,
        columns: int | None = None,
        ranks: int = 1,
        settings: EngineSettings | None = None,
    ) -> None:
        """Change the base model for `slots` slots of LoRA rank `rank`.

        Args:
            base: The base model.
            device: Where it trains.
            args: `TrainingArguments`; what is read of them (device, `bf16`, `use_lazy_mode`) is the
                same for all trials.
            initial: An adapter of any of the trials, for names and shapes of its layers.
            slots: Number of slots, K.
            rank: LoRA rank of the slots; trials of lower rank are padded.
            columns: Width of training batches; that of the dataset's rows if None.
            ranks: Number of processes that train the same slots.
            settings: Sizes that decide speed.

        Raises:
            NotPackableError: slots would not stay independent over this model.
        """
        refuse_own_dropout(base)
        refuse_router_loss(base)
        self.settings = settings or EngineSettings()
        self.device = device
        self.base = base.to(args.device).requires_grad_(False)
        self.ranks = ranks
        self.columns = None if device.fixed_shapes else columns
        self._cast = torch.bfloat16 if args.bf16 else None
        flat = not device.fixed_shapes
        self.bank = AdapterBank(initial, slots, rank, args.device, flat=flat, cast=self._cast)
        self.adamw = SlotAdamW(
            self.bank.blocks,
            masked=device.fixed_shapes,
            fused=device.reads_without_sync,
            b_parts=self.bank.b_parts,
        )
        self._model_inputs = device.evaluation_inputs(SimpleNamespace(model=base, args=args))
        self._loss: LinearCrossEntropy | None = None
        with ExitStack() as changes:
            self._change_base(changes, initial)
            # Several ranks would capture by themselves, while a failure on one must reach all.
            able = device.record is not None and ranks == 1
            able = able and changes.enter_context(maskless_attention(self.base))
            self._runner = GraphRunner(self.bank.device, device.record if able else None)
            self._changes = changes.pop_all()

    def _change_base(self, changes: ExitStack, initial: InitialAdapter) -> None:
        """Take the output layer off the base model, and put the bank's layers in."""
        # Where a new shape costs a compilation, a pass over a few tokens is expensive.
        if not self.device.fixed_shapes:
            names = [layer.name for layer in initial.layers]
            refuse_routed_layers(self.base, names, self._model_inputs)
            refuse_random_passes(self.base, self._model_inputs)
            if self.settings.chunked_loss:
                extracted = extract_output_layer(
                    self.base, initial, self._cast, self._model_inputs,
                    skip_unlabelled=self.device.reads_without_sync, sizes=self.settings.chunks,
                )  # fmt: skip
                self._loss = changes.enter_context(extracted)
        if self.bank.device.type == "cpu":
            changes.callback(onednn_linear.restore_linears, self.base)
            onednn_linear.freeze_linears(self.base)
        changes.callback(uninstall, self.base, self.bank)
        install(self.base, self.bank)
        if not self.device.fixed_shapes:
            refuse_failing_passes(self.base, self._pass_of_one_slot)

    def _pass_of_one_slot(self) -> None:
        """A pass of a few tokens through the first slot's adapter."""
        ids = torch.arange(4, device=self.bank.device).unsqueeze(0)
        index = {name: x.to(ids.device) for name, x in slot_inputs([0], self.bank.slots).items()}
        self._forward({"input_ids": ids, "attention_mask": torch.ones_like(ids), **index})

    def close(self) -> Any:
        """Undo all changes to the base model and return it."""
        self._runner.drop_graphs()
        self._changes.close()
        return self.base

    def drop_graphs(self) -> bool:
        """Free captured CUDA graphs and capture no more; returns whether capturing was on."""
        return self._runner.drop_graphs()

    @property
    def may_hold_graphs(self) -> bool:
        """Whether CUDA graphs are captured here, whose memory `drop_graphs` would free."""
        return self._runner.capture is not None

    def load(self, slot: int, initial: InitialAdapter, dropout: float) -> None:
        """Put a fresh adapter into a slot."""
        self.bank.load(slot, initial, dropout)
        self.adamw.clear(slot)

    def clear(self, slot: int) -> None:
        """Empty a slot."""
        self.bank.clear(slot)
        self.adamw.clear(slot)

    def zero_grad(self) -> None:
        """Zero all slots' gradients, so that their optimizer steps can begin anew."""
        for _, grad in self.bank.blocks:
            grad.zero_()

    def accumulate(self, batches: Sequence[MicroBatch]) -> torch.Tensor:
        """Forward and backward of one micro-batch of each slot, all of equally many rows.

        Returns each slot's part of its step's mean loss in nats, [slots in the batch], without
        waiting for the device; with several ranks, the part of this rank's rows.
        """
        self.base.train()
        losses = [self._forward_backward(part) for part in self._parts(batches)]
        return losses[0] if len(losses) == 1 else torch.cat(losses)

    def _parts(self, batches: Sequence[MicroBatch]) -> Iterator[Sequence[MicroBatch]]:
        """Divide the batches into groups that go through the model together."""
        count = 1
        if self.device.reads_without_sync:
            tokens = sum(len(batch.rows) for batch in batches) * (self.columns or 1)
            count = max(1, min(len(batches), round(tokens / self.settings.pass_tokens)))
        ends = [len(batches) * part // count for part in range(count + 1)]
        return (batches[start:end] for start, end in pairwise(ends))

    def _forward_backward(self, batches: Sequence[MicroBatch]) -> torch.Tensor:
        slots = [batch.slot for batch in batches]
        inputs = self._stack([row for batch in batches for row in batch.rows])
        keys = [key for batch in batches for key in batch.row_keys]
        inputs |= slot_inputs(slots, self.bank.slots)
        inputs |= dropout_inputs(slots, keys, self.bank.dropouts, always=not self.bank.flat)
        inputs["step_targets"] = torch.tensor([max(1, batch.step_targets) for batch in batches])
        with onednn_linear.recurring_shape(inputs["input_ids"].numel()):
            return self._runner.run("train", inputs, self._train_pass)

    def _train_pass(self, inputs: Inputs) -> torch.Tensor:
        output = self._forward(inputs)
        losses = self._losses(output, inputs["labels"], 1.0 / inputs["step_targets"])
        losses.sum().backward()
        self.bank.end_batch()
        optimum_habana.mark_step()
        return losses.detach()

    def step(self, settings: Sequence[StepSettings | None]) -> torch.Tensor:
        """Optimizer step of the slots that have settings, `settings` being one entry per slot.

        Sums their gradients over the ranks first. Returns every slot's gradient norm, [K].
        """
        if self.ranks > 1:
            due = [slot for slot, chosen in enumerate(settings) if chosen is not None]
            grads = [grad for _, grad in self.bank.blocks]
            _sum_over_ranks(grads, due, masked=self.device.fixed_shapes)
        norms = self.adamw.step(settings)
        optimum_habana.mark_step()
        return norms

    def evaluate(
        self, slot: int, batches: Iterable[Batch], before_batch: Callable[[], None]
    ) -> tuple[float, int]:
        """One slot's eval loss in nats, summed over these batches, and their labelled tokens.

        Calls `before_batch` before each batch.
        """
        self.base.eval()
        slot_index = slot_inputs([slot], self.bank.slots)
        recurring = _has_few_shapes(batches, self.settings.recurring_eval_shapes)

        def nats(batch: Batch) -> torch.Tensor:
            before_batch()
            batch = batch if self.device.fixed_shapes else with_full_attention(batch)
            with onednn_linear.recurring_shape(batch["input_ids"].numel() if recurring else 0):
                return self._runner.run("evaluate", batch | slot_index, self._evaluation_pass)

        return sum_losses(nats, batches)

    def _evaluation_pass(self, inputs: Inputs) -> torch.Tensor:
        output, labels = self._forward(inputs), inputs["labels"]
        optimum_habana.mark_step()
        if self._loss is None:
            return summed_loss(output, labels, dense=True)
        return self._losses(output, labels, torch.ones(1, device=labels.device)).sum()

    def _stack(self, rows: list[Batch]) -> Inputs:
        batch = {name: tensor[:, : self.columns] for name, tensor in _collate(rows).items()}
        return batch if self.device.fixed_shapes else with_full_attention(batch)

    def _losses(
        self, output: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor
    ) -> torch.Tensor:
        """Summed loss in nats over the labelled tokens of each slot, times its weight, [slots].

        `output` is [rows, columns, vocabulary], or hidden states; `labels` is [rows, columns].
        """
        # Shift the labels, not the large output, by one: the last column has no label then.
        targets = F.pad(labels[:, 1:], (0, 1), value=IGNORE_INDEX).view(len(weights), -1)
        output = output.view(*targets.shape, -1)
        if self._loss is not None:
            return self._loss.forward(output, targets, weights)
        losses = target_cross_entropy(output.flatten(0, 1).float(), targets.flatten())
        return losses.view(len(weights), -1).sum(dim=1) * weights

    def _forward(self, inputs: Inputs) -> torch.Tensor:
        """Logits [rows, columns, vocabulary], or hidden states if the output layer is taken off."""
        self.bank.begin_batch(make_view(inputs, self.bank.slots))
        tensors = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        cast = nullcontext()
        if self._cast is not None:
            cast = torch.autocast(self.bank.device.type, dtype=self._cast)  # type: ignore[assignment]
        with cast:
            output: torch.Tensor = self.base(**tensors, **self._model_inputs).logits
        return output


def _sum_over_ranks(grads: Sequence[torch.Tensor], slots: list[int], *, masked: bool) -> None:
    """All-reduce the gradients of some slots, in place; the others' stay this rank's own.

    Args:
        grads: Gradient blocks, each [K, ...].
        slots: Those whose optimizer step is due; the same on every rank.
        masked: Send all slots and drop those that are not due, where a new shape costs a
            compilation.
    """
    index = torch.tensor(slots, device=grads[0].device)
    parts = list(grads) if masked else [grad[index] for grad in grads]
    sums = torch.cat([part.flatten() for part in parts])
    torch.distributed.all_reduce(sums)
    for grad, part, flat in zip(
        grads, parts, sums.split([part.numel() for part in parts]), strict=True
    ):
        total = flat.view_as(part)
        if masked:
            mask = torch.zeros(len(grad), dtype=torch.bool, device=grad.device)
            mask[index] = True
            grad.copy_(torch.where(mask.view(-1, *[1] * (grad.dim() - 1)), total, grad))
        else:
            grad[index] = total


def _has_few_shapes(batches: Iterable[Batch], most: int) -> bool:
    """Whether batches are a list, so evaluated more than once, of at most `most` shapes."""
    if not isinstance(batches, list):
        return False
    return len({batch["input_ids"].shape for batch in batches}) <= most


_collate = Collator(trim=False)
