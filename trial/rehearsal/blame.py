"""Which key of a configuration an exception comes from: the one without which it does not come."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from trial.config.errors import ConfigError, Problem
from trial.config.sections import TRAINING_DEFAULTS
from trial.config.trial_config import TrialConfig

MAX_REASON = 300
"""Characters of an exception's message that are shown."""

Attempt = Callable[[TrialConfig], object]
"""Tries the step that has failed; raises what keeps a worker from it."""


def problems_of_error(
    error: Exception,
    config: TrialConfig,
    sections: Sequence[str],
    attempt: Attempt,
    otherwise: str,
) -> list[Problem]:
    """The problems that an exception stands for, with their keys.

    Args:
        error: What `attempt(config)` has raised.
        config: The trial.
        sections: The sections that are looked through, of `model`, `lora`, `training` and others.
        attempt: Called for the configuration without each of their keys, one at a time.
        otherwise: The key to name where none of them is to blame alone.
    """
    if isinstance(error, ConfigError):
        return list(error.problems)
    rule = f"what a worker can train with ({reason(error)})"
    needed: list[Problem] = []
    for section in sections:
        for name, value in _given(config, section).items():
            problem = Problem(f"{section}.{name}", rule, repr(value))
            without = _without(config, section, name)
            if without is None:
                needed.append(problem)
            elif _succeeds(attempt, without):
                return [problem]
    if len(needed) == 1:
        # The others are not to blame, and no configuration can do without this one.
        return needed
    got: Any = config.model_dump()
    for part in otherwise.split("."):
        got = got.get(part) if isinstance(got, dict) else None
    return [Problem(otherwise, rule, "" if isinstance(got, dict) else repr(got))]


def reason(error: Exception) -> str:
    """The class of an exception and the first line of its message, or two if one is a heading."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = " ".join(lines[: 2 if lines and lines[0].endswith(":") else 1])
    return f"{type(error).__name__}: {text[:MAX_REASON]}" if text else type(error).__name__


def _given(config: TrialConfig, section: str) -> dict[str, Any]:
    """The keys of a section whose values are not the defaults, by name; mappings first.

    A mapping is what another key is given besides: where both could be left out, it is to blame.
    """
    values = config.model_dump()[section]
    defaults = TRAINING_DEFAULTS if section == "training" else TrialConfig().model_dump()[section]
    given = {
        name: value
        for name, value in values.items()
        if name not in defaults or defaults[name] != value
    }
    return dict(sorted(given.items(), key=lambda item: not isinstance(item[1], dict)))


def _without(config: TrialConfig, section: str, name: str) -> TrialConfig | None:
    """The configuration with the default of one key; None where that is not a valid one."""
    content = config.model_dump()
    del content[section][name]
    try:
        return TrialConfig.model_validate(content)
    except ValueError:
        return None


def _succeeds(attempt: Attempt, config: TrialConfig) -> bool:
    try:
        attempt(config)
    except Exception:
        return False
    return True
