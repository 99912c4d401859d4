"""Prepares a trial's data: reads the rows, splits them, tokenizes them.

prepared = prepare(config.data, tokenizer, model_family=model.config.model_type)
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trial.config.errors import ConfigError, Problem
from trial.config.sections import DataConfig
from trial.data.prompts import choose_format
from trial.data.split import Split, read_split, summary_of_rows
from trial.data.text.template_file import (
    read_template,
    template_hash,
    template_name,
    with_template,
)
from trial.data.token_cache import TokenCache, digest, measured_hash
from trial.data.tokens import TokenDataset, Tokens, TokenSettings
from trial.store.records import DataSummary

if TYPE_CHECKING:
    from trial.data.unlearning import UnlearningData

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PreparedData:
    """A trial's training and eval set, ready for a DataLoader."""

    train: TokenDataset
    eval: TokenDataset
    summary: DataSummary
    """What became of the data."""
    unlearning: UnlearningData | None = None
    """The forget set and what it is evaluated on; None without `data.forget_path`."""

    @property
    def data_hash(self) -> str:
        """Equal hashes mean the same tokens and labels in all sets."""
        return self.summary.data_hash


def prepare(
    config: DataConfig, tokenizer: Any, cache: Path | None = None, *, model_family: str = ""
) -> PreparedData:
    """Read, split and tokenize the data; later calls with the same content only map files.

    Rows longer than `max_length` are cut, see `tokens.kept_tokens`; none is left out for its
    length.

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
    template = name = ""
    if config.chat_template is not None:
        template, name = read_template(config.chat_template), template_name(config.chat_template)
        tokenizer = with_template(tokenizer, template)
    has_template = bool(tokenizer.chat_template)
    prompt_format = choose_format(config.prompt_format, has_template=has_template, family=family)
    split = read_split(config)
    settings = TokenSettings(
        prompt_format, config.max_length, config.train_on, config.tokenize, name
    )
    tokens = TokenCache(cache, settings, tokenizer)
    train, train_hash = tokens.dataset(split.train)
    held_out, eval_hash = tokens.dataset(split.eval)
    unlearning, data_hash = None, digest([train_hash, eval_hash])[:16]
    measured = [measured_hash(held_out.tokens, tokenizer), held_out.tokens.text_hash]
    if split.forget:
        from trial.data.unlearning import tokenize_unlearning

        unlearning = tokenize_unlearning(split, tokens.dataset, config.max_eval_samples)
        data_hash = digest([data_hash, unlearning.data_hash])[:16]
        measured = [digest([part, unlearning.data_hash]) for part in measured]
    hashes = (data_hash, measured[0][:16], measured[1][:16])
    summary = _summary(config, split, train.tokens, held_out.tokens, prompt_format, hashes)
    if template:
        own = {"chat_template": name, "chat_template_hash": template_hash(template)}
        summary = summary.model_copy(update=own)
    prepared = PreparedData(train, held_out, summary, unlearning)
    _log(prepared)
    return prepared


def _summary(
    config: DataConfig,
    split: Split,
    train: Tokens,
    held_out: Tokens,
    prompt_format: str,
    hashes: tuple[str, str, str],
) -> DataSummary:
    """The summary; `hashes` are `data_hash`, `eval_hash` and `eval_text_hash`."""
    data_hash, eval_hash, eval_text_hash = hashes
    return summary_of_rows(config, split).model_copy(
        update={
            "truncated": train.truncated + held_out.truncated,
            "answers_cut": train.lost + held_out.lost,
            "prompt_format": prompt_format,
            "train_tokens": train.counted(),
            "eval_tokens": held_out.counted(),
            "eval_bytes": held_out.text_bytes,
            "date": train.date or held_out.date,
            "data_hash": data_hash,
            "eval_hash": eval_hash,
            "eval_text_hash": eval_text_hash,
        }
    )


def _log(prepared: PreparedData) -> None:
    summary = prepared.summary
    logger.info(
        "%d training and %d held-out rows as %s (%s); %d empty ones skipped, %d training rows left"
        " out because the eval set asks the same, %d cut to %d tokens (%d of them in what counts);"
        " columns not used: %s",
        summary.train_rows, summary.eval_rows, summary.format_words, summary.data_hash,
        summary.skipped, summary.overlapping, summary.truncated, prepared.train.max_length,
        summary.answers_cut, ", ".join(summary.unused_columns) or "none",
    )  # fmt: skip
    if summary.duplicates_across == summary.eval_rows:
        logger.warning("every row of the eval set is in the training set too")
