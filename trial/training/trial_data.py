"""A trial's tokenised data for its base model: every id has an embedding."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from trial.config.errors import ConfigError, Problem
from trial.config.trial_config import TrialConfig
from trial.data.prepare import PreparedData, prepare
from trial.data.tokens import TokenDataset


def prepare_for(base: Any, config: TrialConfig, tokenizer: Any) -> PreparedData:
    """Read and tokenise the data (`trial.data.prepare`), and check its ids.

    Args:
        base: The base model, of transformers.
        config: The trial.
        tokenizer: Its tokenizer, of transformers.

    Raises:
        ConfigError: the data cannot be read or tokenised, or an id has no embedding.
    """
    data = prepare(config.data, tokenizer, model_family=base.config.model_type)
    _check_ids(data, tokenizer, _embeddings(base), config)
    return data


def _embeddings(base: Any) -> int:
    """Number of the model's input embeddings; ZeRO stage 3 keeps the whole shape aside."""
    weight = base.get_input_embeddings().weight
    return int(getattr(weight, "ds_shape", weight.shape)[0])


def _check_ids(data: PreparedData, tokenizer: Any, size: int, config: TrialConfig) -> None:
    """Refuse ids at or beyond the number of embeddings, which no forward pass can look up.

    Raises:
        ConfigError: there are some.
    """
    pad = data.train.pad_id
    largest = max(pad, *(int(found.tokens.ids.max(initial=0)) for found in _datasets(data)))
    if largest < size:
        return
    token = tokenizer.convert_ids_to_tokens(largest)
    what = "pad token" if largest == pad else "token"
    rule = f"a tokenizer for this model, which has {size} embeddings"
    tokenizer_key = "model.tokenizer_name_or_path"
    key = tokenizer_key if config.model.tokenizer_name_or_path else "model.name_or_path"
    raise ConfigError([Problem(key, rule, f"id {largest} of the {what} {token!r}")])


def _datasets(data: PreparedData) -> Iterator[TokenDataset]:
    yield from (data.train, data.eval)
    if data.unlearning is not None:
        yield from (data.unlearning.forget, data.unlearning.alternatives)
