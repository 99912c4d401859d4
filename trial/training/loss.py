"""Cross-entropy over completion tokens: the training loss, and the exact eval loss."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from trial.data.collate import Batch
from trial.data.tokens import IGNORE_INDEX

Forward = Callable[[Batch], torch.Tensor]
"""A batch without labels to logits [rows, columns, vocabulary]."""


def summed_loss(
    logits: torch.Tensor, labels: torch.Tensor, *, dense: bool, smoothing: float = 0.0
) -> torch.Tensor:
    """Nats over all labelled tokens, each predicted from those before it; computed in float32.

    `logits` is [rows, columns, vocabulary], `labels` [rows, columns]. `dense` computes masked
    positions too, and drops them, for devices that want fixed shapes.
    """
    predictions, targets = logits[:, :-1], labels[:, 1:].to(logits.device)
    if dense:
        predictions, targets = predictions.flatten(0, 1), targets.flatten()
    else:
        wanted = targets != IGNORE_INDEX
        predictions, targets = predictions[wanted], targets[wanted]
    return cross_entropy(
        predictions.float(),
        targets,
        ignore_index=IGNORE_INDEX,
        reduction="sum",
        label_smoothing=smoothing,
    )


def target_cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Each target's loss, [positions], of float32 `logits` [positions, vocabulary]; 0 if ignored.

    As torch's cross-entropy without a reduction, and one pass less over the gradient of the logits,
    which is as large as all that a small model computes. It has no second derivative.
    """
    found: torch.Tensor = _TargetCrossEntropy.apply(logits, targets)
    return found


class _TargetCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        logarithms = logits.log_softmax(dim=1)
        ctx.save_for_backward(logarithms, targets)
        places = targets.clamp(min=0).unsqueeze(1)
        return -logarithms.gather(1, places).squeeze(1).masked_fill(targets == IGNORE_INDEX, 0.0)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        logarithms, targets = ctx.saved_tensors
        share = gradient.masked_fill(targets == IGNORE_INDEX, 0.0).unsqueeze(1)
        # In place: what was saved is of no use any more.
        found = logarithms.exp_().mul_(share)
        return found.scatter_add_(1, targets.clamp(min=0).unsqueeze(1), -share), None


def count_targets(batch: Batch) -> torch.Tensor:
    """How many tokens of a batch the loss is taken over."""
    return (batch["labels"][:, 1:] != IGNORE_INDEX).sum()


@dataclass(frozen=True, slots=True)
class TrainingLoss:
    """A trainer's `compute_loss_func`: nats per token of a whole optimizer step.

    Models' own losses differ in how they take gradient accumulation, and some not at all.
    """

    dense: bool
    smoothing: float

    def __call__(
        self, outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int
    ) -> torch.Tensor:
        """This batch's share: its sum over the number of tokens of all batches of the step."""
        logits = outputs["logits"] if isinstance(outputs, dict) else outputs[0]
        total = summed_loss(logits, labels, dense=self.dense, smoothing=self.smoothing)
        return total / num_items_in_batch


def exact_loss(forward: Forward, batches: Iterable[Batch], *, dense: bool, ranks: int = 1) -> float:
    """Nats per token: one sum over the whole set divided by one count, no mean of means."""
    total, count = total_loss(forward, batches, dense=dense)
    return _divide(torch.tensor(total, dtype=torch.double), count, ranks)


def total_loss(forward: Forward, batches: Iterable[Batch], *, dense: bool) -> tuple[float, int]:
    """Nats over all tokens of these batches, and how many tokens those are."""

    def nats(batch: Batch) -> torch.Tensor:
        inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
        return summed_loss(forward(inputs), batch["labels"], dense=dense)

    return sum_losses(nats, batches)


def sum_losses(
    nats: Callable[[Batch], torch.Tensor], batches: Iterable[Batch]
) -> tuple[float, int]:
    """Nats over all tokens of these batches, and how many tokens those are.

    `nats` gives a batch's as a tensor, which may still lie on the device.
    """
    sums, count = [], 0
    with torch.no_grad():
        for batch in batches:
            count += int(count_targets(batch))
            sums.append(nats(batch))
    # One transfer from the device; added up there in float64, which not every device has.
    return float(torch.stack(sums).cpu().double().sum()) if sums else 0.0, count


def _divide(total: torch.Tensor, count: int, ranks: int) -> float:
    both = torch.stack([total, torch.tensor(count, dtype=torch.double)])
    if ranks > 1:
        gathered: list[torch.Tensor | None] = [None] * ranks
        torch.distributed.all_gather_object(gathered, both)
        both = torch.stack([item for item in gathered if item is not None]).sum(dim=0)
    return float(both[0] / both[1])
