"""Mistakes in a user's input, collected so that all can be corrected at once."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError


@dataclass(frozen=True, slots=True)
class Problem:
    """One mistake in a configuration.

    Attributes:
        key: Dotted path (`training.learning_rate`), empty for the document as a whole.
        expected: The rule that does not hold.
        got: The value, as text.
        near: The most similar known name.
        where: `file:line`, or the override, once it is known.
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
    """All mistakes in a user's input, one line each."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


def raise_as_value_error(problems: Sequence[Problem]) -> None:
    """Raise the problems from within a pydantic validator, which turns a `ValueError` into its own.

    Raises:
        ValueError: there is at least one problem.
    """
    if problems:
        raise ValueError("; ".join(str(problem) for problem in problems))


_OTHER_NAMES = {
    "asha": "successive_halving", "sha": "successive_halving", "nop": "none", "off": "none",
    "bayes": "gp", "bayesian": "gp", "cma": "cmaes", "cma-es": "cmaes", "nsgaii": "nsga2",
    "halton": "qmc", "sobol": "qmc", "gpu": "cuda", "nvidia": "cuda", "gaudi": "hpu",
    "habana": "hpu", "fp16": "float16", "half": "float16", "bf16": "bfloat16", "fp32": "float32",
    "adamw": "adamw_torch", "adamw_hf": "adamw_torch", "gpus": "devices_per_trial",
    "hpus": "devices_per_trial", "devices": "devices_per_trial", "cpus": "cpus_per_trial",
    "workers": "concurrency", "n_trials": "trials", "max_trials": "trials", "timeout": "hours",
}  # fmt: skip
"""Names of other tools for our keys and values, not similar enough in spelling to be suggested."""


def nearest(name: str, known: Sequence[str]) -> str:
    """The known name most similar to `name`, or an empty string when none is similar."""
    if (ours := _OTHER_NAMES.get(name.lower(), "")) in known and ours:
        return ours
    tails: dict[str, str] = {}
    for full in known:
        tails.setdefault(full.rsplit(".", 1)[-1], full)
    match = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    tail = difflib.get_close_matches(name.rsplit(".", 1)[-1], list(tails), n=1, cutoff=0.7)
    if match or tail:
        return match[0] if match else tails[tail[0]]
    begun = [full for full in known if len(name) > 2 and full.startswith(name.lower())]
    return begun[0] if len(begun) == 1 else ""


def nearest_choice(value: object, rule: str) -> str:
    """The choice most similar to a value, among those a rule quotes: `one of 'no' or 'steps'`."""
    return nearest(value, re.findall("'([^']+)'", rule)) if isinstance(value, str) else ""


_OUT_OF_SCOPE = (
    (re.compile(r"4bit|8bit|quantiz|bnb|gptq|awq"), "quantised base models are not supported"),
    (
        re.compile(r"peft_type|peft_method|adapter_type|task_type"),
        "of PEFT, only LoRA is supported",
    ),
)
"""Names that users of other tools try, and what they mean."""


def unknown(key: str, known: Sequence[str], what: str = "key") -> Problem:
    """The problem of a name that is not in `known`, with a list of the known names if short."""
    name = key.rsplit(".", 1)[-1]
    near = nearest(name, known)
    listed = "" if len(known) > 24 else f"; known: {', '.join(known)}"
    beyond = next((text for words, text in _OUT_OF_SCOPE if words.search(name)), "")
    if beyond and not near:
        return Problem(key, f"unknown {what}: {beyond} (README, What it does not do)", repr(name))
    return Problem(key, f"unknown {what}{listed}", repr(name), near)


_ACROSS = "across_keys"
"""Type of the pydantic errors that `across` makes."""
_BRANCH = re.compile(r"str|int|float|bool|none|(list|dict|tuple|literal)\[.*\]|constrained-\w+")
"""How pydantic names the branches of a union in the location of an error."""


def across(key: str, rule: str, got: object) -> PydanticCustomError:
    """The error that a pydantic validator of a whole section raises for one of its keys."""
    text = "null" if got is None else repr(got)
    return PydanticCustomError(_ACROSS, "{rule}", {"key": key, "rule": rule, "got": text})


def from_pydantic(error: ValidationError, known: Mapping[str, Sequence[str]]) -> list[Problem]:
    """Turn pydantic's errors into problems; `known` maps a section's dotted path to its keys."""
    by_place: dict[str, list[tuple[bool, Problem]]] = {}
    for item in error.errors():
        place, deeper = _split_location(item["loc"])
        key = ".".join(map(str, (*place, *deeper)))
        found = (bool(deeper), _from_item(item, key, known))
        by_place.setdefault(".".join(map(str, place)), []).append(found)
    return [problem for found in by_place.values() for problem in _merge_union_problems(found)]


def _split_location(
    place: tuple[int | str, ...],
) -> tuple[tuple[int | str, ...], tuple[int | str, ...]]:
    """Divide a location into that of the value and that within one branch of a union."""
    for depth, part in enumerate(place):
        if depth and isinstance(part, str) and _BRANCH.fullmatch(part):
            return place[:depth], place[depth + 1 :]
    return place, ()


def _merge_union_problems(found: list[tuple[bool, Problem]]) -> list[Problem]:
    """Merge the problems of one value: a union reports one for each of its branches.

    Problems from within a branch (a wrong item of a list) are more precise and win.
    """
    inside = [problem for deeper, problem in found if deeper]
    if inside or len(found) == 1:
        return inside or [problem for _, problem in found]
    first = found[0][1]
    others = [problem.expected.removeprefix("input should be ") for _, problem in found[1:]]
    expected = " or ".join(dict.fromkeys([first.expected, *others]))
    near = next((problem.near for _, problem in found if problem.near), "")
    return [Problem(first.key, expected, first.got, near)]


def _from_item(item: ErrorDetails, key: str, known: Mapping[str, Sequence[str]]) -> Problem:
    context: dict[str, Any] = item.get("ctx", {})
    if item["type"] == _ACROSS:
        return Problem(".".join(filter(None, (key, context["key"]))), item["msg"], context["got"])
    if item["type"] == "extra_forbidden":
        return unknown(key, known.get(key.rpartition(".")[0], ()))
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "model_type":
        message = f"is a mapping of {', '.join(known.get(key, ('its keys',)))}"
    near = nearest_choice(item["input"], str(context.get("expected", "")))
    return Problem(key, message[0].lower() + message[1:], repr(item["input"]), near)
