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
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trial.config.errors import ConfigError, Problem
from trial.config.sections import DataConfig
from trial.data.examples import Row
from trial.data.prompts import choose_format
from trial.data.split import Split, read_split
from trial.data.tokens import TokenDataset, Tokens, tokenize_rows
from trial.store.cache_dir import cache_folder

if TYPE_CHECKING:
    from trial.data.unlearning import UnlearningData

LAYOUT = 1
"""Part of every hash: raise it when the same rows would give other tokens."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PreparedData:
    """The two sides of a trial's data, ready for a DataLoader."""

    train: TokenDataset
    eval: TokenDataset
    data_hash: str
    """Equal hashes mean the same tokens on both sides."""
    prompt_format: str
    """What `auto` came to."""
    skipped: int
    """Records left out because their prompt or completion is empty."""
    overlapping: int
    """Training rows left out because a separate eval set asks the same."""
    truncated: int
    """Rows of both sides that did not fit into `max_length` whole."""
    unlearning: UnlearningData | None = None
    """What is to be forgotten, and what it is measured on; None when nothing is."""


def prepare(
    config: DataConfig, tokenizer: Any, cache: Path | None = None, *, model_family: str = ""
) -> PreparedData:
    """Read, divide and tokenize_rows the data; later calls with the same content only map files.

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
    prepared = PreparedData(
        train=train,
        eval=held_out,
        data_hash=_digest(hashes)[:16],
        prompt_format=chosen,
        skipped=split.skipped,
        overlapping=split.overlapping,
        truncated=train.tokens.truncated + held_out.tokens.truncated,
    )
    if split.forget:
        prepared = _with_unlearning(prepared, split, config, tokenizer, folder)
    _log(prepared)
    return prepared


def _with_unlearning(
    prepared: PreparedData, split: Split, config: DataConfig, tokenizer: Any, cache: Path
) -> PreparedData:
    from trial.data.unlearning import tokenize_unlearning

    def side(rows: list[Row]) -> tuple[TokenDataset, str]:
        chosen = prepared.prompt_format
        name = _hash_of(rows, chosen, config.max_length, tokenizer)
        return _side(cache / name, rows, chosen, config.max_length, tokenizer), name

    unlearning = tokenize_unlearning(split, side, config.max_eval_samples)
    data_hash = _digest([prepared.data_hash, unlearning.data_hash])[:16]
    return replace(prepared, unlearning=unlearning, data_hash=data_hash)


def _log(prepared: PreparedData) -> None:
    logger.info(
        "%d training and %d held-out rows as %s (%s); %d empty ones skipped, %d training rows left"
        " out because the eval set asks the same, %d cut to %d tokens",
        len(prepared.train), len(prepared.eval), prepared.prompt_format, prepared.data_hash,
        prepared.skipped, prepared.overlapping, prepared.truncated, prepared.train.max_length,
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
    tokens = tokenize_rows(rows, chosen, max_length, tokenizer)
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
