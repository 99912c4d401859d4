"""A batch divided into parts by what its rows are for, and the model that an objective calls.

Objectives see nothing else: device, DeepSpeed, and the number of batches in an optimizer step stay
hidden from them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from trial.data.tokens import IGNORE_INDEX

Forward = Callable[[dict[str, torch.Tensor]], torch.Tensor]
"""Input ids and attention mask to logits [rows, columns, vocabulary]."""
Logits = dict[str, torch.Tensor]
"""By name of the part, each [rows, columns, vocabulary]."""

COLUMNS = ("input_ids", "attention_mask", "labels", "lengths")
"""Tensors of a batch; their first dimension is the rows."""


@dataclass(frozen=True, slots=True)
class BatchPart:
    """Rows of one kind, with the totals of their kind over the whole optimizer step."""

    input_ids: torch.Tensor
    """[rows, columns], padded on the right."""
    attention_mask: torch.Tensor
    """[rows, columns]: 1 for tokens; 1 for padding too after `collate.with_full_attention`."""
    labels: torch.Tensor
    """[rows, columns]: tokens of the completion and its eos, -100 elsewhere."""
    lengths: torch.Tensor
    """[rows]: tokens of each row, padding not counted."""
    step_rows: torch.Tensor
    """Rows of this kind in the whole optimizer step, over all its batches."""
    step_tokens: torch.Tensor
    """Completion tokens of this kind in the whole optimizer step."""

    @property
    def targets(self) -> torch.Tensor:
        """[rows]: completion tokens of each row."""
        return (self.labels[:, 1:] != IGNORE_INDEX).sum(dim=1)

    def per_row(self, values: torch.Tensor) -> torch.Tensor:
        """This batch's share of the mean over the step's rows; `values` is [rows]."""
        return values.sum() / self.step_rows

    def per_token(self, values: torch.Tensor) -> torch.Tensor:
        """This batch's share of the mean over the step's completion tokens.

        `values` has any shape and is 0 where there is no completion token.
        """
        return values.sum() / self.step_tokens


Batch = Mapping[str, BatchPart]
"""Parts by name: `forget`, `retain`, `alternative`; or `train` where there is no forget set."""


def divide(
    inputs: Mapping[str, torch.Tensor], names: Sequence[str], counts: torch.Tensor
) -> dict[str, BatchPart]:
    """The parts of a batch, whose rows stand part after part in the order of `names`.

    `counts` is [2, parts]: rows and completion tokens of the whole optimizer step.
    """
    parts = {}
    for index, name in enumerate(names):
        tensors = {key: _rows_of_part(inputs[key], index, len(names)) for key in COLUMNS}
        parts[name] = BatchPart(**tensors, step_rows=counts[0, index], step_tokens=counts[1, index])
    return parts


def _rows_of_part(tensor: torch.Tensor, index: int, parts: int) -> torch.Tensor:
    """The rows of one of several equally large parts."""
    rows = len(tensor) // parts
    return tensor[index * rows : (index + 1) * rows]


def step_counts(batches: Sequence[Mapping[str, torch.Tensor]], parts: int) -> torch.Tensor:
    """[2, parts]: rows and completion tokens of all batches of an optimizer step, at least 1."""
    counts = torch.zeros(2, parts, dtype=torch.long)
    for batch in batches:
        targets = (batch["labels"][:, 1:] != IGNORE_INDEX).sum(dim=1)
        for part in range(parts):
            part_targets = _rows_of_part(targets, part, parts)
            counts[0, part] += len(part_targets)
            counts[1, part] += part_targets.sum()
    return counts.clamp(min=1)


class Model:
    """The model in training; its reference model is the same one with the adapter disabled."""

    def __init__(self, forward: Forward, module: Any) -> None:
        """`forward` takes input ids and attention mask to logits; `module` holds the adapter."""
        self.forward = forward
        self.module = module

    def __call__(self, batch: Batch) -> Logits:
        """Logits of every part, in one forward pass: gradient hooks of ZeRO expect one a step."""
        return self._run(batch, tuple(batch))

    def reference(self, batch: Batch, *names: str) -> Logits:
        """Logits of the named parts (default: all) from the reference model.

        Without gradients and without dropout.

        Raises:
            ValueError: the model has no adapter to disable.
        """
        with torch.no_grad(), adapter_disabled(self.module):
            return self._run(batch, names or tuple(batch))

    def _run(self, batch: Batch, names: Sequence[str]) -> Logits:
        parts = [batch[name] for name in names]
        logits = self.forward(
            {
                "input_ids": torch.cat([part.input_ids for part in parts]),
                "attention_mask": torch.cat([part.attention_mask for part in parts]),
            }
        )
        return dict(zip(names, logits.split([len(part.input_ids) for part in parts]), strict=True))


@contextmanager
def adapter_disabled(module: Any) -> Iterator[None]:
    """Disable the module's adapter within this context, and put it in eval mode.

    Raises:
        ValueError: it has no adapter.
    """
    if not hasattr(module, "disable_adapter"):
        raise ValueError("a reference model is the one with its adapter disabled: lora.r is 0")
    training = module.training
    module.eval()
    try:
        with module.disable_adapter():
            yield
    finally:
        module.train(training)


def per_token_cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of each completion token, [rows, columns - 1], in nats; 0 elsewhere.

    `logits` is [rows, columns, vocabulary], `labels` [rows, columns].
    """
    return cross_entropy(
        at_least_float32(logits[:, :-1]).transpose(1, 2),
        labels[:, 1:],
        ignore_index=IGNORE_INDEX,
        reduction="none",
    )


def per_row_cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of each row's completion, [rows], in nats: -log P(completion | prompt)."""
    return per_token_cross_entropy(logits, labels).sum(dim=1)


def at_least_float32(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor as float32, or as it is if it is float64."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()
