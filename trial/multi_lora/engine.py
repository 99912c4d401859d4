"""Forward, backward, step and evaluation of several trials over one frozen base model.

Knows tensors and slots, nothing of folders: what a slot does when is `trial.packed.job`'s.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, nullcontext
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import torch
from torch.nn import functional as F  # noqa: N812 (as torch names it)

from trial.data.collate import Batch, Collator, with_full_attention
from trial.data.tokens import IGNORE_INDEX
from trial.devices import optimum_habana
from trial.devices.device import Device
from trial.multi_lora import onednn_linear
from trial.multi_lora.adamw import Rule, SlotAdamW
from trial.multi_lora.adapter_bank import AdapterBank, install, uninstall
from trial.multi_lora.adapter_init import InitialAdapter, NotPackableError
from trial.multi_lora.causal_attention import causal_only
from trial.multi_lora.cuda_graphs import Given, GraphRunner
from trial.multi_lora.linear_cross_entropy import taken
from trial.training.loss import sum_losses, summed_loss, target_cross_entropy

# Gradients are views of one block on purpose.
warnings.filterwarnings("ignore", message="grad and param do not obey the gradient layout")

ENOUGH = 1024
"""Tokens at a time on a CPU: more leave its caches and gain nothing."""
FEW = 8
"""Shapes of eval batches that it pays to build products for."""
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
        drawn: InitialAdapter,
        slots: int,
        rank: int,
        columns: int | None = None,
        ranks: int = 1,
    ) -> None:
        _refuse_own_dropout(base)
        self.device = device
        self.base = base.to(args.device).requires_grad_(False)
        self._cast = torch.bfloat16 if args.bf16 else None
        flat = not device.fixed_shapes
        self.bank = AdapterBank(drawn, slots, rank, args.device, flat=flat, cast=self._cast)
        self.adamw = SlotAdamW(
            self.bank.blocks, masked=device.fixed_shapes, fused=device.free_reads
        )
        self.columns = None if device.fixed_shapes else columns
        self.ranks = ranks
        self._extra = device.evaluation_inputs(SimpleNamespace(model=base, args=args))
        self._head = None
        with ExitStack() as changed:
            # Where a new shape costs a compilation, a look with a few tokens is dear.
            if not device.fixed_shapes:
                _refuse_routed(self.base, drawn, self._extra)
                head = taken(self.base, drawn, self._cast, self._extra, counted=device.free_reads)
                self._head = changed.enter_context(head)
            if self.bank.device.type == "cpu":
                changed.callback(onednn_linear.thaw, self.base)
                onednn_linear.freeze(self.base)
            changed.callback(uninstall, self.base, self.bank)
            install(self.base, self.bank)
            # Of several ranks each would record by itself, and what fails on one fails on all.
            able = device.record is not None and ranks == 1
            able = able and changed.enter_context(causal_only(self.base))
            self._passes = GraphRunner(self.bank.device, device.record if able else None)
            self._changed = changed.pop_all()

    def close(self) -> Any:
        """The base model as it was."""
        self._passes.forget()
        self._changed.close()
        return self.base

    def forget_recordings(self) -> bool:
        """Give their memory back and do without; whether there can have been any."""
        return self._passes.forget()

    def load(self, slot: int, drawn: InitialAdapter, dropout: float) -> None:
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
        """Forward and backward, a micro-batch of each slot; every slot's rows are equally many.

        Returns each slot's share of its step's loss, [slots at hand], without waiting for it; of
        several ranks, this one's part of that.
        """
        self.base.train()
        losses = [self._pass(part) for part in self._parts(shares)]
        return losses[0] if len(losses) == 1 else torch.cat(losses)

    def _parts(self, shares: Sequence[Share]) -> Iterator[Sequence[Share]]:
        """What goes through the model at once."""
        count = 1
        if self.device.free_reads:
            tokens = sum(len(rows) for _, rows, _, _ in shares) * (self.columns or 1)
            count = max(1, min(len(shares), round(tokens / ENOUGH)))
        ends = [len(shares) * part // count for part in range(count + 1)]
        return (shares[start:end] for start, end in pairwise(ends))

    def _pass(self, shares: Sequence[Share]) -> torch.Tensor:
        slots = [slot for slot, _, _, _ in shares]
        batch = self._batch([row for _, rows, _, _ in shares for row in rows])
        keys = [key for _, _, row_keys, _ in shares for key in row_keys]
        batch |= self.bank.company(slots) | self.bank.dropping(slots, keys)
        batch["targets"] = torch.tensor([max(1, count) for *_, count in shares])
        with onednn_linear.steady(batch["input_ids"].numel()):
            return self._passes.run("train", batch, self._train)

    def _train(self, given: Given) -> torch.Tensor:
        found = self._forward(given)
        losses = self._losses(found, given["labels"], 1.0 / given["targets"])
        losses.sum().backward()
        self.bank.gather()
        optimum_habana.mark_step()
        return losses.detach()

    def step(self, rules: Sequence[Rule | None]) -> torch.Tensor:
        """One optimizer step of the slots that have a rule; every slot's gradient norm."""
        if self.ranks > 1:
            self._sum_over_ranks([slot for slot, rule in enumerate(rules) if rule is not None])
        norms = self.adamw.step(rules)
        optimum_habana.mark_step()
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
        company, few = self.bank.company([slot]), _few_shapes(batches)

        def nats(batch: Batch) -> torch.Tensor:
            alive()
            batch = batch if self.device.fixed_shapes else with_full_attention(batch)
            with onednn_linear.steady(batch["input_ids"].numel() if few else 0):
                return self._passes.run("evaluate", batch | company, self._evaluate)

        return sum_losses(nats, batches)

    def _evaluate(self, given: Given) -> torch.Tensor:
        found, labels = self._forward(given), given["labels"]
        optimum_habana.mark_step()
        if self._head is None:
            return summed_loss(found, labels, dense=True)
        return self._losses(found, labels, torch.ones(1, device=labels.device)).sum()

    def _batch(self, rows: list[Batch]) -> Batch:
        batch = {name: tensor[:, : self.columns] for name, tensor in _stacked(rows).items()}
        return batch if self.device.fixed_shapes else with_full_attention(batch)

    def _losses(
        self, found: torch.Tensor, labels: torch.Tensor, shares: torch.Tensor
    ) -> torch.Tensor:
        """Nats over the labelled tokens of each slot's rows, times its share, [slots].

        Labels are moved, not what they are compared with, which is large: the last column has no
        label then.
        """
        targets = F.pad(labels[:, 1:], (0, 1), value=IGNORE_INDEX).view(len(shares), -1)
        found = found.view(*targets.shape, -1)
        if self._head is not None:
            return self._head.nats(found, targets, shares)
        losses = target_cross_entropy(found.flatten(0, 1).float(), targets.flatten())
        return losses.view(len(shares), -1).sum(dim=1) * shares

    def _forward(self, given: Given) -> torch.Tensor:
        """Logits, or the hidden states that the head makes them of, [rows, columns, ...]."""
        inputs = {name: given[name] for name in ("input_ids", "attention_mask")}
        self.bank.take(given, inputs["input_ids"].shape[1])
        cast = nullcontext()
        if self._cast is not None:
            cast = torch.autocast(self.bank.device.type, dtype=self._cast)  # type: ignore[assignment]
        with cast:
            found: torch.Tensor = self.base(**inputs, **self._extra).logits
        return found


