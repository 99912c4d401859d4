"""A trial's configuration as nested mappings, with values laid over it by dotted path."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from trial.config.dotted import NotAMapping, flatten, set_value
from trial.config.errors import ConfigError, Problem
from trial.config.trial_config import TrialConfig


def overlay(base: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of `base` with values laid over it by dotted path.

    Raises:
        ConfigError: A path leads through something that is not a mapping.
    """
    content = copy.deepcopy(dict(base))
    problems = []
    for path, value in values.items():
        try:
            set_value(content, path, copy.deepcopy(value), _new_section)
        except NotAMapping as error:
            rule = f"{error.part} is not a mapping in the base"
            problems.append(Problem(path, rule, repr(error.value)))
    if problems:
        raise ConfigError(problems)
    return content


def values_of_base(base: Mapping[str, Any]) -> dict[str, Any]:
    """Values by dotted path, sections included; the defaults for what the base leaves out."""
    defaults = TrialConfig().model_dump(mode="json", exclude={"version", "origin"})
    return {**flatten(defaults, sections=True), **flatten(base, sections=True)}


def _new_section(path: str) -> Any:
    """The section that a deeper path adds to: empty, but for `gaudi_config`, which has defaults."""
    return copy.deepcopy(TrialConfig().gaudi_config) if path == "gaudi_config" else {}
