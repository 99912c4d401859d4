"""The exact eval loss: cross-entropy per completion token over the whole held-out set."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch.nn.functional import cross_entropy

from trial.batches import IGNORED, Batch

Forward = Callable[[Batch], torch.Tensor]
"""A batch without labels to logits [rows, columns, vocabulary]."""


def exact_loss(forward: Forward, batches: Iterable[Batch], *, dense: bool, ranks: int = 1) -> float:
    """Nats per token: one sum over the whole set divided by one count, no mean of means.

    `dense` computes masked positions too, and drops them, for devices that want fixed shapes.
    """
    measure = _dense_sum if dense else _sparse_sum
    sums, count = [], 0
    with torch.no_grad():
        for batch in batches:
            labels = batch["labels"][:, 1:]
            count += int((labels != IGNORED).sum())
            inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
            sums.append(measure(forward(inputs)[:, :-1], labels))
    # One transfer from the device; added up there in float64, which not every device has.
    total = torch.stack(sums).cpu().double().sum() if sums else torch.zeros((), dtype=torch.double)
    return _divide(total, count, ranks)


def _dense_sum(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    target = labels.to(logits.device).flatten()
    flat = logits.float().flatten(0, 1)
    return cross_entropy(flat, target, ignore_index=IGNORED, reduction="sum")


def _sparse_sum(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    labels = labels.to(logits.device)
    wanted = labels != IGNORED
    return cross_entropy(logits[wanted].float(), labels[wanted], reduction="sum")


def _divide(total: torch.Tensor, count: int, ranks: int) -> float:
    both = torch.stack([total, torch.tensor(count, dtype=torch.double)])
    if ranks > 1:
        gathered: list[torch.Tensor | None] = [None] * ranks
        torch.distributed.all_gather_object(gathered, both)
        both = torch.stack([item for item in gathered if item is not None]).sum(dim=0)
    return float(both[0] / both[1])
