"""A batch by what its rows are for, and the model that answers it, now and as it was.

Objectives see nothing else: which device, which engine and how many batches make an optimizer step
is settled here.
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
Logits = dict[str, torch.Tensor]
"""By side, each [rows, columns, vocabulary]."""


@dataclass(frozen=True, slots=True)
class BatchPart:
    """Rows of one kind; what they add up to over the whole optimizer step is known with them."""

    input_ids: torch.Tensor
    """[rows, columns], padded on the right."""
    attention_mask: torch.Tensor
    labels: torch.Tensor
    """-100 but for the completion and its eos."""
    lengths: torch.Tensor
    """[rows]: tokens of each row, padding left out."""
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
        """This batch's share of the mean over the step's completion tokens."""
        return values.sum() / self.step_tokens


Batch = Mapping[str, BatchPart]
"""Sides by name: `forget`, `retain`, `alternative`; or `train` where nothing is to be forgotten."""


def split(
    inputs: Mapping[str, torch.Tensor], sides: Sequence[str], counts: torch.Tensor
) -> dict[str, BatchPart]:
    """The sides of a batch whose rows stand side after side.

    `counts` is [2, sides]: rows and completion tokens of the whole optimizer step.
    """
    found = {}
    for index, name in enumerate(sides):
        own = {key: part_of(inputs[key], index, len(sides)) for key in _COLUMNS}
        found[name] = BatchPart(**own, step_rows=counts[0, index], step_tokens=counts[1, index])
    return found


_COLUMNS = ("input_ids", "attention_mask", "labels", "lengths")


def part_of(tensor: torch.Tensor, index: int, parts: int) -> torch.Tensor:
    """The rows of one of several equal parts."""
    rows = len(tensor) // parts
    return tensor[index * rows : (index + 1) * rows]


def step_counts(batches: Sequence[Mapping[str, torch.Tensor]], sides: int) -> torch.Tensor:
    """[2, sides]: rows and completion tokens of all batches of an optimizer step, at least 1."""
    counts = torch.zeros(2, sides, dtype=torch.long)
    for batch in batches:
        wanted = (batch["labels"][:, 1:] != IGNORE_INDEX).sum(dim=1)
        for side in range(sides):
            own = part_of(wanted, side, sides)
            counts[0, side] += len(own)
            counts[1, side] += own.sum()
    return counts.clamp(min=1)


class Model:
    """The model in training; `reference` is the same one with its adapter disabled.

    `forward` takes input ids and attention mask to logits, through whatever engine trains.
    """

    def __init__(self, forward: Forward, module: Any) -> None:
        self.forward = forward
        self.module = module

    def __call__(self, batch: Batch) -> Logits:
        """Logits of every side, in one forward pass: what holds gradients is then run once."""
        return self._run(batch, tuple(batch))

    def reference(self, batch: Batch, *sides: str) -> Logits:
        """Logits of the model before training, without gradients and without dropout.

        Raises:
            ValueError: the model has no adapter to disable.
        """
        with torch.no_grad(), adapter_disabled(self.module):
            return self._run(batch, sides or tuple(batch))

    def _run(self, batch: Batch, sides: Sequence[str]) -> Logits:
        chosen = [batch[side] for side in sides]
        logits = self.forward(
            {
                "input_ids": torch.cat([side.input_ids for side in chosen]),
                "attention_mask": torch.cat([side.attention_mask for side in chosen]),
            }
        )
        edges = [len(side.input_ids) for side in chosen]
        return dict(zip(sides, logits.split(edges), strict=True))


@contextmanager
def adapter_disabled(module: Any) -> Iterator[None]:
    """The module as it was before training, and not training.

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
    """Nats of each completion token given those before it, [rows, columns - 1]; elsewhere 0."""
    return cross_entropy(
        wide(logits[:, :-1]).transpose(1, 2),
        labels[:, 1:],
        ignore_index=IGNORE_INDEX,
        reduction="none",
    )


def per_row_cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Nats of each row's whole completion, [rows]."""
    return per_token_cross_entropy(logits, labels).sum(dim=1)


def wide(tensor: torch.Tensor) -> torch.Tensor:
    """At least float32."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()