def _few_shapes(batches: Iterable[Batch]) -> bool:
    """Whether batches that are all at hand, to be evaluated many times, are of few shapes."""
    if not isinstance(batches, list):
        return False
    return len({batch["input_ids"].shape for batch in batches}) <= FEW


_stacked = Collator(trim=False)


def _refuse_own_dropout(base: Any) -> None:
    """A base model that drops by torch's own draws drops otherwise in company than alone."""
    config = base.config
    modules = any(isinstance(part, torch.nn.Dropout) and part.p for part in base.modules())
    if modules or getattr(config, "attention_dropout", None) or getattr(config, "attn_pdrop", None):
        raise NotPackableError("the base model has dropout of its own")


def _refuse_routed(base: Any, drawn: InitialAdapter, extra: dict[str, Any]) -> None:
    """A layer that gets some of the tokens, as an expert does, cannot tell whose they are."""
    ids = torch.arange(4, device=base.device).unsqueeze(0)
    missed = {layer.name for layer in drawn.layers}
    with ExitStack() as hooks, torch.no_grad():
        for name in tuple(missed):

            def seen(_: Any, given: tuple[torch.Tensor, ...], name: str = name) -> None:
                if given[0].shape[:-1].numel() == ids.numel():
                    missed.discard(name)

            hook = base.get_submodule(name).register_forward_pre_hook(seen)
            hooks.callback(hook.remove)
        base.eval()(input_ids=ids, attention_mask=torch.ones_like(ids), **extra)
    if missed:
        raise NotPackableError(f"{min(missed)} gets a part of the batch")
