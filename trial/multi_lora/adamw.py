"""AdamW over slots: each slot has its own rate, decay, betas, epsilon, clipping and step count.

The update is that of `torch.optim.AdamW` (decoupled weight decay, bias-corrected moments, epsilon
added after the root), the clipping that of `torch.nn.utils.clip_grad_norm_`, both slot by slot.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch.optim.adamw import adamw

CLIP_EPSILON = 1e-6
"""Added to the norm that is divided by, as in `clip_grad_norm_`."""


@dataclass(frozen=True, slots=True)
class StepSettings:
    """One slot's hyperparameters for one optimizer step."""

    step: int
    """Number of this step, from 1."""
    lr: float
    weight_decay: float
    betas: tuple[float, float]
    eps: float
    max_grad_norm: float
    """0 clips nothing."""
    lr_ratio: float = 1.0
    """Rate of every B over that of every A, which is `lr`: LoRA+ (Hayou et al. 2024)."""


IDLE = StepSettings(
    step=1, lr=0.0, weight_decay=0.0, betas=(0.9, 0.999), eps=1.0, max_grad_norm=0.0
)
"""Stands for a slot that does not step."""


def adamw_update(
    tensors: tuple[torch.Tensor, ...],
    norms: torch.Tensor,
    columns: torch.Tensor,
    ratios: torch.Tensor | None = None,
) -> None:
    """Clip and step slots in place, and zero their gradients.

    Args:
        tensors: Value, gradient, and both moments, each [slots, ...].
        norms: Gradient norms, [slots].
        columns: `_numbers` of each slot's settings, float32 [9, slots].
        ratios: What the rate of each element is multiplied with, float32, of a shape that
            broadcasts to the value's; None for 1 everywhere.
    """
    value, grad, exp_avg, exp_avg_sq = tensors
    shape = (-1, *[1] * (value.dim() - 1))
    max_norm, gain1, beta2, gain2, keep, lr, root, eps, decay = (row.view(shape) for row in columns)
    if ratios is not None:
        keep, lr = 1.0 - decay * ratios, lr * ratios
    clip = (max_norm / (norms.view(shape) + CLIP_EPSILON)).clamp(max=1.0)
    grad.mul_(clip)
    exp_avg.lerp_(grad, gain1.expand_as(grad))
    exp_avg_sq.mul_(beta2).addcmul_(grad * gain2, grad)
    value.mul_(keep)
    value.sub_(exp_avg / (exp_avg_sq.sqrt().mul_(root).add_(eps)) * lr)
    grad.zero_()


Update = Callable[..., None]
"""A function with the parameters of `adamw_update`."""


class SlotAdamW:
    """AdamW's moments for parameter blocks [K, ...], and the optimizer step.

    With `masked`, for devices where a new shape costs a compilation, all slots are computed at
    every step, and those that do not step get their old values back. With `fused`, for a CPU, where
    memory traffic costs more than launching operations, each slot takes torch's own fused step.
    """

    def __init__(
        self,
        blocks: Sequence[tuple[torch.Tensor, torch.Tensor]],
        *,
        masked: bool = False,
        fused: bool = False,
        update: Update = adamw_update,
        b_parts: Sequence[Sequence[slice]] | None = None,
    ) -> None:
        """Make moments of zeros.

        Args:
            blocks: (value, gradient), each [K, ...].
            masked: See above.
            fused: See above.
            update: Used unless `fused`.
            b_parts: Of each block, which parts along the second dimension belong to a B; needed
                where B has a rate of its own (`StepSettings.lr_ratio`).
        """
        self.blocks = blocks
        self.b_parts = b_parts
        self.masked = masked
        self.fused = fused
        self.update = update
        self.exp_avg = [torch.zeros_like(value) for value, _ in blocks]
        self.exp_avg_sq = [torch.zeros_like(value) for value, _ in blocks]

    def clear(self, slot: int) -> None:
        """Zero a slot's moments."""
        for moments in (self.exp_avg, self.exp_avg_sq):
            for moment in moments:
                moment[slot].zero_()

    def grad_norms(self) -> torch.Tensor:
        """Each slot's gradient norm, [K]."""
        norms = [torch.linalg.vector_norm(grad.flatten(1), dim=1) for _, grad in self.blocks]
        return torch.linalg.vector_norm(torch.stack(norms), dim=0)

    def step(self, settings: Sequence[StepSettings | None]) -> torch.Tensor:
        """Clip and step the slots that have settings, and zero their gradients.

        The others' values, moments and gradients stay as they are, to the bit. Returns each slot's
        gradient norm before clipping, [K].
        """
        norms = self.grad_norms()
        if self.masked:
            self._step_masked(norms, settings)
        elif self.fused:
            self._step_fused(norms, settings)
        else:
            self._step_chosen(norms, settings)
        return norms

    def _step_chosen(self, norms: torch.Tensor, settings: Sequence[StepSettings | None]) -> None:
        """Step all slots at once if all have settings, else those that have one by one."""
        stepping = [slot for slot, chosen in enumerate(settings) if chosen is not None]
        given = [chosen for chosen in settings if chosen is not None]
        columns = self._columns(given)
        for block, tensors in enumerate(self._tensors()):
            ratios = self._ratios(block, given)
            if len(stepping) == len(settings):
                self.update(tensors, norms, columns, ratios)
                continue
            for column, slot in enumerate(stepping):
                row, number = slice(slot, slot + 1), slice(column, column + 1)
                rows = tuple(tensor[row] for tensor in tensors)
                of_row = None if ratios is None else ratios[number]
                self.update(rows, norms[row], columns[:, number], of_row)

    def _step_fused(self, norms: torch.Tensor, settings: Sequence[StepSettings | None]) -> None:
        """Step each slot by torch's fused AdamW."""
        numbers = norms.tolist()
        for block, tensors in enumerate(self._tensors()):
            for slot, (chosen, norm) in enumerate(zip(settings, numbers, strict=True)):
                if chosen is None:
                    continue
                b_parts = None if chosen.lr_ratio == 1.0 else self._parts_of_b(block)
                _fused_update([tensor[slot] for tensor in tensors], norm, chosen, b_parts)

    def _step_masked(self, norms: torch.Tensor, settings: Sequence[StepSettings | None]) -> None:
        """Step every slot, and put back the old values of those without settings."""
        steps = torch.tensor([chosen is not None for chosen in settings]).to(norms.device)
        given = [chosen or IDLE for chosen in settings]
        columns = self._columns(given)
        for block, tensors in enumerate(self._tensors()):
            before = [tensor.clone() for tensor in tensors]
            self.update(tensors, norms, columns, self._ratios(block, given))
            mask = steps.view(-1, *[1] * (tensors[0].dim() - 1))
            for tensor, old in zip(tensors, before, strict=True):
                tensor.copy_(torch.where(mask, tensor, old))

    def _parts_of_b(self, block: int) -> Sequence[slice]:
        if self.b_parts is None:
            raise ValueError("a B with a rate of its own needs `b_parts`")
        return self.b_parts[block]

    def _ratios(self, block: int, settings: Sequence[StepSettings]) -> torch.Tensor | None:
        """Factors of the rates of a block's elements, [slots, size, 1, ...]; None if all are 1."""
        if all(chosen.lr_ratio == 1.0 for chosen in settings):
            return None
        value = self.blocks[block][0]
        belongs_to_b = torch.zeros(value.shape[1], dtype=torch.bool)
        for part in self._parts_of_b(block):
            belongs_to_b[part] = True
        of_slots = torch.tensor([chosen.lr_ratio for chosen in settings]).unsqueeze(1)
        ratios = torch.where(belongs_to_b, of_slots, 1.0).to(value.device)
        return ratios.view(*ratios.shape, *[1] * (value.dim() - 2))

    def _tensors(self) -> Iterator[tuple[torch.Tensor, ...]]:
        """Value, gradient and both moments of every block."""
        moments = zip(self.exp_avg, self.exp_avg_sq, strict=True)
        for (value, grad), (exp_avg, exp_avg_sq) in zip(self.blocks, moments, strict=True):
            yield value, grad, exp_avg, exp_avg_sq

    def _columns(self, settings: Sequence[StepSettings]) -> torch.Tensor:
        """Nine numbers of each slot, computed in float64 on the host: float32 [9, slots]."""
        columns = [_numbers(chosen) for chosen in settings]
        return torch.tensor(columns, dtype=torch.float32).t().to(self.blocks[0][0].device)


