"""Forget and retain rows as tokens: paired for training, with other answers for evaluation.

A training batch has parts, for example `forget` and `retain`. Which rows of the other parts stand
beside a row of the first is a function of seed and epoch alone, so that a resumed trial gets the
batches that it would have got.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch.utils.data import Dataset, Sampler

from trial.data.collate import Batch, Collator
from trial.data.epoch_sampler import EpochSampler
from trial.data.examples import Row
from trial.data.split import Split
from trial.data.tokens import TokenDataset, TokenizeRows

WRONG_ANSWERS = 3
"""Wrong answers of a row whose data have none: the answers of as many rows that follow it."""

Indices = tuple[int, ...]
"""One row number for each part of a batch."""


@dataclass(frozen=True, slots=True)
class EvalSet:
    """Rows to evaluate on, with other ways to answer them."""

    answers: TokenDataset
    paraphrased: TokenDataset | None
    """The same answers in other words, row by row; None where the data have none."""
    wrong: TokenDataset
    wrong_answer_rows: tuple[int, ...]
    """For each row of `wrong`, the row of `answers` that it is a wrong answer to."""


@dataclass(frozen=True, slots=True)
class UnlearningData:
    """The forget set, beside the retain set in `PreparedData.train`."""

    forget: TokenDataset
    alternatives: TokenDataset
    """`choices` answers to each forget row, row after row."""
    choices: int
    eval_sets: Mapping[str, EvalSet]
    """`forget` and `retain`."""
    data_hash: str


def tokenize_unlearning(
    split: Split, tokenize: TokenizeRows, max_eval_rows: int | None
) -> UnlearningData:
    """Tokenize the forget set, its alternatives, and the sets to evaluate.

    Those are the forget and the retain set, each cut to `max_eval_rows` rows.
    """
    forget, forget_hash = tokenize(split.forget)
    rows, choices = _alternatives(split)
    alternatives, alternatives_hash = tokenize(rows)
    eval_sets, hashes = {}, [forget_hash, alternatives_hash]
    for name, set_rows in (("forget", split.forget), ("retain", split.train)):
        eval_sets[name], set_hashes = _eval_set(set_rows[:max_eval_rows], tokenize)
        hashes += set_hashes
    digest = hashlib.sha256("\n".join(hashes).encode()).hexdigest()
    return UnlearningData(forget, alternatives, choices, eval_sets, digest[:16])


def _alternatives(split: Split) -> tuple[list[Row], int]:
    """Forget rows with alternative answers, and how many there are to each."""
    if not split.alternatives:
        return [row.with_completion(row.alternative) for row in split.forget], 1
    rows = [row.with_completion(text) for row in split.forget for text in split.alternatives]
    return rows, len(split.alternatives)


def _eval_set(rows: list[Row], tokenize: TokenizeRows) -> tuple[EvalSet, list[str]]:
    """An `EvalSet` and the content hashes of its datasets."""
    answers, answers_hash = tokenize(rows)
    has_paraphrases = all(row.paraphrased for row in rows)
    paraphrased, *hashes = (
        tokenize([row.with_completion(row.paraphrased) for row in rows])
        if has_paraphrases
        else (None,)
    )
    wrong_answers = [
        (row, text) for row, texts in enumerate(_wrong_answers(rows)) for text in texts
    ]
    wrong, wrong_hash = tokenize([rows[row].with_completion(text) for row, text in wrong_answers])
    wrong_answer_rows = tuple(row for row, _ in wrong_answers)
    eval_set = EvalSet(answers, paraphrased, wrong, wrong_answer_rows)
    return eval_set, [answers_hash, *hashes, wrong_hash]


def _wrong_answers(rows: Sequence[Row]) -> list[list[str]]:
    """Wrong answers of each row: its own, or else those of the rows that follow it."""
    wrong = []
    for number, row in enumerate(rows):
        following = (rows[(number + step) % len(rows)].completion for step in range(1, len(rows)))
        others = dict.fromkeys(text for text in following if text != row.completion)
        wrong.append(list(row.perturbed) or list(others)[:WRONG_ANSWERS])
    return wrong


class PairedDataset(Dataset[Batch]):
    """Rows of several parts by a tuple of row numbers; tensors are [parts, columns]."""

    def __init__(self, parts: Sequence[TokenDataset], rows: TokenDataset) -> None:
        self.parts = tuple(parts)
        self.rows = rows
        """The part whose rows make up an epoch."""

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, indices: Indices) -> Batch:
        rows = [part[index] for part, index in zip(self.parts, indices, strict=True)]
        return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


@dataclass(frozen=True, slots=True)
class PairedCollator:
    """Puts rows part after part, [parts * rows, columns]; `trim` as in `Collator`.

    Adds `lengths` [parts * rows], the tokens of each row, since the mask may be left out.
    """

    trim: bool

    def __call__(self, rows: Sequence[Batch]) -> Batch:
        """One batch of all parts."""
        parts = len(rows[0]["labels"])
        each = [{name: row[name][part] for name in row} for part in range(parts) for row in rows]
        batch = Collator(self.trim)(each)
        return {**batch, "lengths": batch["attention_mask"].sum(dim=1)}


class PairedSampler(Sampler[Indices]):
    """Tuples of row numbers: the first part in training order, the others sampled beside it."""

    def __init__(self, order: EpochSampler, part_samplers: Sequence[PartSampler]) -> None:
        self.order = order
        self.part_samplers = tuple(part_samplers)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration."""
        self.order.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[Indices]:
        first = list(self.order)
        seed, epoch = self.order.seed, self.order.epoch
        parts = [sampler.sample(first, seed, epoch) for sampler in self.part_samplers]
        return iter(list(zip(*parts, strict=True)))


