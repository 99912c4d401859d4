"""Configurations to be checked before they start, and their only problem."""

from typing import Any

from trial.config.errors import Problem
from trial.config.trial_config import TrialConfig
from trial.preflight.checks import preflight

ROWS = [{"question": f"q{number}", "answer": "a"} for number in range(4)]


def changed(config: TrialConfig, section: str, **values: Any) -> TrialConfig:
    """The configuration with other values in one section, not validated."""
    return config.model_copy(update={section: getattr(config, section).model_copy(update=values)})


def only_problem(config: TrialConfig, **options: Any) -> Problem:
    """The one problem that the preflight finds."""
    (problem,) = preflight(config, **options)
    return problem