def _numbers(settings: StepSettings) -> tuple[float, ...]:
    """The nine numbers of `adamw_update`, in the order in which it unpacks them.

    Clipping norm, 1 - beta1, beta2, 1 - beta2, 1 - rate * weight decay, rate over the first bias
    correction, inverse root of the second one, epsilon, rate * weight decay.
    """
    beta1, beta2 = settings.betas
    return (
        settings.max_grad_norm or float("inf"),
        1 - beta1,
        beta2,
        1 - beta2,
        1 - settings.lr * settings.weight_decay,
        settings.lr / (1 - beta1**settings.step),
        (1 - beta2**settings.step) ** -0.5,
        settings.eps,
        settings.lr * settings.weight_decay,
    )


def _fused_update(
    tensors: Sequence[torch.Tensor],
    norm: float,
    settings: StepSettings,
    b_parts: Sequence[slice] | None,
) -> None:
    """Clip and step one slot by torch's fused AdamW, and zero its gradient.

    `b_parts`: where B has a rate of its own, the parts of a tensor that belong to it.
    """
    grad = tensors[1]
    clip = (settings.max_grad_norm or float("inf")) / (norm + CLIP_EPSILON)
    # A norm that is NaN makes the gradient NaN, as clip_grad_norm_ does.
    if not clip >= 1.0:
        grad.mul_(clip)
    if b_parts is None:
        _fused_adamw(tensors, (slice(None),), settings.lr, settings)
    else:
        _fused_adamw(tensors, _gaps(b_parts, len(grad)), settings.lr, settings)
        _fused_adamw(tensors, b_parts, settings.lr * settings.lr_ratio, settings)
    grad.zero_()


def _fused_adamw(
    tensors: Sequence[torch.Tensor], parts: Sequence[slice], lr: float, settings: StepSettings
) -> None:
    """Torch's fused AdamW on parts of one slot's value, gradient and moments, at one rate."""
    if not parts:
        return
    value, grad, exp_avg, exp_avg_sq = ([tensor[part] for part in parts] for tensor in tensors)
    steps = [torch.tensor(settings.step - 1.0) for _ in parts]
    adamw(
        value, grad, exp_avg, exp_avg_sq, [], steps,
        fused=True, foreach=False, amsgrad=False, maximize=False, lr=lr,
        beta1=settings.betas[0], beta2=settings.betas[1], weight_decay=settings.weight_decay,
        eps=settings.eps,
    )  # fmt: skip


def _gaps(parts: Sequence[slice], size: int) -> list[slice]:
    """What ascending parts of a dimension leave over."""
    ends = [0, *(part.stop for part in parts)]
    starts = [*(part.start for part in parts), size]
    return [slice(a, b) for a, b in zip(ends, starts, strict=True) if a < b]
