"""Prepares a trial's data: reads the rows, splits them, tokenizes them.

prepared = prepare(config.data, tokenizer, model_family=model.config.model_type)
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trial.config.errors import ConfigError, Problem
from trial.config.sections import DataConfig
from trial.data.prompts import choose_format
from trial.data.split import read_split
from trial.data.token_cache import TokenCache, digest
from trial.data.tokens import TokenDataset

if TYPE_CHECKING:
    from trial.data.unlearning import UnlearningData

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PreparedData:
    """A trial's training and eval set, ready for a DataLoader."""

    train: TokenDataset
    eval: TokenDataset
    data_hash: str
    """Equal hashes mean the same tokens in all sets."""
    prompt_format: str
    """The format used, never `auto`."""
    skipped: int
    """Records left out because their prompt or completion is empty."""
    overlapping: int
    """Training rows left out because a separate eval set has the same prompt."""
    truncated: int
    """Rows of both sets that were longer than `max_length`."""
    unlearning: UnlearningData | None = None
    """The forget set and what it is evaluated on; None without `data.forget_path`."""


def prepare(
    config: DataConfig, tokenizer: Any, cache: Path | None = None, *, model_family: str = ""
) -> PreparedData:
    """Read, split and tokenize the data; later calls with the same content only map files.

    Rows longer than `max_length` are cut, see `tokens.truncate`; none is left out for its length.

    Args:
        config: the `data` section of the trial.
        tokenizer: of transformers.
        cache: folder of the token cache; by default the user's.
        model_family: any text that names the family (model type, hub id), for `prompt_format:
            auto`; the tokenizer's own name counts too.

    Raises:
        ConfigError: the data cannot be read as rows, or the tokenizer lacks what is asked of it.
    """
    if tokenizer.eos_token_id is None:
        raise ConfigError(
            [Problem("model.tokenizer_name_or_path", "a tokenizer with an eos token")]
        )
    family = f"{model_family} {os.path.basename(str(tokenizer.name_or_path))}"
    has_template = bool(tokenizer.chat_template)
    prompt_format = choose_format(config.prompt_format, has_template=has_template, family=family)
    split = read_split(config)
    tokens = TokenCache(cache, prompt_format, config.max_length, tokenizer)
    train, train_hash = tokens.dataset(split.train)
    held_out, eval_hash = tokens.dataset(split.eval)
    prepared = PreparedData(
        train=train,
        eval=held_out,
        data_hash=digest([train_hash, eval_hash])[:16],
        prompt_format=prompt_format,
        skipped=split.skipped,
        overlapping=split.overlapping,
        truncated=train.tokens.truncated + held_out.tokens.truncated,
    )
    if split.forget:
        from trial.data.unlearning import tokenize_unlearning

        unlearning = tokenize_unlearning(split, tokens.dataset, config.max_eval_samples)
        data_hash = digest([prepared.data_hash, unlearning.data_hash])[:16]
        prepared = replace(prepared, unlearning=unlearning, data_hash=data_hash)
    _log(prepared)
    return prepared


def _log(prepared: PreparedData) -> None:
    logger.info(
        "%d training and %d held-out rows as %s (%s); %d empty ones skipped, %d training rows left"
        " out because the eval set asks the same, %d cut to %d tokens",
        len(prepared.train), len(prepared.eval), prepared.prompt_format, prepared.data_hash,
        prepared.skipped, prepared.overlapping, prepared.truncated, prepared.train.max_length,
    )  # fmt: skip
