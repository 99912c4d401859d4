"""The objectives: each a function (model, batch, **arguments) -> this batch's share of the loss.

`model(batch)` returns the logits of every part of the batch, `model.reference(batch, part)` those
of the model before training. A part's `per_row` and `per_token` average over the whole optimizer
step, so that gradient accumulation and several ranks train as one large batch would. In the
docstrings, L is the cross-entropy of a completion in nats: -log P(completion | prompt).
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
    at_least_float32,
    per_row_cross_entropy,
    per_token_cross_entropy,
)

LossFunction = Callable[..., torch.Tensor]


def sft(model: Model, batch: Batch) -> torch.Tensor:
    """Cross-entropy per completion token, as the ordinary trainer's; batches hold `train` alone."""
    return _per_token(model(batch)["train"], batch["train"])


def grad_ascent(model: Model, batch: Batch) -> torch.Tensor:
    """Minus the cross-entropy per token of the forget set (TOFU)."""
    return -_per_token(model(batch)["forget"], batch["forget"])


def grad_diff(model: Model, batch: Batch, *, retain_weight: float) -> torch.Tensor:
    """`grad_ascent` plus the cross-entropy per token of the retain set (TOFU)."""
    now = model(batch)
    return _retained(now, batch, retain_weight) - _per_token(now["forget"], batch["forget"])


def kl(model: Model, batch: Batch, *, retain_weight: float) -> torch.Tensor:
    """`grad_ascent` plus the divergence from the reference model on the retain set (TOFU).

    KL(reference || model) of the next token, averaged over each row's own tokens, prompt included,
    then over rows, as in the paper; its published code averages over the padding too.
    """
    reference = model.reference(batch, "retain") if retain_weight else {}
    now = model(batch)
    loss = -_per_token(now["forget"], batch["forget"])
    if not retain_weight:
        return loss
    retain = batch["retain"]
    return loss + retain_weight * retain.per_row(
        row_divergence(reference["retain"], now["retain"], retain.lengths)
    )


def idk(model: Model, batch: Batch, *, retain_weight: float) -> torch.Tensor:
    """Cross-entropy of other answers ("I don't know"), plus that of the retain set (TOFU)."""
    now = model(batch)
    alternative = _per_token(now["alternative"], batch["alternative"])
    return alternative + _retained(now, batch, retain_weight)


def dpo(model: Model, batch: Batch, *, beta: float, retain_weight: float) -> torch.Tensor:
    """Prefer the alternative answer to the one to forget: -log sigmoid(beta (m_alt - m_forget)).

    m is the log-probability of an answer under the model minus that under the reference (DPO:
    Rafailov et al. 2023, arXiv:2305.18290).
    """
    names = ("alternative", "forget")
    reference = model.reference(batch, *names)
    now = model(batch)
    alternative, forget = (
        per_row_cross_entropy(reference[name], batch[name].labels)
        - per_row_cross_entropy(now[name], batch[name].labels)
        for name in names
    )
    loss = batch["forget"].per_row(-logsigmoid(beta * (alternative - forget)))
    return loss + _retained(now, batch, retain_weight)


def npo(model: Model, batch: Batch, *, beta: float, retain_weight: float) -> torch.Tensor:
    """Negative preference optimisation: -2/beta log sigmoid(beta (L - L_reference)), forget set.

    Zhang et al. 2024, arXiv:2404.05868.
    """
    forget = batch["forget"]
    reference = model.reference(batch, "forget")["forget"]
    loss_before = per_row_cross_entropy(reference, forget.labels)
    now = model(batch)
    increase = per_row_cross_entropy(now["forget"], forget.labels) - loss_before
    loss = forget.per_row(-2 / beta * logsigmoid(beta * increase))
    return loss + _retained(now, batch, retain_weight)


def simnpo(
    model: Model, batch: Batch, *, beta: float, gamma: float, retain_weight: float
) -> torch.Tensor:
    """NPO without a reference: -2/beta log sigmoid(beta L / tokens - gamma), forget set.

    Fan et al. 2024, arXiv:2410.07163.
    """
    forget = batch["forget"]
    now = model(batch)
    loss_per_token = per_row_cross_entropy(now["forget"], forget.labels) / forget.targets.clamp(
        min=1
    )
    loss = forget.per_row(-2 / beta * logsigmoid(beta * loss_per_token - gamma))
    return loss + _retained(now, batch, retain_weight)


FUNCTIONS: dict[str, LossFunction] = {
    "sft": sft,
    "grad_ascent": grad_ascent,
    "grad_diff": grad_diff,
    "kl": kl,
    "idk": idk,
    "dpo": dpo,
    "npo": npo,
    "simnpo": simnpo,
}
"""By the names in `trial.config.objective_registry.OBJECTIVES`."""


def find(name: str) -> LossFunction:
    """A built-in objective, or a user's function (`package.module:function`).

    Raises:
        ConfigError: the user's function cannot be imported.
    """
    return (
        user_functions.load_function(f"{KEY}.name", name)
        if is_user_function(name)
        else FUNCTIONS[name]
    )


def compute(
    objective: LossFunction, name: str, model: Model, batch: Batch, arguments: dict[str, Any]
) -> torch.Tensor:
    """A batch's share of the loss of its optimizer step, a scalar tensor.

    Raises:
        ValueError: the objective returned something else.
    """
    loss = objective(model, batch, **arguments)
    if not isinstance(loss, torch.Tensor) or loss.dim():
        got = f"a tensor of shape {tuple(loss.shape)}" if hasattr(loss, "shape") else repr(loss)
        rule = (
            "must return this batch's share of the step's loss, one number: see BatchPart.per_row"
        )
        raise ValueError(f"objective {name} {rule}, got {got}")
    return loss


def row_divergence(
    reference: torch.Tensor, now: torch.Tensor, lengths: torch.Tensor
) -> torch.Tensor:
    """[rows]: KL(reference || now) of the next token in nats, averaged over each row's own tokens.

    Both are logits, [rows, columns, vocabulary]; `lengths` is [rows].
    """
    per_token = kl_div(
        at_least_float32(now[:, :-1]).log_softmax(-1),
        at_least_float32(reference[:, :-1]).log_softmax(-1),
        reduction="none",
        log_target=True,
    ).sum(dim=-1)
    predicted = lengths.unsqueeze(1) - 1
    columns = torch.arange(per_token.shape[1], device=per_token.device)
    inside = columns.unsqueeze(0) < predicted
    return (per_token * inside).sum(dim=1) / predicted.squeeze(1).clamp(min=1)


def _per_token(logits: torch.Tensor, part: BatchPart) -> torch.Tensor:
    return part.per_token(per_token_cross_entropy(logits, part.labels))


def _retained(now: Logits, batch: Batch, weight: float) -> torch.Tensor | float:
    """The weighted cross-entropy per token of the retain set; 0 without a weight."""
    return weight * _per_token(now["retain"], batch["retain"]) if weight else 0.0
