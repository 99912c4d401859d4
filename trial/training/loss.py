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
    """Cross-entropy summed over all labelled tokens, in nats; computed in float32.

    Args:
        logits: [rows, columns, vocabulary]; those of a column predict the label of the next.
        labels: [rows, columns], -100 where there is none.
        dense: compute unlabelled positions too and ignore them, for devices with fixed shapes.
        smoothing: label smoothing.
    """
    predictions, targets = logits[:, :-1], labels[:, 1:].to(logits.device)
    if dense:
        predictions, targets = predictions.flatten(0, 1), targets.flatten()
    else:
        labelled = targets != IGNORE_INDEX
        predictions, targets = predictions[labelled], targets[labelled]
    return cross_entropy(
        predictions.float(),
        targets,
        ignore_index=IGNORE_INDEX,
        reduction="sum",
        label_smoothing=smoothing,
    )


def target_cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of each target, [positions], from float32 `logits` [positions, vocabulary].

    `targets` is [positions]; the loss of an ignored one (-100) is 0. Equals torch's `cross_entropy`
    with `reduction="none"`, with one pass less over the gradient of the logits, which in a small
    model is as large as all other activations together. It has no second derivative.
    """
    losses: torch.Tensor = _TargetCrossEntropy.apply(logits, targets)
    return losses


class _TargetCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        log_probabilities = logits.log_softmax(dim=1)
        ctx.save_for_backward(log_probabilities, targets)
        columns = targets.clamp(min=0).unsqueeze(1)
        losses = -log_probabilities.gather(1, columns).squeeze(1)
        return losses.masked_fill(targets == IGNORE_INDEX, 0.0)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        log_probabilities, targets = ctx.saved_tensors
        share = gradient.masked_fill(targets == IGNORE_INDEX, 0.0).unsqueeze(1)
        # In place: the saved tensor is not used again.
        grad_logits = log_probabilities.exp_().mul_(share)
        return grad_logits.scatter_add_(1, targets.clamp(min=0).unsqueeze(1), -share), None


def count_targets(batch: Batch) -> torch.Tensor:
    """Number of labelled tokens of a batch, a scalar int64 tensor."""
    return (batch["labels"][:, 1:] != IGNORE_INDEX).sum()


@dataclass(frozen=True, slots=True)
class TrainingLoss:
    """A trainer's `compute_loss_func`: mean cross-entropy over the tokens of an optimizer step.

    Models' own losses differ in how they treat gradient accumulation, and some ignore it. The loss
    of a mixture's router is added as the models do; over several batches of a step it is their
    mean, weighted by their labelled tokens.
    """

    dense: bool
    smoothing: float
    router_factor: float = 0.0
    """`trial.model.router_loss.router_loss_factor`."""

    def __call__(
        self, outputs: Any, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int
    ) -> torch.Tensor:
        """This batch's share of the step's mean loss in nats per token, a scalar tensor.

        Args:
            outputs: of the model; logits are [rows, columns, vocabulary].
            labels: [rows, columns].
            num_items_in_batch: labelled tokens of the whole optimizer step.
        """
        logits = outputs["logits"] if isinstance(outputs, dict) else outputs[0]
        total = summed_loss(logits, labels, dense=self.dense, smoothing=self.smoothing)
        if self.router_factor:
            targets = count_targets({"labels": labels})
            total = total + self.router_factor * outputs["aux_loss"].to(total.device) * targets
        return total / num_items_in_batch


def exact_loss(forward: Forward, batches: Iterable[Batch], *, dense: bool, ranks: int = 1) -> float:
    """Cross-entropy in nats per token over the batches of all ranks: one sum over one count."""
    total, count = total_loss(forward, batches, dense=dense)
    return _divide(torch.tensor(total, dtype=torch.double), count, ranks)


def total_loss(forward: Forward, batches: Iterable[Batch], *, dense: bool) -> tuple[float, int]:
    """Cross-entropy in nats, summed over all labelled tokens of the batches, and their number."""

    def batch_loss(batch: Batch) -> torch.Tensor:
        inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
        return summed_loss(forward(inputs), batch["labels"], dense=dense)

    return sum_losses(batch_loss, batches)


def sum_losses(
    batch_loss: Callable[[Batch], torch.Tensor], batches: Iterable[Batch]
) -> tuple[float, int]:
    """Sum of `batch_loss` over the batches, and their number of labelled tokens.

    `batch_loss` returns a batch's summed loss as a tensor on the device.
    """
    sums, count = [], 0
    with torch.no_grad():
        for batch in batches:
            count += int(count_targets(batch))
            sums.append(batch_loss(batch))
    # One transfer from the device; summed on the CPU in float64, which not every device has.
    return float(torch.stack(sums).cpu().double().sum()) if sums else 0.0, count


def _divide(total: torch.Tensor, count: int, ranks: int) -> float:
    both = torch.stack([total, torch.tensor(count, dtype=torch.double)])
    if ranks > 1:
        gathered: list[torch.Tensor | None] = [None] * ranks
        torch.distributed.all_gather_object(gathered, both)
        both = torch.stack([item for item in gathered if item is not None]).sum(dim=0)
    return float(both[0] / both[1])
