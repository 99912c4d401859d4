"""Rows as token ids, and a torch dataset of them whose labels mask prompt and padding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from trial.data.examples import Row
from trial.data.prompts import CHAT_TEMPLATE, PROMPT_FORMATS, render

IGNORE_INDEX = -100
"""The label that losses ignore, as in torch's `cross_entropy` and in transformers."""
CHUNK = 4096
"""Rows that are tokenized in one call."""
MIN_COMPLETION_SHARE = 4
"""A truncated row keeps at least `max_length` / 4 tokens of a completion that has as many."""

Int32Array = np.ndarray[Any, np.dtype[np.int32]]
Int64Array = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True, slots=True)
class Tokens:
    """Token ids of all rows end to end, and where each row starts and ends."""

    ids: Int32Array
    """[tokens]"""
    spans: Int64Array
    """[rows, 3]: start, first token of the completion, end."""
    truncated: int
    """Rows that were longer than `max_length`."""


class TokenDataset(Dataset[dict[str, torch.Tensor]]):
    """Rows as dicts of LongTensors `input_ids`, `attention_mask`, `labels`, each [max_length].

    Padded on the right. Labels are -100 except for the completion and the eos after it.
    """

    def __init__(self, tokens: Tokens, max_length: int, pad_id: int) -> None:
        self.tokens = tokens
        self.max_length = max_length
        self.pad_id = pad_id

    def __len__(self) -> int:
        return len(self.tokens.spans)

    def row_lengths(self) -> list[int]:
        """Tokens of every row, padding left out."""
        spans = self.tokens.spans
        return (spans[:, 2] - spans[:, 0]).tolist()

    def longest(self) -> int:
        """Tokens of the longest row."""
        return max(self.row_lengths())

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        start, answer, end = (int(edge) for edge in self.tokens.spans[index])
        ids = torch.from_numpy(self.tokens.ids[start:end].astype(np.int64))
        size = end - start
        input_ids = torch.full((self.max_length,), self.pad_id, dtype=torch.long)
        attention_mask = torch.zeros(self.max_length, dtype=torch.long)
        labels = torch.full((self.max_length,), IGNORE_INDEX, dtype=torch.long)
        input_ids[:size] = ids
        attention_mask[:size] = 1
        labels[answer - start : size] = ids[answer - start :]
        return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}


TokenizeRows = Callable[[list[Row]], tuple[TokenDataset, str]]
"""Rows to a dataset and its content hash."""


def tokenize_rows(
    rows: Sequence[Row], prompt_format: str, max_length: int, tokenizer: Any
) -> Tokens:
    """Tokenize the rows in their order, each cut to `max_length` tokens by `truncate`."""
    pieces: list[Int32Array] = []
    spans = np.zeros((len(rows), 3), dtype=np.int64)
    truncated, offset = 0, 0
    for start in range(0, len(rows), CHUNK):
        pairs = _token_pairs(rows[start : start + CHUNK], prompt_format, tokenizer)
        for index, (prompt, completion) in enumerate(pairs, start):
            truncated += len(prompt) + len(completion) > max_length
            prompt, completion = truncate(prompt, completion, max_length)
            answer = offset + len(prompt)
            spans[index] = offset, answer, answer + len(completion)
            offset = answer + len(completion)
            pieces.append(np.asarray(prompt + completion, dtype=np.int32))
    return Tokens(np.concatenate(pieces) if pieces else np.zeros(0, np.int32), spans, truncated)


def truncate(
    prompt: list[int], completion: list[int], max_length: int
) -> tuple[list[int], list[int]]:
    """Cut a row to `max_length` tokens.

    The completion loses its end, eos included; where that would leave it less than a quarter of
    `max_length`, the prompt loses its beginning instead, except for its first token (bos).
    """
    if len(prompt) + len(completion) <= max_length:
        return prompt, completion
    shortest = max_length // MIN_COMPLETION_SHARE
    completion_size = min(len(completion), max(max_length - len(prompt), shortest))
    prompt_size = max_length - completion_size
    if len(prompt) > prompt_size:
        prompt = [prompt[0], *prompt[len(prompt) - prompt_size + 1 :]]
    return prompt, completion[:completion_size]


def _token_pairs(
    rows: Sequence[Row], prompt_format: str, tokenizer: Any
) -> list[tuple[list[int], list[int]]]:
    """Prompt and completion ids of each row; every completion ends in exactly one eos."""
    eos = tokenizer.eos_token_id
    with_template = prompt_format == CHAT_TEMPLATE
    if with_template:
        texts = [_templated(row, tokenizer) for row in rows]
    else:
        texts = [(render(PROMPT_FORMATS[prompt_format], row.turns), row.completion) for row in rows]
    # Tokenized apart, as in generation: no token spans the border between prompt and completion.
    # A chat template writes its own bos.
    prompts = _ids([prompt for prompt, _ in texts], not with_template, tokenizer)
    completions = _ids([completion for _, completion in texts], False, tokenizer)
    return [
        (_without_final_eos(prompt, eos), _with_eos(completion, eos))
        for prompt, completion in zip(prompts, completions, strict=True)
    ]


def _ids(texts: list[str], add_special: bool, tokenizer: Any) -> list[list[int]]:
    encoded = tokenizer(
        texts, add_special_tokens=add_special, return_attention_mask=False, verbose=False
    )
    return [list(ids) for ids in encoded["input_ids"]]


def _without_final_eos(ids: list[int], eos: int) -> list[int]:
    """The prompt without the eos that some tokenizers append to every text."""
    return ids[:-1] if len(ids) > 1 and ids[-1] == eos else ids


def _with_eos(ids: list[int], eos: int) -> list[int]:
    """The completion up to its first eos, or with one appended."""
    return [*ids[: ids.index(eos)], eos] if eos in ids else [*ids, eos]


def _templated(row: Row, tokenizer: Any) -> tuple[str, str]:
    """Prompt and completion as the chat template writes them, its end-of-turn mark included."""
    turns = [{"role": turn.role, "content": turn.content} for turn in row.turns]
    whole = [*turns, {"role": "assistant", "content": row.completion}]
    prompt = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    text = tokenizer.apply_chat_template(whole, tokenize=False)
    # Some templates render a past answer differently from one being generated: then use the answer.
    completion = text[len(prompt) :].rstrip() if text.startswith(prompt) else row.completion
    return prompt, completion
