"""AdamW over slots: every slot has its own rate, decay, betas, epsilon, clipping and step count.

The rule is torch's `AdamW` (decoupled decay, bias-corrected moments, epsilon after the root), the
clipping torch's `clip_grad_norm_`, both slot by slot. All of it is data of shape [K].
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch.optim.adamw import adamw

_CLIP_EPSILON = 1e-6
"""As in torch's `clip_grad_norm_`."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One slot's hyperparameters for one optimizer step."""

    step: int
    """Number of this step, from 1."""
    rate: float
    decay: float
    betas: tuple[float, float]
    epsilon: float
    max_norm: float
    """0 clips nothing."""


_IDLE = Rule(step=1, rate=0.0, decay=0.0, betas=(0.9, 0.999), epsilon=1.0, max_norm=0.0)
"""Stands for a slot that is not due."""


class SlotAdamW:
    """Moments for blocks of values [K, ...], and the step that moves them.

    Where a new shape costs a compilation (`masked`), all slots are computed at every step, and
    those that are not due get back what they were. Where a launch costs nothing and memory traffic
    all (`fused`), each slot takes torch's own fused step by itself.
    """

    def __init__(
        self,
        blocks: Sequence[tuple[torch.Tensor, torch.Tensor]],
        *,
        masked: bool = False,
        fused: bool = False,
    ) -> None:
        self.blocks = blocks
        self.masked = masked
        self.fused = fused
        self.first = [torch.zeros_like(value) for value, _ in blocks]
        self.second = [torch.zeros_like(value) for value, _ in blocks]

    def clear(self, slot: int) -> None:
        """Forget a slot's moments."""
        for moments in (self.first, self.second):
            for moment in moments:
                moment[slot].zero_()

    def norms(self) -> torch.Tensor:
        """Each slot's gradient norm, [K]."""
        squares = [torch.linalg.vector_norm(grad.flatten(1), dim=1) for _, grad in self.blocks]
        return torch.linalg.vector_norm(torch.stack(squares), dim=0)

    def step(self, rules: Sequence[Rule | None]) -> torch.Tensor:
        """Clip and step the slots that have a rule, and zero their gradients.

        The others' values, moments and gradients stay as they are, to the bit. Returns each slot's
        gradient norm before clipping, [K].
        """
        norms = self.norms()
        due = [index for index, rule in enumerate(rules) if rule is not None]
        if self.masked:
            mask = torch.tensor([rule is not None for rule in rules]).to(norms.device)
            self._step_all(norms, self._table([rule or _IDLE for rule in rules]), mask)
            return norms
        if self.fused:
            self._step_fused(norms, rules)
            return norms
        table = self._table([rule for rule in rules if rule is not None])
        chosen = None if len(due) == len(rules) else due
        for tensors in self._tensors():
            if chosen is None:
                _move(tensors, norms, table)
            else:
                for row, slot in enumerate(chosen):
                    here = slice(slot, slot + 1)
                    rows = tuple(tensor[here] for tensor in tensors)
                    _move(rows, norms[here], table[:, row : row + 1])
        return norms

    def _step_fused(self, norms: torch.Tensor, rules: Sequence[Rule | None]) -> None:
        found = norms.tolist()
        for tensors in self._tensors():
            for slot, (rule, norm) in enumerate(zip(rules, found, strict=True)):
                if rule is not None:
                    _move_fused([tensor[slot] for tensor in tensors], norm, rule)

    def _step_all(self, norms: torch.Tensor, table: torch.Tensor, due: torch.Tensor) -> None:
        """Step every slot, and take back what was done to those that are not due."""
        for tensors in self._tensors():
            before = [tensor.clone() for tensor in tensors]
            _move(tensors, norms, table)
            mask = due.view(-1, *[1] * (tensors[0].dim() - 1))
            for tensor, old in zip(tensors, before, strict=True):
                tensor.copy_(torch.where(mask, tensor, old))

    def _tensors(self) -> Iterator[tuple[torch.Tensor, ...]]:
        """Value, gradient and both moments of every block."""
        for (value, grad), first, second in zip(self.blocks, self.first, self.second, strict=True):
            yield value, grad, first, second

    def _table(self, rules: Sequence[Rule]) -> torch.Tensor:
        """Eight numbers for each slot, worked out in double precision on the host: [8, slots]."""
        columns = [_numbers(rule) for rule in rules]
        return torch.tensor(columns, dtype=torch.float32).t().to(self.blocks[0][0].device)


def _numbers(rule: Rule) -> tuple[float, ...]:
    beta1, beta2 = rule.betas
    return (
        rule.max_norm or float("inf"),
        1 - beta1,
        beta2,
        1 - beta2,
        1 - rule.rate * rule.decay,
        rule.rate / (1 - beta1**rule.step),
        (1 - beta2**rule.step) ** -0.5,
        rule.epsilon,
    )


def _move(tensors: tuple[torch.Tensor, ...], norms: torch.Tensor, table: torch.Tensor) -> None:
    value, grad, first, second = tensors
    shape = (-1, *[1] * (value.dim() - 1))
    limit, gain1, beta2, gain2, keep, rate, root, epsilon = (row.view(shape) for row in table)
    share = (limit / (norms.view(shape) + _CLIP_EPSILON)).clamp(max=1.0)
    grad.mul_(share)
    first.lerp_(grad, gain1.expand_as(grad))
    second.mul_(beta2).addcmul_(grad * gain2, grad)
    value.mul_(keep)
    value.sub_(first / (second.sqrt().mul_(root).add_(epsilon)) * rate)
    grad.zero_()


def _move_fused(tensors: Sequence[torch.Tensor], norm: float, rule: Rule) -> None:
    value, grad, first, second = tensors
    share = (rule.max_norm or float("inf")) / (norm + _CLIP_EPSILON)
    # A norm that is no number makes the gradient none, as torch's clipping does.
    if not share >= 1.0:
        grad.mul_(share)
    adamw(
        [value], [grad], [first], [second], [], [torch.tensor(rule.step - 1.0)],
        fused=True, foreach=False, amsgrad=False, maximize=False, lr=rule.rate,
        beta1=rule.betas[0], beta2=rule.betas[1], weight_decay=rule.decay, eps=rule.epsilon,
    )  # fmt: skip
    grad.zero_()
