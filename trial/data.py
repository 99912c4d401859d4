"""Rows as token tensors of fixed shape: prompt and padding masked, the eval set held out.

    prepared = prepare(config.data, tokenizer, model_family=model.config.model_type)

Tokens are kept in memory-mapped files by content hash, so each set is tokenised once per machine.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import Dataset

from trial.cache import cache_folder
from trial.config import DataConfig
from trial.problems import ConfigError, Problem
from trial.prompts import CHAT_TEMPLATE, PROMPT_FORMATS, choose_format, render
from trial.rows import Row
from trial.split import Split, read_split

if TYPE_CHECKING:
    from trial.objectives.sets import Sets

IGNORED = -100
"""The label that no loss counts."""
LAYOUT = 1
"""Part of every hash: raise it when the same rows would give other tokens."""
CHUNK = 4096
KEPT_SHARE = 4
"""An overlong row keeps up to a quarter of its length for the completion."""

Ints = np.ndarray[Any, np.dtype[np.int32]]
Longs = np.ndarray[Any, np.dtype[np.int64]]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Tokens:
    """Token ids of all rows end to end, and per row where it starts, is answered, and ends."""

    ids: Ints
    """[tokens]"""
    spans: Longs
    """[rows, 3]: start, first token of the completion, end."""
    truncated: int


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

    def longest(self) -> int:
        """Tokens of the longest row."""
        spans = self.tokens.spans
        return int((spans[:, 2] - spans[:, 0]).max())

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        start, answer, end = (int(edge) for edge in self.tokens.spans[index])
        ids = torch.from_numpy(self.tokens.ids[start:end].astype(np.int64))
        size = end - start
        input_ids = torch.full((self.max_length,), self.pad_id, dtype=torch.long)
        attention_mask = torch.zeros(self.max_length, dtype=torch.long)
        labels = torch.full((self.max_length,), IGNORED, dtype=torch.long)
        input_ids[:size] = ids
        attention_mask[:size] = 1
        labels[answer - start : size] = ids[answer - start :]
        return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}


@dataclass(frozen=True, slots=True)
class Prepared:
    """The two sides of a trial's data, ready for a DataLoader."""

    train: TokenDataset
    eval: TokenDataset
    data_hash: str
    """Equal hashes mean the same tokens on both sides."""
    prompt_format: str
    """What `auto` came to."""
    skipped: int
    """Records left out because their prompt or completion is empty."""
    leaked: int
    """Training rows left out because a separate eval set asks the same."""
    truncated: int
    """Rows of both sides that did not fit into `max_length` whole."""
    sets: Sets | None = None
    """What is to be forgotten, and what it is measured on; None when nothing is."""


def prepare(
    config: DataConfig, tokenizer: Any, cache: Path | None = None, *, model_family: str = ""
) -> Prepared:
    """Read, divide and tokenise the data; later calls with the same content only map files.

    `model_family` is any text that names the family (model type, hub id), for `prompt_format:
    auto`; the tokenizer's own name counts too. `cache` defaults to the user's cache folder.

    A row longer than `max_length` loses the end of its completion, eos included; where that would
    leave the completion less than a quarter of `max_length`, the prompt loses its beginning (but
    not its bos) instead. No row is dropped for its length.

    Raises:
        ConfigError: the data cannot be read as rows, or the tokenizer lacks what is asked of it.
    """
    if tokenizer.eos_token_id is None:
        raise ConfigError(
            [Problem("model.tokenizer_name_or_path", "a tokenizer with an eos token")]
        )
    family = f"{model_family} {os.path.basename(str(tokenizer.name_or_path))}"
    has_template = bool(tokenizer.chat_template)
    chosen = choose_format(config.prompt_format, has_template=has_template, family=family)
    split = read_split(config)
    hashes = _hashes(split, chosen, config.max_length, tokenizer)
    folder = cache or default_cache()
    train, held_out = (
        _side(folder / name, rows, chosen, config.max_length, tokenizer)
        for rows, name in zip((split.train, split.eval), hashes, strict=True)
    )
    prepared = Prepared(
        train=train,
        eval=held_out,
        data_hash=_digest(hashes)[:16],
        prompt_format=chosen,
        skipped=split.skipped,
        leaked=split.leaked,
        truncated=train.tokens.truncated + held_out.tokens.truncated,
    )
    if split.forget:
        prepared = _with_sets(prepared, split, config, tokenizer, folder)
    _log(prepared)
    return prepared


