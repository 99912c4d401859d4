"""The objectives: each a function (model, batch, **arguments) -> this batch's share of the loss.

`model(batch)` gives the logits of every side, `model.reference(batch, side)` those before training.
A side's `per_row` and `per_token` take the mean over the whole optimizer step, so that accumulation
and several ranks train as one large batch would. L is the nats of a completion given its prompt.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn.functional import kl_div, logsigmoid

from trial.config import user_functions
from trial.config.objective_registry import KEY, is_user_function
from trial.objectives.batch import (
    Batch,
    BatchPart,
    Logits,
    Model,
    per_row_cross_entropy,
    per_token_cross_entropy,
    wide,
)

Objective = Callable[..., torch.Tensor]


def sft(model: Model, batch: Batch) -> torch.Tensor:
    """Nats per completion token, as the ordinary trainer takes it; for batches without sides."""
    return _per_token(model(batch)["train"], batch["train"])


def grad_ascent(model: Model, batch: Batch) -> torch.Tensor:
    """Minus the nats per token of the forget set (TOFU)."""
    return -_per_token(model(batch)["forget"], batch["forget"])


def grad_diff(model: Model, batch: Batch, *, retain_weight: float) -> torch.Tensor:
    """`grad_ascent`, and the retain set learned beside it (TOFU)."""
    now = model(batch)
    return _retained(now, batch, retain_weight) - _per_token(now["forget"], batch["forget"])


def kl(model: Model, batch: Batch, *, retain_weight: float) -> torch.Tensor:
    """`grad_ascent`, and the retain set answered as before (TOFU).

    KL(before || now) of the next token, averaged over each row's own tokens, prompt included,
    then over rows, as the paper has it; its published code averages over the padding too.
    """
    before = model.reference(batch, "retain") if retain_weight else {}
    now = model(batch)
    loss = -_per_token(now["forget"], batch["forget"])
    if not retain_weight:
        return loss
    retain = batch["retain"]
    return loss + retain_weight * retain.per_row(
        row_divergence(before["retain"], now["retain"], retain.lengths)
    )


def idk(model: Model, batch: Batch, *, retain_weight: float) -> torch.Tensor:
    """Other answers to the forget set's questions learned beside the retain set (TOFU)."""
    now = model(batch)
    learned = _per_token(now["alternative"], batch["alternative"])
    return learned + _retained(now, batch, retain_weight)


def dpo(model: Model, batch: Batch, *, beta: float, retain_weight: float) -> torch.Tensor:
    """The other answer preferred to the one to forget: -log sigmoid(beta (m_other - m_forget)).

    m is how much likelier the model finds an answer than its reference does, in nats.
    """
    wanted = ("alternative", "forget")
    before = model.reference(batch, *wanted)
    now = model(batch)
    other, forget = (
        per_row_cross_entropy(before[side], batch[side].labels)
        - per_row_cross_entropy(now[side], batch[side].labels)
        for side in wanted
    )
    loss = batch["forget"].per_row(-logsigmoid(beta * (other - forget)))
    return loss + _retained(now, batch, retain_weight)


def npo(model: Model, batch: Batch, *, beta: float, retain_weight: float) -> torch.Tensor:
    """Negative preference: -2/beta log sigmoid(beta (L - L_reference)) on the forget set."""
    forget = batch["forget"]
    before = per_row_cross_entropy(model.reference(batch, "forget")["forget"], forget.labels)
    now = model(batch)
    harder = per_row_cross_entropy(now["forget"], forget.labels) - before
    loss = forget.per_row(-2 / beta * logsigmoid(beta * harder))
    return loss + _retained(now, batch, retain_weight)


def simnpo(
    model: Model, batch: Batch, *, beta: float, gamma: float, retain_weight: float
) -> torch.Tensor:
    """NPO without a reference: -2/beta log sigmoid(beta L / tokens - gamma) on the forget set."""
    forget = batch["forget"]
    now = model(batch)
    each = per_row_cross_entropy(now["forget"], forget.labels) / forget.targets.clamp(min=1)
    loss = forget.per_row(-2 / beta * logsigmoid(beta * each - gamma))
    return loss + _retained(now, batch, retain_weight)


FUNCTIONS: dict[str, Objective] = {
    "sft": sft,
    "grad_ascent": grad_ascent,
    "grad_diff": grad_diff,
    "kl": kl,
    "idk": idk,
    "dpo": dpo,
    "npo": npo,
    "simnpo": simnpo,
}
"""By the names of `trial.config.objective_registry.OBJECTIVES`."""


def find(name: str) -> Objective:
    """A built-in objective, or the user's own.

    Raises:
        ConfigError: the user's own cannot be imported.
    """
    return (
        user_functions.load_function(f"{KEY}.name", name)
        if is_user_function(name)
        else FUNCTIONS[name]
    )


def compute(
    objective: Objective, name: str, model: Model, batch: Batch, arguments: dict[str, Any]
) -> torch.Tensor:
    """The loss of a batch.

    Raises:
        ValueError: the objective returned something else.
    """
    loss = objective(model, batch, **arguments)
    if not isinstance(loss, torch.Tensor) or loss.dim():
        got = f"a tensor of shape {tuple(loss.shape)}" if hasattr(loss, "shape") else repr(loss)
        rule = "must return this batch's share of the step's loss, one number: see Side.per_row"
        raise ValueError(f"objective {name} {rule}, got {got}")
    return loss


def row_divergence(before: torch.Tensor, now: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """[rows]: KL(before || now) of the next token, averaged over each row's own tokens."""
    each = kl_div(
        wide(now[:, :-1]).log_softmax(-1),
        wide(before[:, :-1]).log_softmax(-1),
        reduction="none",
        log_target=True,
    ).sum(dim=-1)
    followed = lengths.unsqueeze(1) - 1
    inside = torch.arange(each.shape[1], device=each.device).unsqueeze(0) < followed
    return (each * inside).sum(dim=1) / followed.squeeze(1).clamp(min=1)


def _per_token(logits: torch.Tensor, side: BatchPart) -> torch.Tensor:
    return side.per_token(per_token_cross_entropy(logits, side.labels))


def _retained(now: Logits, batch: Batch, weight: float) -> torch.Tensor | float:
    """The weighted nats per token of the retain set; nothing where it has no weight."""
    return weight * _per_token(now["retain"], batch["retain"]) if weight else 0.0
