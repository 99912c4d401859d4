"""The configuration that a study proposed for a trial, made again from what its storage holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sweep.spec.space import Space
from sweep.study.confirmations import with_seed
from trial.config import earlier
from trial.config.trial_config import TrialConfig


def proposed_config(
    space: Space, number: int, params: Mapping[str, Any], marks: Mapping[str, Any]
) -> TrialConfig:
    """The configuration of a trial.

    Args:
        space: The study's space.
        number: The trial's number.
        params: What the sampler drew.
        marks: The trial's user attributes in the study.

    Raises:
        ConfigError: the parameters make no valid configuration.
    """
    if "config" in marks:
        return renumbered(stored_config(marks["config"]), number)
    config = space.configure(params, number)
    return with_seed(config, marks["confirms"], marks["seed"]) if "confirms" in marks else config


def renumbered(config: TrialConfig, number: int) -> TrialConfig:
    """The same configuration as that of another trial number."""
    if config.origin is None:
        return config
    return config.model_copy(update={"origin": config.origin.model_copy(update={"number": number})})


def stored_config(text: str) -> TrialConfig:
    """A configuration that the storage holds as text."""
    return TrialConfig.model_validate_json(earlier.stored_config(text))
