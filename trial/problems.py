"""Mistakes in a user's input, gathered so that one edit can mend them all."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from pydantic import ValidationError


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake: which key, what was expected there, what was got, the nearest known name.

    `key` is a dotted path (`training.learning_rate`), empty for the document as a whole.
    `where` is `file:line` once the loader knows it.
    """

    key: str
    expected: str
    got: str = ""
    near: str = ""
    where: str = ""

    def __str__(self) -> str:
        text = f"{self.key}: {self.expected}" if self.key else self.expected
        text = f"{self.where} {text}" if self.where else text
        text = f"{text}, got {self.got}" if self.got else text
        return f"{text} (did you mean {self.near}?)" if self.near else text


class ConfigError(ValueError):
    """Every mistake found in a user's input, at once."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


def nearest(name: str, known: Sequence[str]) -> str:
    """The known name closest to `name`, or an empty string when none is close."""
    tails: dict[str, str] = {}
    for full in known:
        tails.setdefault(full.rsplit(".", 1)[-1], full)
    match = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    tail = difflib.get_close_matches(name.rsplit(".", 1)[-1], list(tails), n=1, cutoff=0.7)
    return match[0] if match else tails[tail[0]] if tail else ""


def unknown(key: str, known: Sequence[str], what: str = "key") -> Problem:
    """The problem of a name that is not in `known`: the vocabulary and the nearest of it."""
    name = key.rsplit(".", 1)[-1]
    near = nearest(name, known)
    listed = "" if len(known) > 24 else f"; known: {', '.join(known)}"
    return Problem(key, f"unknown {what}{listed}", repr(name), near)


def from_pydantic(error: ValidationError, known: Mapping[str, Sequence[str]]) -> list[Problem]:
    """Turn pydantic's errors into problems; `known` maps a section's dotted path to its keys."""
    problems = []
    for item in error.errors():
        key = ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            section = key.rpartition(".")[0]
            problems.append(unknown(key, known.get(section, ())))
        else:
            message = item["msg"].removeprefix("Value error, ")
            problems.append(Problem(key, message[0].lower() + message[1:], repr(item["input"])))
    return problems
