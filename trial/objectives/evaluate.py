"""The model on the forget and retain sets: what an evaluation reports beside the eval loss.

Every rank calls `measure`, answers its share of the rows, and knows the whole afterwards.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trial.config import user_functions
from trial.config.objective_registry import METRICS, is_user_function
from trial.config.sections import EvaluationSection
from trial.data.collate import Batch, Collator
from trial.data.tokens import IGNORE_INDEX, TokenDataset
from trial.data.unlearning import EvalSet, UnlearningData
from trial.distributed.rank_group import RankGroup
from trial.objectives import metrics
from trial.objectives.batch import Model, per_row_cross_entropy
from trial.objectives.metrics import Floats
from trial.store.files import write_atomically

Forward = Callable[[Batch], torch.Tensor]


@dataclass(frozen=True, slots=True)
class EvalContext:
    """With what a set is put to the model."""

    forward: Forward
    """Input ids and attention mask to logits; never trains."""
    model: Model
    """For metrics of the user's own."""
    batch_size: int
    collate: Collator
    rank_group: RankGroup
    tokenizer: Any
    settings: EvaluationSection


class Answers:
    """How the model answers one set; each part is worked out when it is asked for."""

    def __init__(self, examined: EvalSet, means: EvalContext) -> None:
        self.examined = examined
        self.means = means

    @cached_property
    def likelihood(self) -> tuple[Floats, Floats]:
        """Nats and tokens of each row's answer."""
        return _likelihood(self.examined.answers, self.means)

    @cached_property
    def probability(self) -> Floats:
        """Probability of each row's answer, by the token."""
        return metrics.answer_probability(*self.likelihood)

    @cached_property
    def truth_ratio(self) -> Floats:
        """Of each row."""
        other = self.examined.paraphrased
        right = self.probability
        if other is not None:
            right = metrics.answer_probability(*_likelihood(other, self.means))
        wrong = metrics.answer_probability(*_likelihood(self.examined.wrong, self.means))
        return metrics.truth_ratio(right, wrong, self.examined.wrong_answer_rows)

    @cached_property
    def said(self) -> list[str]:
        """What the model says of its own, for the first rows of the set."""
        rows = min(self.means.settings.generate_rows, len(self.examined.answers))
        return _generate(self.examined.answers, range(rows), self.means)

    @cached_property
    def references(self) -> list[str]:
        """What it should have said there."""
        decode, tokens = self.means.tokenizer.decode, self.examined.answers.tokens
        spans = tokens.spans[: len(self.said)]
        return [decode(tokens.ids[a:b].tolist(), skip_special_tokens=True) for _, a, b in spans]

    @property
    def rouge_l(self) -> float:
        """Mean ROUGE-L recall of what the model says."""
        each = map(metrics.rouge_l_recall, self.said, self.references)
        return float(np.mean(list(each)))


class Examination:
    """The sets of a trial, and which figures are wanted of them."""

    def __init__(
        self,
        sets: UnlearningData | None,
        settings: EvaluationSection,
        compared: Sequence[float] | None,
    ) -> None:
        self.sets = sets
        self.settings = settings
        self.compared = None if compared is None else np.array(compared, dtype=np.float64)
        """Truth ratios of a model that never saw the forget set."""
        self.ratios: list[float] = []
        """Truth ratios of the forget set, as last measured."""
        wanted = settings.metrics
        self.wanted = tuple(METRICS if wanted is None and sets is not None else wanted or ())

    def measure(self, means: EvalContext) -> dict[str, float]:
        """Every wanted figure by name; one that is not known is left out."""
        examined: Mapping[str, EvalSet] = self.sets.eval_sets if self.sets else {}
        answers = {name: Answers(part, means) for name, part in examined.items()}
        own = [name for name in self.wanted if is_user_function(name)]
        found = self._figures(answers) if answers and len(own) < len(self.wanted) else {}
        found = {name: value for name, value in found.items() if name in self.wanted}
        for name in own:
            function = user_functions.load_function("evaluation.metrics", name)
            found[name.rpartition(":")[2]] = float(function(means.model, answers))
        return {name: value for name, value in found.items() if math.isfinite(value)}

    def write_ratios(self, file: Path) -> None:
        """Keep the last truth ratios for other trials to be compared with."""
        if self.ratios:
            known = [ratio for ratio in self.ratios if math.isfinite(ratio)]
            write_atomically(file, json.dumps({"forget": known}) + "\n")

    def _figures(self, answers: Mapping[str, Answers]) -> dict[str, float]:
        forget, retain = answers["forget"], answers["retain"]
        found = {
            "forget_loss": metrics.per_token(*forget.likelihood),
            "retain_loss": metrics.per_token(*retain.likelihood),
            "forget_probability": float(forget.probability.mean()),
            "retain_probability": float(retain.probability.mean()),
            "forget_truth_ratio": metrics.forgotten_ratio(forget.truth_ratio),
            "retain_truth_ratio": metrics.retained_ratio(retain.truth_ratio),
        }
        useful = [found["retain_probability"], found["retain_truth_ratio"]]
        if self._speaks():
            found["forget_rouge_l"] = forget.rouge_l
            found["retain_rouge_l"] = retain.rouge_l
            useful.append(found["retain_rouge_l"])
        self.ratios = forget.truth_ratio.tolist()
        if self.compared is not None:
            found["forget_quality"] = metrics.forget_quality(forget.truth_ratio, self.compared)
        found["model_utility"] = metrics.harmonic_mean(useful)
        found["trade_off"] = metrics.trade_off(found["forget_probability"], found["model_utility"])
        return found

    def _speaks(self) -> bool:
        """Whether words are wanted: generating them takes longest."""
        return any(name.endswith("rouge_l") for name in self.wanted)


