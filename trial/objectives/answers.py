"""How the model in training answers an evaluation set: likelihoods, and generated text.

Every rank computes its share of the rows; afterwards all ranks have the values of all rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from trial.config.sections import EvaluationSection
from trial.data.collate import Batch, Collator
from trial.data.tokens import IGNORE_INDEX, TokenDataset
from trial.data.unlearning import EvalSet
from trial.distributed.rank_group import RankGroup
from trial.objectives import metrics
from trial.objectives.batch import Model, per_row_cross_entropy
from trial.objectives.metrics import Floats

Forward = Callable[[Batch], torch.Tensor]
"""Input ids and attention mask to logits [rows, columns, vocabulary]."""


@dataclass(frozen=True, slots=True)
class EvalContext:
    """The model of one evaluation, and how rows are put through it."""

    forward: Forward
    """The forward pass, in eval mode."""
    model: Model
    """For a user's own metrics."""
    batch_size: int
    """Rows of a batch on each rank."""
    collate: Collator
    rank_group: RankGroup


class Answers:
    """The model's answers to one evaluation set; each property is computed on first use."""

    def __init__(
        self, eval_set: EvalSet, context: EvalContext, tokenizer: Any, settings: EvaluationSection
    ) -> None:
        self.eval_set = eval_set
        self.context = context
        self.tokenizer = tokenizer
        self.settings = settings

    @cached_property
    def likelihood(self) -> tuple[Floats, Floats]:
        """Cross-entropy of each row's answer, in nats, and its number of tokens; both [rows]."""
        return _likelihood(self.eval_set.answers, self.context)

    @cached_property
    def probability(self) -> Floats:
        """[rows]: probability of each row's answer, normalised by its length."""
        return metrics.answer_probability(*self.likelihood)

    @cached_property
    def truth_ratio(self) -> Floats:
        """[rows]: TOFU's truth ratio; NaN for a row without wrong answers."""
        paraphrased = self.eval_set.paraphrased
        right = self.probability
        if paraphrased is not None:
            right = metrics.answer_probability(*_likelihood(paraphrased, self.context))
        wrong = metrics.answer_probability(*_likelihood(self.eval_set.wrong, self.context))
        return metrics.truth_ratio(right, wrong, self.eval_set.wrong_answer_rows)

    @cached_property
    def generated(self) -> list[str]:
        """Greedily generated answers to the first `generate_rows` rows of the set."""
        dataset = self.eval_set.answers
        rows = range(min(self.settings.generate_rows, len(dataset)))
        return _generate(dataset, rows, self.context, self.tokenizer, self.settings.max_new_tokens)

    @cached_property
    def references(self) -> list[str]:
        """The data's answers to the same rows."""
        dataset = self.eval_set.answers
        answers = [dataset.prompt_and_answer(row)[1] for row in range(len(self.generated))]
        return [self.tokenizer.decode(ids, skip_special_tokens=True) for ids in answers]

    @property
    def rouge_l(self) -> float:
        """Mean ROUGE-L recall of the generated answers."""
        recalls = map(metrics.rouge_l_recall, self.generated, self.references)
        return float(np.mean(list(recalls)))


def _batches_of_rank(rows: Sequence[int], context: EvalContext) -> list[list[int]]:
    """This rank's batches of row numbers; every rank has equally many, some of them empty."""
    stride = context.batch_size * context.rank_group.size
    first = context.rank_group.rank * context.batch_size
    starts = range(0, len(rows), stride)
    return [list(rows[at + first : at + first + context.batch_size]) for at in starts]


def _likelihood(dataset: TokenDataset, context: EvalContext) -> tuple[Floats, Floats]:
    """Cross-entropy in nats and number of tokens of every row's completion; both [rows]."""
    lengths = dataset.row_lengths()
    order = sorted(range(len(dataset)), key=lambda row: -lengths[row])
    results: list[tuple[int, float, int]] = []
    for rows in _batches_of_rank(order, context):
        batch = context.collate(_padded_batch(dataset, rows, context))
        labels = batch.pop("labels")
        with torch.no_grad():
            logits = context.forward(batch)
            losses = per_row_cross_entropy(logits, labels.to(logits.device)).cpu().tolist()
        tokens = (labels[:, 1:] != IGNORE_INDEX).sum(dim=1).tolist()
        results += zip(rows, losses, tokens, strict=False)
    values = np.zeros((2, len(dataset)))
    for row, *both in (item for part in context.rank_group.all_gather(results) for item in part):
        values[:, row] = both
    return values[0], np.maximum(values[1], 1)


def _padded_batch(dataset: TokenDataset, rows: Sequence[int], context: EvalContext) -> list[Batch]:
    """The rows, repeated to a whole batch where shapes are fixed or ranks run in lockstep."""
    batch = [dataset[row] for row in rows]
    if context.rank_group.size > 1 or not context.collate.trim:
        batch += [dataset[0]] * (context.batch_size - len(batch))
    return batch


def _generate(
    dataset: TokenDataset, rows: Sequence[int], context: EvalContext, tokenizer: Any, steps: int
) -> list[str]:
    """Greedy answers to the rows' prompts, at most `steps` tokens each.

    Each token is a forward pass over the whole width: slower than with a KV cache, but the same on
    every device, with every ZeRO stage and for any number of ranks.
    """
    results: list[tuple[int, list[int]]] = []
    for batch in _batches_of_rank(rows, context):
        fill = len(_padded_batch(dataset, batch, context)) - len(batch)
        prompts = [dataset.prompt_and_answer(row)[0] for row in (*batch, *[0] * fill)]
        answers = _greedy(prompts, dataset, context, tokenizer.eos_token_id, steps)
        results += zip(batch, answers, strict=False)
    by_row = dict(item for part in context.rank_group.all_gather(results) for item in part)
    return [tokenizer.decode(by_row[row], skip_special_tokens=True) for row in rows]


def _greedy(
    prompts: list[list[int]], dataset: TokenDataset, context: EvalContext, eos_id: int, steps: int
) -> list[list[int]]:
    """Tokens of the most likely continuation of each prompt, up to eos or the width."""
    if not prompts:
        return []
    width = dataset.max_length
    if context.collate.trim:
        width = min(width, max(map(len, prompts)) + steps)
    ids = torch.full((len(prompts), width), dataset.pad_id, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt)] = torch.tensor(prompt)
    ends = torch.tensor([len(prompt) for prompt in prompts])
    unfinished = ends < width
    for _ in range(steps):
        # Several ranks run every step, because their forward passes wait for each other.
        if context.rank_group.size == 1 and not bool(unfinished.any()):
            break
        following = _next_tokens(ids, ends, context)
        ids[unfinished, ends[unfinished]] = following[unfinished]
        ends = ends + unfinished
        unfinished = unfinished & (ends < width) & (following != eos_id)
    return [row[len(p) : end].tolist() for row, p, end in zip(ids, prompts, ends, strict=True)]


def _next_tokens(ids: torch.Tensor, ends: torch.Tensor, context: EvalContext) -> torch.Tensor:
    """[rows]: the most likely token after the first `ends` tokens of each row."""
    mask = (torch.arange(ids.shape[1]).unsqueeze(0) < ends.unsqueeze(1)).long()
    with torch.no_grad():
        logits = context.forward({"input_ids": ids, "attention_mask": mask})
        last = (ends - 1).to(logits.device)
        chosen = logits[torch.arange(len(ids), device=logits.device), last].argmax(dim=-1)
    return chosen.cpu()
