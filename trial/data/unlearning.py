"""Forget and retain rows as tokens: paired for training, with other answers for measuring.

A batch is paired by where the rows stand in the order of an epoch, which is a function of seed and
epoch alone: a resumed trial sees the batches that it would have seen.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch.utils.data import Dataset, Sampler

from trial.data.collate import Batch, Collator
from trial.data.epoch_sampler import EpochSampler
from trial.data.examples import Row
from trial.data.split import Split
from trial.data.tokens import TokenDataset, TokenizeRows

WRONG_ANSWERS = 3
"""Wrong answers of a row whose data name none: those of so many rows that follow it."""

Indices = tuple[int, ...]
"""A row number for each side."""


@dataclass(frozen=True, slots=True)
class EvalSet:
    """One set to measure: its rows, and how they are answered in other ways."""

    answers: TokenDataset
    paraphrased: TokenDataset | None
    """The same answers in other words, row by row; None where the data have none."""
    wrong: TokenDataset
    wrong_answer_rows: tuple[int, ...]
    """For each wrong answer the row it belongs to."""


@dataclass(frozen=True, slots=True)
class UnlearningData:
    """What is to be forgotten beside what `PreparedData.train` retains."""

    forget: TokenDataset
    alternatives: TokenDataset
    choices: int
    """Alternatives of each forget row; they stand together, row after row."""
    eval_sets: Mapping[str, EvalSet]
    """`forget` and `retain`, as they are measured."""
    data_hash: str


def tokenize_unlearning(split: Split, tokenize: TokenizeRows, most: int | None) -> UnlearningData:
    """Tokenize the forget set and its alternatives; `most` rows of each set are measured."""
    forget, forget_hash = tokenize(split.forget)
    rows, choices = _alternatives(split)
    alternatives, alternatives_hash = tokenize(rows)
    examined, hashes = {}, [forget_hash, alternatives_hash]
    for name, side in (("forget", split.forget), ("retain", split.train)):
        examined[name], more = _examined(side[:most], tokenize)
        hashes += more
    digest = hashlib.sha256("\n".join(hashes).encode()).hexdigest()
    return UnlearningData(forget, alternatives, choices, examined, digest[:16])


def _alternatives(split: Split) -> tuple[list[Row], int]:
    if not split.alternatives:
        return [_saying(row, row.alternative) for row in split.forget], 1
    rows = [_saying(row, text) for row in split.forget for text in split.alternatives]
    return rows, len(split.alternatives)


def _saying(row: Row, text: str) -> Row:
    return replace(row, completion=text)


def _examined(rows: list[Row], tokenize: TokenizeRows) -> tuple[EvalSet, list[str]]:
    answers, own_hash = tokenize(rows)
    named = all(row.paraphrased for row in rows)
    paraphrased, *hashes = (
        tokenize([_saying(row, row.paraphrased) for row in rows]) if named else (None,)
    )
    said = [(owner, text) for owner, texts in enumerate(_wrong(rows)) for text in texts]
    wrong, wrong_hash = tokenize([_saying(rows[owner], text) for owner, text in said])
    owners = tuple(owner for owner, _ in said)
    return EvalSet(answers, paraphrased, wrong, owners), [own_hash, *hashes, wrong_hash]


def _wrong(rows: Sequence[Row]) -> list[list[str]]:
    """Wrong answers of each row: its own, or else those of the rows that follow it."""
    found = []
    for place, row in enumerate(rows):
        following = (rows[(place + step) % len(rows)].completion for step in range(1, len(rows)))
        others = dict.fromkeys(text for text in following if text != row.completion)
        found.append(list(row.perturbed) or list(others)[:WRONG_ANSWERS])
    return found


class PairedDataset(Dataset[Batch]):
    """Rows of several sides by a tuple of row numbers; tensors are [sides, columns]."""

    def __init__(self, sides: Sequence[TokenDataset], rows: TokenDataset) -> None:
        self.sides = tuple(sides)
        self.rows = rows
        """What an epoch goes through once."""

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, indices: Indices) -> Batch:
        rows = [side[index] for side, index in zip(self.sides, indices, strict=True)]
        return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


@dataclass(frozen=True, slots=True)
class PairedCollator:
    """Puts rows side after side, [sides * rows, columns]; `trim` cuts what is padding in all.

    `lengths` [sides * rows] tells tokens from padding where a mask is left out.
    """

    trim: bool

    def __call__(self, rows: Sequence[Batch]) -> Batch:
        """One batch of all sides."""
        sides = len(rows[0]["labels"])
        each = [{name: row[name][side] for name in row} for side in range(sides) for row in rows]
        batch = Collator(self.trim)(each)
        return {**batch, "lengths": batch["attention_mask"].sum(dim=1)}


class PairedSampler(Sampler[Indices]):
    """Tuples of row numbers: the first side in the order of training, the others drawn for it."""

    def __init__(self, order: EpochSampler, parts: Sequence[PartSampler]) -> None:
        self.order = order
        self.parts = tuple(parts)

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch the next iteration is of."""
        self.order.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[Indices]:
        first = list(self.order)
        drawn = [part.sample(first, self.order.seed, self.order.epoch) for part in self.parts]
        return iter(list(zip(*drawn, strict=True)))


@dataclass(frozen=True, slots=True)
class PartSampler:
    """How one side's rows follow from those of the first: the same row, one of its, or any."""

    name: str
    rows: int = 0
    """Rows to draw from, whole permutations one after the other; 0 follows the first side."""
    choices: int = 1
    """Rows of this side that belong to each of the first."""

    def sample(self, first: Sequence[int], seed: int, epoch: int) -> list[int]:
        """Row numbers beside those of the first side."""
        text = f"{self.name}/{seed}/{epoch}".encode()
        own = int.from_bytes(hashlib.blake2b(text, digest_size=7).digest(), "big")
        generator = torch.Generator().manual_seed(own)
        if self.rows:
            drawn: list[int] = []
            while len(drawn) < len(first):
                drawn += torch.randperm(self.rows, generator=generator).tolist()
            return drawn[: len(first)]
        if self.choices == 1:
            return list(first)
        which = torch.randint(self.choices, (len(first),), generator=generator).tolist()
        return [row * self.choices + chosen for row, chosen in zip(first, which, strict=True)]


def paired_dataset(
    names: Sequence[str], train: TokenDataset, sets: UnlearningData | None
) -> tuple[PairedDataset, list[PartSampler]]:
    """The dataset of an objective's sides, and how their rows are drawn.

    Raises:
        ValueError: the objective needs a forget set and there is none.
    """
    if sets is None and tuple(names) != ("train",):
        raise ValueError(f"data.forget_path: batches of {', '.join(names)} need a forget set")
    tokens: dict[str, TokenDataset] = {"train": train, "retain": train}
    draws = {"train": PartSampler("train")}
    if sets is not None:
        tokens |= {"forget": sets.forget, "alternative": sets.alternatives}
        draws |= {
            "forget": PartSampler("forget"),
            "retain": PartSampler("retain", rows=len(train)),
            "alternative": PartSampler("alternative", choices=sets.choices),
        }
    rows = sets.forget if sets is not None else train
    dataset = PairedDataset([tokens[name] for name in names], rows)
    return dataset, [draws[name] for name in names]