@dataclass(frozen=True, slots=True)
class PartSampler:
    """Which rows of a part stand beside those of the first part.

    The same row (the default), one of the `choices` that belong to it, or any of `rows`.
    """

    name: str
    """Name of the part; it seeds the draws."""
    rows: int = 0
    """Rows to draw from, in whole permutations one after the other; 0 follows the first part."""
    choices: int = 1
    """Rows of this part that belong to each row of the first."""

    def sample(self, first: Sequence[int], seed: int, epoch: int) -> list[int]:
        """Row numbers of this part, one for each of the row numbers in `first`."""
        text = f"{self.name}/{seed}/{epoch}".encode()
        part_seed = int.from_bytes(hashlib.blake2b(text, digest_size=7).digest(), "big")
        generator = torch.Generator().manual_seed(part_seed)
        if self.rows:
            drawn: list[int] = []
            while len(drawn) < len(first):
                drawn += torch.randperm(self.rows, generator=generator).tolist()
            return drawn[: len(first)]
        if self.choices == 1:
            return list(first)
        choices = torch.randint(self.choices, (len(first),), generator=generator).tolist()
        return [row * self.choices + choice for row, choice in zip(first, choices, strict=True)]


def paired_dataset(
    part_names: Sequence[str], train: TokenDataset, unlearning: UnlearningData | None
) -> tuple[PairedDataset, list[PartSampler]]:
    """The dataset of an objective's batch parts, and the sampler of each part.

    Raises:
        ValueError: the objective needs a forget set and there is none.
    """
    if unlearning is None and tuple(part_names) != ("train",):
        raise ValueError(f"data.forget_path: batches of {', '.join(part_names)} need a forget set")
    datasets: dict[str, TokenDataset] = {"train": train, "retain": train}
    samplers = {"train": PartSampler("train")}
    if unlearning is not None:
        datasets |= {"forget": unlearning.forget, "alternative": unlearning.alternatives}
        samplers |= {
            "forget": PartSampler("forget"),
            "retain": PartSampler("retain", rows=len(train)),
            "alternative": PartSampler("alternative", choices=unlearning.choices),
        }
    rows = unlearning.forget if unlearning is not None else train
    dataset = PairedDataset([datasets[name] for name in part_names], rows)
    return dataset, [samplers[name] for name in part_names]
