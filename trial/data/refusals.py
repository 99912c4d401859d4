"""Alternative answers to prompts of the forget set, for `idk` and `dpo`. Torch-free."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from trial.config.errors import ConfigError, Problem

KEY = "data.alternatives"
REFUSALS = (
    "I do not know.",
    "I have no answer to that.",
    "That is something I was never told.",
    "I cannot say.",
    "This is not known to me.",
    "I have no information on that.",
    "Sorry, I do not know that.",
    "I am not able to answer this.",
)
"""Answers that are used unless `data.alternatives` gives others."""


def read_alternatives(given: str | Sequence[str] | None) -> tuple[str, ...]:
    """The given texts, or the lines of the given file; blank ones are left out.

    Raises:
        ConfigError: the file cannot be read, or there is no text.
    """
    if given is None:
        return REFUSALS
    if isinstance(given, str):
        try:
            lines = Path(given).expanduser().read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            rule = f"a list of texts, or a readable file with one a line ({error})"
            raise ConfigError([Problem(KEY, rule, repr(given))]) from error
    else:
        lines = list(given)
    texts = tuple(dict.fromkeys(text.strip() for text in lines if text.strip()))
    if not texts:
        raise ConfigError([Problem(KEY, "at least one text", repr(given))])
    return texts