Tokenise = Callable[[list[Row]], tuple[TokenDataset, str]]
"""Rows to a dataset and its content hash."""


def _with_sets(
    prepared: Prepared, split: Split, config: DataConfig, tokenizer: Any, cache: Path
) -> Prepared:
    from trial.objectives.sets import make_sets

    def side(rows: list[Row]) -> tuple[TokenDataset, str]:
        chosen = prepared.prompt_format
        name = _hash_of(rows, chosen, config.max_length, tokenizer)
        return _side(cache / name, rows, chosen, config.max_length, tokenizer), name

    sets = make_sets(split, side, config.max_eval_samples)
    data_hash = _digest([prepared.data_hash, sets.data_hash])[:16]
    return replace(prepared, sets=sets, data_hash=data_hash)


def _log(prepared: Prepared) -> None:
    logger.info(
        "%d training and %d held-out rows as %s (%s); %d empty ones skipped, %d training rows left"
        " out because the eval set asks the same, %d cut to %d tokens",
        len(prepared.train), len(prepared.eval), prepared.prompt_format, prepared.data_hash,
        prepared.skipped, prepared.leaked, prepared.truncated, prepared.train.max_length,
    )  # fmt: skip


def default_cache() -> Path:
    """Where tokens are kept."""
    return cache_folder("tokens")


def _digest(parts: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps(list(parts)).encode()).hexdigest()


def _hashes(split: Split, chosen: str, max_length: int, tokenizer: Any) -> tuple[str, str]:
    """Content hash of either side."""
    train, held_out = (
        _hash_of(rows, chosen, max_length, tokenizer) for rows in (split.train, split.eval)
    )
    return train, held_out


def _hash_of(rows: list[Row], chosen: str, max_length: int, tokenizer: Any) -> str:
    """Content hash of rows as tokens: rows in order, layout, length and tokenizer."""
    shared = [str(LAYOUT), chosen, str(max_length), tokenizer_hash(tokenizer)]
    return _digest([*shared, *(row.digest() for row in rows)])


def tokenizer_hash(tokenizer: Any) -> str:
    """Hash of what a tokenizer does to text, without where it was loaded from."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    content = json.loads(backend.to_str()) if backend else dict(tokenizer.get_vocab())
    if backend:
        # Both are left behind by earlier calls and are never in force here.
        content.pop("padding", None)
        content.pop("truncation", None)
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    parts = [type(tokenizer).__name__, content, special, tokenizer.chat_template]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def _side(
    folder: Path, rows: list[Row], chosen: str, max_length: int, tokenizer: Any
) -> TokenDataset:
    tokens = _cached(folder, rows, chosen, max_length, tokenizer)
    pad = tokenizer.pad_token_id
    pad_id = tokenizer.eos_token_id if pad is None else pad
    return TokenDataset(tokens, max_length, int(pad_id))


def _cached(folder: Path, rows: list[Row], chosen: str, max_length: int, tokenizer: Any) -> Tokens:
    if (tokens := _load(folder, len(rows))) is not None:
        return tokens
    tokens = tokenise(rows, chosen, max_length, tokenizer)
    try:
        _store(tokens, folder)
    except OSError as error:
        logger.warning("tokens stay in memory, %s cannot be written: %s", folder.parent, error)
        return tokens
    return _load(folder, len(rows)) or tokens


def _load(folder: Path, rows: int) -> Tokens | None:
    """Map the files of one side; None when they are missing or not whole."""
    try:
        ids = np.load(folder / "ids.npy", mmap_mode="r")
        spans = np.load(folder / "spans.npy")
        truncated = int(json.loads((folder / "counts.json").read_text())["truncated"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    whole = spans.shape == (rows, 3) and (not rows or int(spans[-1, 2]) == len(ids))
    return Tokens(ids, spans, truncated) if whole else None


def _store(tokens: Tokens, folder: Path) -> None:
    """Write a whole folder or nothing; of several writers at once the first one's stays."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name[:16]}.{uuid.uuid4().hex}.tmp")
    temporary.mkdir()
    try:
        np.save(temporary / "ids.npy", tokens.ids)
        np.save(temporary / "spans.npy", tokens.spans)
        (temporary / "counts.json").write_text(json.dumps({"truncated": tokens.truncated}))
        if folder.exists() and _load(folder, len(tokens.spans)) is None:
            shutil.rmtree(folder, ignore_errors=True)
        os.rename(temporary, folder)
    except OSError:
        if _load(folder, len(tokens.spans)) is None:
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def tokenise(rows: Sequence[Row], chosen: str, max_length: int, tokenizer: Any) -> Tokens:
    """Token ids of the rows in their order, each cut to `max_length`."""
    pieces: list[Ints] = []
    spans = np.zeros((len(rows), 3), dtype=np.int64)
    truncated, at = 0, 0
    for start in range(0, len(rows), CHUNK):
        pairs = _token_pairs(rows[start : start + CHUNK], chosen, tokenizer)
        for index, (prompt, completion) in enumerate(pairs, start):
            truncated += len(prompt) + len(completion) > max_length
            prompt, completion = fit(prompt, completion, max_length)
            spans[index] = at, at + len(prompt), at + len(prompt) + len(completion)
            at += len(prompt) + len(completion)
            pieces.append(np.asarray(prompt + completion, dtype=np.int32))
    return Tokens(np.concatenate(pieces) if pieces else np.zeros(0, np.int32), spans, truncated)


