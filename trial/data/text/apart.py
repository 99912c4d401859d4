"""Prompt and answer as token ids each by itself, as versions before `data.tokenize` had it.

Studies that were made with them go on with the same tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from trial.data.examples import Row
from trial.data.prompts import CHAT_TEMPLATE, PROMPT_FORMATS, render
from trial.data.text.chat_template import ChatTemplate
from trial.data.text.encoder import Encoded


def encode_apart(
    rows: Sequence[Row], prompt_format: str, tokenizer: Any, template: ChatTemplate
) -> list[Encoded]:
    """The rows in their order; only the last answer counts, and it ends in exactly one eos."""
    eos = tokenizer.eos_token_id
    with_template = prompt_format == CHAT_TEMPLATE
    if with_template:
        texts = [_templated(row, template) for row in rows]
    else:
        texts = [(render(PROMPT_FORMATS[prompt_format], row.turns), row.completion) for row in rows]
    # A chat template writes its own bos.
    prompts = _ids([prompt for prompt, _ in texts], not with_template, tokenizer)
    completions = _ids([completion for _, completion in texts], False, tokenizer)
    encoded = []
    for (_, text), prompt, completion in zip(texts, prompts, completions, strict=True):
        before, after = _without_final_eos(prompt, eos), _with_eos(completion, eos)
        marks = np.array([False] * len(before) + [True] * len(after), dtype=np.bool_)
        encoded.append(Encoded([*before, *after], marks, template.special.remove(text)))
    return encoded


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


def _templated(row: Row, template: ChatTemplate) -> tuple[str, str]:
    """Prompt and completion as the chat template writes them, its end-of-turn mark included."""
    turns = [{"role": turn.role, "content": turn.content} for turn in row.turns]
    whole = [*turns, {"role": "assistant", "content": row.completion}]
    prompt = template.render(turns, prompt=True)
    text = template.render(whole, prompt=False)
    # Some templates render a past answer differently from one being generated: then use the answer.
    completion = text[len(prompt) :].rstrip() if text.startswith(prompt) else row.completion
    return prompt, completion