def _share(rows: Sequence[int], means: EvalContext) -> list[list[int]]:
    """This rank's batches of row numbers; every rank has equally many, some of them empty."""
    stride = means.batch_size * means.rank_group.size
    first = means.rank_group.rank * means.batch_size
    starts = range(0, len(rows), stride)
    return [list(rows[at + first : at + first + means.batch_size]) for at in starts]


def _likelihood(dataset: TokenDataset, means: EvalContext) -> tuple[Floats, Floats]:
    """Nats and tokens of every row's completion."""
    lengths = dataset.row_lengths()
    order = sorted(range(len(dataset)), key=lambda row: -lengths[row])
    found: list[tuple[int, float, int]] = []
    for rows in _share(order, means):
        batch = means.collate(_filled(dataset, rows, means))
        labels = batch.pop("labels")
        with torch.no_grad():
            logits = means.forward(batch)
            nats = per_row_cross_entropy(logits, labels.to(logits.device)).cpu().tolist()
        tokens = (labels[:, 1:] != IGNORE_INDEX).sum(dim=1).tolist()
        found += zip(rows, nats, tokens, strict=False)
    values = np.zeros((2, len(dataset)))
    for row, *both in (item for part in means.rank_group.all_gather(found) for item in part):
        values[:, row] = both
    return values[0], np.maximum(values[1], 1)


def _filled(dataset: TokenDataset, rows: Sequence[int], means: EvalContext) -> list[Batch]:
    """The rows, made up to a whole batch where shapes are fixed or ranks wait for each other."""
    made = [dataset[row] for row in rows]
    if means.rank_group.size > 1 or not means.collate.trim:
        made += [dataset[0]] * (means.batch_size - len(made))
    return made


def _generate(dataset: TokenDataset, rows: Sequence[int], means: EvalContext) -> list[str]:
    """Greedy answers to the rows' prompts.

    Each token is a forward pass over the whole width: slower than a cache of keys and values, and
    alike on every device, under every ZeRO stage and for any number of ranks.
    """
    found: list[tuple[int, list[int]]] = []
    for part in _share(rows, means):
        chosen = [*part, *[0] * (len(_filled(dataset, part, means)) - len(part))]
        made = _greedy([_prompt(dataset, row) for row in chosen], dataset, means)
        found += zip(part, made, strict=False)
    every = dict(item for part in means.rank_group.all_gather(found) for item in part)
    decode = means.tokenizer.decode
    return [decode(every[row], skip_special_tokens=True) for row in rows]


def _prompt(dataset: TokenDataset, row: int) -> list[int]:
    start, answer, _ = dataset.tokens.spans[row]
    return [int(token) for token in dataset.tokens.ids[start:answer]]


def _greedy(prompts: list[list[int]], dataset: TokenDataset, means: EvalContext) -> list[list[int]]:
    """The most likely token after each prompt, again and again, until the width is full."""
    if not prompts:
        return []
    steps = means.settings.max_new_tokens
    width = dataset.max_length
    if means.collate.trim:
        width = min(width, max(map(len, prompts)) + steps)
    ids = torch.full((len(prompts), width), dataset.pad_id, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt)] = torch.tensor(prompt)
    ends = torch.tensor([len(prompt) for prompt in prompts])
    open_rows = ends < width
    for _ in range(steps):
        # Ranks that wait for each other all take every step.
        if means.rank_group.size == 1 and not bool(open_rows.any()):
            break
        following = _next(ids, ends, means)
        ids[open_rows, ends[open_rows]] = following[open_rows]
        ends = ends + open_rows
        open_rows = open_rows & (ends < width) & (following != means.tokenizer.eos_token_id)
    return [row[len(p) : end].tolist() for row, p, end in zip(ids, prompts, ends, strict=True)]


def _next(ids: torch.Tensor, ends: torch.Tensor, means: EvalContext) -> torch.Tensor:
    mask = (torch.arange(ids.shape[1]).unsqueeze(0) < ends.unsqueeze(1)).long()
    with torch.no_grad():
        logits = means.forward({"input_ids": ids, "attention_mask": mask})
        last = (ends - 1).to(logits.device)
        chosen = logits[torch.arange(len(ids), device=logits.device), last].argmax(dim=-1)
    return chosen.cpu()