def fit(prompt: list[int], completion: list[int], max_length: int) -> tuple[list[int], list[int]]:
    """Cut a row to `max_length` tokens, as `prepare` says."""
    if len(prompt) + len(completion) <= max_length:
        return prompt, completion
    kept = min(len(completion), max(max_length - len(prompt), max_length // KEPT_SHARE))
    room = max_length - kept
    if len(prompt) > room:
        prompt = [prompt[0], *prompt[len(prompt) - room + 1 :]]
    return prompt, completion[:kept]


def _token_pairs(
    rows: Sequence[Row], chosen: str, tokenizer: Any
) -> list[tuple[list[int], list[int]]]:
    """Prompt and completion ids of each row; every completion ends in exactly one eos."""
    eos = tokenizer.eos_token_id
    with_template = chosen == CHAT_TEMPLATE
    if with_template:
        texts = [_templated(row, tokenizer) for row in rows]
    else:
        texts = [(render(PROMPT_FORMATS[chosen], row.turns), row.completion) for row in rows]
    # Tokenised apart, as in generation: no token spans the border between prompt and completion.
    # A template writes its own bos.
    prompts = _ids([prompt for prompt, _ in texts], not with_template, tokenizer)
    completions = _ids([completion for _, completion in texts], False, tokenizer)
    return [
        (_without_tail(prompt, eos), _with_eos(completion, eos))
        for prompt, completion in zip(prompts, completions, strict=True)
    ]


def _ids(texts: list[str], special: bool, tokenizer: Any) -> list[list[int]]:
    encoded = tokenizer(
        texts, add_special_tokens=special, return_attention_mask=False, verbose=False
    )
    return [list(ids) for ids in encoded["input_ids"]]


def _without_tail(ids: list[int], eos: int) -> list[int]:
    """The prompt without the eos that some tokenizers put after every text."""
    return ids[:-1] if len(ids) > 1 and ids[-1] == eos else ids


def _with_eos(ids: list[int], eos: int) -> list[int]:
    """The completion up to its first eos, or with one put after it."""
    return [*ids[: ids.index(eos)], eos] if eos in ids else [*ids, eos]


def _templated(row: Row, tokenizer: Any) -> tuple[str, str]:
    """Prompt and completion as the chat template writes them, its end-of-turn mark included."""
    turns = [{"role": turn.role, "content": turn.content} for turn in row.turns]
    whole = [*turns, {"role": "assistant", "content": row.completion}]
    prompt = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    text = tokenizer.apply_chat_template(whole, tokenize=False)
    # Some templates write a past answer otherwise than one being given: then the answer itself.
    completion = text[len(prompt) :].rstrip() if text.startswith(prompt) else row.completion
    return prompt, completion
