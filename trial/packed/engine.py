"""Forward, backward, step and evaluation of several trials over one frozen base model.

Knows tensors and slots, nothing of folders: what a slot does when is `trial.packed.job`'s.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from trial import gaudi
from trial.batches import IGNORED, Batch, Collator, open_mask
from trial.devices import Device
from trial.loss import total_loss
from trial.packed.adamw import Rule, SlotAdamW
from trial.packed.bank import Bank, install, uninstall
from trial.packed.skeleton import Drawn, NotPackableError

# Gradients are views of one block on purpose.
warnings.filterwarnings("ignore", message="grad and param do not obey the gradient layout")

Share = tuple[int, list[Batch], list[int], int]
"""A slot's part of a batch: slot, rows, their dropout keys, and over how many tokens of the whole
optimizer step its loss is taken."""


class Engine:
    """One base model with a bank of slots over it; `close` gives the base model back untouched.

    Training batches are all `columns` wide: were they as wide as the longest row at hand, sums
    would be rounded otherwise in other company.
    """

    def __init__(
        self,
        base: Any,
        device: Device,
        args: Any,
        drawn: Drawn,
        slots: int,
        rank: int,
        columns: int | None = None,
        ranks: int = 1,
    ) -> None:
        _refuse_own_dropout(base)
        self.device = device
        self.base = base.to(args.device).requires_grad_(False)
        self.bank = Bank(drawn, slots, rank, args.device, flat=not device.fixed_shapes)
        self.adamw = SlotAdamW(self.bank.blocks, masked=device.fixed_shapes)
        self.columns = None if device.fixed_shapes else columns
        self.ranks = ranks
        self._extra = device.evaluation_inputs(SimpleNamespace(model=base, args=args))
        self._cast = torch.bfloat16 if args.bf16 else None
        install(self.base, self.bank)

    def close(self) -> Any:
        """The base model as it was."""
        uninstall(self.base, self.bank)
        return self.base

    def load(self, slot: int, drawn: Drawn, dropout: float) -> None:
        """Put a fresh adapter into a slot."""
        self.bank.load(slot, drawn, dropout)
        self.adamw.clear(slot)

    def clear(self, slot: int) -> None:
        """Empty a slot."""
        self.bank.clear(slot)
        self.adamw.clear(slot)

    def forget_gradients(self) -> None:
        """Zero all gradients: what has been done of a step is done again."""
        for _, grad in self.bank.blocks:
            grad.zero_()

    def accumulate(self, shares: Sequence[Share]) -> torch.Tensor:
        """One forward and backward pass; every slot's rows are equally many.

        Returns each slot's share of its step's loss, [slots at hand], without waiting for it; of
        several ranks, this one's part of that.
        """
        slots = [slot for slot, _, _, _ in shares]
        self.base.train()
        self.bank.pick(slots)
        batch = self._batch([row for _, rows, _, _ in shares for row in rows])
        keys = [key for _, _, row_keys, _ in shares for key in row_keys]
        self.bank.drop(slots, keys, batch["input_ids"].shape[1])
        labels = batch.pop("labels")
        sums = self._sums(self._logits(batch), labels, len(slots))
        targets = torch.tensor([max(1, count) for *_, count in shares], device=self.bank.device)
        losses = sums / targets
        losses.sum().backward()
        gaudi.mark_step()
        return losses.detach()

    def step(self, rules: Sequence[Rule | None]) -> torch.Tensor:
        """One optimizer step of the slots that have a rule; every slot's gradient norm."""
        if self.ranks > 1:
            self._sum_over_ranks([slot for slot, rule in enumerate(rules) if rule is not None])
        norms = self.adamw.step(rules)
        gaudi.mark_step()
        return norms

    def _sum_over_ranks(self, due: list[int]) -> None:
        """Add up the gradients of slots whose step is due; the others' have not come so far."""
        grads = [grad for _, grad in self.bank.blocks]
        chosen = torch.tensor(due, device=self.bank.device)
        # Where a new shape costs a compilation all go, and those that are not due are dropped.
        parts = grads if self.device.fixed_shapes else [grad[chosen] for grad in grads]
        sums = torch.cat([part.flatten() for part in parts])
        torch.distributed.all_reduce(sums)
        found = sums.split([part.numel() for part in parts])
        for grad, part, summed in zip(grads, parts, found, strict=True):
            whole = summed.view_as(part)
            if self.device.fixed_shapes:
                mask = torch.zeros(len(grad), dtype=torch.bool, device=grad.device)
                mask[chosen] = True
                grad.copy_(torch.where(mask.view(-1, *[1] * (grad.dim() - 1)), whole, grad))
            else:
                grad[chosen] = whole

    def evaluate(self, slot: int, batches: Iterable[Batch], alive: Any) -> tuple[float, int]:
        """The eval loss of one slot over these batches: nats, and over how many tokens."""
        self.base.eval()
        self.bank.pick([slot])

        def forward(inputs: Batch) -> torch.Tensor:
            alive()
            inputs = inputs if self.device.fixed_shapes else open_mask(inputs)
            logits = self._logits(self._moved(inputs))
            gaudi.mark_step()
            return logits

        return total_loss(forward, batches, dense=self.device.fixed_shapes)

    def _batch(self, rows: list[Batch]) -> Batch:
        batch = {name: tensor[:, : self.columns] for name, tensor in _stacked(rows).items()}
        return self._moved(batch if self.device.fixed_shapes else open_mask(batch))

    def _moved(self, batch: Batch) -> Batch:
        device = self.bank.device
        return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}

    def _logits(self, inputs: Batch) -> torch.Tensor:
        cast = nullcontext()
        if self._cast is not None:
            cast = torch.autocast(self.bank.device.type, dtype=self._cast)  # type: ignore[assignment]
        with cast:
            logits: torch.Tensor = self.base(**inputs, **self._extra).logits
        return logits

    def _sums(self, logits: torch.Tensor, labels: torch.Tensor, slots: int) -> torch.Tensor:
        """Nats over the labelled tokens of each slot's rows, [slots]."""
        predictions, targets = logits[:, :-1], labels[:, 1:]
        if self.device.fixed_shapes or not self.device.free_reads:
            # Masked positions cost less than to wait for their number.
            losses = cross_entropy(
                predictions.flatten(0, 1).float(),
                targets.flatten(),
                ignore_index=IGNORED,
                reduction="none",
            )
            return losses.view(slots, -1).sum(dim=1)
        wanted = targets != IGNORED
        losses = cross_entropy(predictions[wanted].float(), targets[wanted], reduction="none")
        counts = wanted.view(slots, -1).sum(dim=1).tolist()
        return torch.stack([part.sum() for part in losses.split(counts)])


_stacked = Collator(trim=False)


def _refuse_own_dropout(base: Any) -> None:
    """A base model that drops by torch's own draws drops otherwise in company than alone."""
    config = base.config
    modules = any(isinstance(part, torch.nn.Dropout) and part.p for part in base.modules())
    if modules or getattr(config, "attention_dropout", None) or getattr(config, "attn_pdrop", None):
        raise NotPackableError("the base model has dropout of its own")
