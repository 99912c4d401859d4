"""Parse a dimension of a sweep file: the value under a key of `space` or `variables`.

[4, 8, 16]                                          choices
{low: 1.0e-5, high: 1.0e-3, log: true}              range; int when all its numbers are ints
{value: 16}, or just 16                             fixed
{expression: 2 * lora.r}                            derived
{low: 1, high: 4, when: {lora.use_rslora: true}}    conditional
[{..., when: ...}, {..., when: ...}]                branches: at most one of them holds
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from sweep.spec import expression
from sweep.spec.dimension import (
    Branch,
    Choices,
    Conditional,
    Derived,
    Dimension,
    Fixed,
    Range,
    exact,
    optuna_choice,
    strictly_in,
)
from trial.config.errors import ConfigError, Problem, nearest
from trial.config.sections import Scalar

MAX_CHOICES = 2000
MAX_BRANCHES = 50
MAX_ALLOWED = 50
"""Values of a condition. Branches are compared two by two, and their conditions value by value."""


def parse_dimension(raw: Any, key: str) -> Dimension:
    """The dimension that a value of a sweep file stands for.

    Args:
        raw: The value.
        key: Its dotted key in the file, for problems.

    Raises:
        ConfigError: Every mistake in it.
    """
    if not _is_list_of_branches(raw):
        return (_parse_branch(raw, key),)
    if len(raw) > MAX_BRANCHES:
        raise ConfigError([_too_many(key, "branches", MAX_BRANCHES, raw)])
    problems: list[Problem] = []
    branches = []
    for index, item in enumerate(raw):
        try:
            branches.append(_parse_branch(item, f"{key}.{index}", needs_when=True))
        except ConfigError as error:
            problems += error.problems
    if len(branches) == len(raw):
        problems += _overlaps(branches, key)
    if problems:
        raise ConfigError(problems)
    return tuple(branches)


_FORMS: dict[str, tuple[str, ...]] = {
    "choices": ("choices",),
    "value": ("value",),
    "expression": ("expression",),
    "low": ("low", "high", "step", "log", "type"),
}
"""The keys of a mapping that give it each form; a form has the name of its first key."""
_KEYS = (*(key for keys in _FORMS.values() for key in keys), "when")
_OTHER_WORDS = {
    "min": "low", "max": "high", "lower": "low", "upper": "high", "values": "choices",
    "options": "choices", "q": "step", "formula": "expression", "if": "when",
}  # fmt: skip
"""Names that other tools give these keys, too unlike them to be suggested by their spelling."""


def _too_many(key: str, what: str, most: int, values: Sequence[Any]) -> Problem:
    return Problem(key, f"must not have more than {most} {what}", str(len(values)))


def _is_list_of_branches(raw: Any) -> bool:
    return isinstance(raw, list) and any(isinstance(item, dict) and "when" in item for item in raw)


def _parse_branch(raw: Any, key: str, needs_when: bool = False) -> Branch:
    if needs_when and not (isinstance(raw, dict) and "when" in raw):
        raise ConfigError([Problem(key, "every branch is a mapping with `when`", repr(raw))])
    if isinstance(raw, list):
        raw = {"choices": raw}
    elif not isinstance(raw, dict):
        raw = {"value": raw}
    form, problems = _form_of(raw, key)
    when, condition_problems = _parse_when(raw, f"{key}.when")
    problems += condition_problems
    if form:
        problems += _CHECKS[form](raw, key)
    if problems:
        raise ConfigError(problems)
    return _build(form, raw, when)


def _form_of(raw: dict[str, Any], key: str) -> tuple[str, list[Problem]]:
    """The form of a mapping (a key of `_FORMS`), and what is wrong with its keys."""
    forms = [form for form, keys in _FORMS.items() if any(name in raw for name in keys)]
    problems = [
        Problem(
            f"{key}.{name}",
            f"unknown key of a dimension; known: {', '.join(_KEYS)}",
            repr(name),
            _OTHER_WORDS.get(name) or nearest(name, _KEYS),
        )
        for name in raw
        if name not in _KEYS
    ]
    if len(forms) > 1:
        rule = "is choices, or a range, or a value, or an expression: one of them"
        got = ", ".join(name for name in raw if name in _KEYS and name != "when")
        problems.append(Problem(key, rule, got))
    if not forms and not problems:
        problems.append(
            Problem(key, "needs `choices`, `low` and `high`, `value` or `expression`", repr(raw))
        )
    return (forms[0] if len(forms) == 1 else ""), problems


def _parse_when(raw: dict[str, Any], key: str) -> tuple[dict[str, tuple[Any, ...]], list[Problem]]:
    """The condition of a mapping, and what is wrong with it."""
    if "when" not in raw:
        return {}, []
    conditions = raw["when"]
    if not isinstance(conditions, dict) or not conditions:
        return {}, [Problem(key, "is a mapping {path: value or [values]}", repr(conditions))]
    when = {
        name: tuple(allowed) if isinstance(allowed, list) else (allowed,)
        for name, allowed in conditions.items()
    }
    problems = [Problem(f"{key}.{name}", "names no value", "[]") for name in when if not when[name]]
    problems += [
        _too_many(f"{key}.{name}", "values", MAX_ALLOWED, values)
        for name, values in when.items()
        if len(values) > MAX_ALLOWED
    ]
    return when, problems


def _check_choices(raw: dict[str, Any], key: str) -> list[Problem]:
    choices = raw["choices"]
    if not isinstance(choices, list):
        return [Problem(key, "`choices` is a list", repr(choices))]
    if not choices:
        return [Problem(key, "there must be at least one choice", "[]")]
    if len(choices) > MAX_CHOICES:
        return [_too_many(key, "choices (a range has `low` and `high`)", MAX_CHOICES, choices)]
    seen: set[Scalar] = set()
    for choice in choices:
        # Plain equality: Optuna cannot tell true from 1, or 1 from 1.0, among its choices.
        if optuna_choice(choice) in seen:
            return [Problem(key, "the choices must differ", f"{choice!r} twice")]
        seen.add(optuna_choice(choice))
    return []


def _check_value(raw: dict[str, Any], key: str) -> list[Problem]:
    return []


def _check_expression(raw: dict[str, Any], key: str) -> list[Problem]:
    text = raw["expression"]
    if not isinstance(text, str):
        return [Problem(f"{key}.expression", "is a text such as `2 * lora.r`", repr(text))]
    try:
        expression.names(text)
    except ValueError as error:
        return [Problem(f"{key}.expression", str(error))]
    return []


def _check_range(raw: dict[str, Any], key: str) -> list[Problem]:
    problems = [
        Problem(key, f"a range needs `low` and `high`; `{name}` is missing")
        for name in ("low", "high")
        if name not in raw
    ]
    for name in ("low", "high", "step"):
        if name in raw and not _is_number(raw[name]) and not (name == "step" and raw[name] is None):
            problems.append(Problem(f"{key}.{name}", "must be a finite number", repr(raw[name])))
    if not isinstance(raw.get("log", False), bool):
        problems.append(Problem(f"{key}.log", "must be true or false", repr(raw["log"])))
    if raw.get("type", "int") not in ("int", "float"):
        problems.append(Problem(f"{key}.type", "must be int or float", repr(raw["type"])))
    return problems or _check_range_rules(raw, key)


def _check_range_rules(raw: dict[str, Any], key: str) -> list[Problem]:
    """The rules of Optuna's int and float distributions, for parts of the right types."""
    low, high, step, log = raw["low"], raw["high"], raw.get("step"), raw.get("log", False)
    kind = _range_type(raw)
    problems = []
    if kind == "int":
        problems += [
            Problem(f"{key}.{name}", "must be whole when the type is int", repr(raw[name]))
            for name in ("low", "high", "step")
            if raw.get(name) is not None and not isinstance(raw[name], int)
        ]
    if low > high:
        problems.append(Problem(f"{key}.low", "`low <= high` must hold", f"{low=}, {high=}"))
    if log and low <= 0:
        rule = "at least 1" if kind == "int" else "> 0"
        problems.append(Problem(f"{key}.low", f"must be {rule} when log is true", repr(low)))
    if step is not None and step <= 0:
        problems.append(Problem(f"{key}.step", "must be > 0", repr(step)))
    elif step is not None and log and not (kind == "int" and step == 1):
        problems.append(Problem(f"{key}.step", "is not supported when log is true", repr(step)))
    return problems


_CHECKS = {
    "choices": _check_choices,
    "value": _check_value,
    "expression": _check_expression,
    "low": _check_range,
}


def _build(form: str, raw: dict[str, Any], when: dict[str, tuple[Any, ...]]) -> Branch:
    """A branch from a mapping without mistakes."""
    if form == "choices":
        return Choices(choices=tuple(raw["choices"]), when=when)
    if form == "value":
        return Fixed(value=raw["value"], when=when)
    if form == "expression":
        return Derived(expression=raw["expression"].strip(), when=when)
    return _build_range(raw, when)


def _build_range(raw: dict[str, Any], when: dict[str, tuple[Any, ...]]) -> Range:
    """A range whose high end is lowered to the last step, as Optuna would do with a warning."""
    kind: Literal["int", "float"] = _range_type(raw)
    number = int if kind == "int" else float
    low, high, step = number(raw["low"]), number(raw["high"]), raw.get("step")
    if step is not None:
        step = number(step)
        steps = (exact(high) - exact(low)) // exact(step)
        high = number(exact(low) + steps * exact(step))
        step = None if kind == "int" and step == 1 else step
    return Range(type=kind, low=low, high=high, step=step, log=raw.get("log", False), when=when)


def _range_type(raw: dict[str, Any]) -> Literal["int", "float"]:
    if "type" in raw:
        return "int" if raw["type"] == "int" else "float"
    parts = [raw[name] for name in ("low", "high", "step") if raw.get(name) is not None]
    return "int" if all(isinstance(part, int) for part in parts) else "float"


def _overlaps(branches: Sequence[Conditional], key: str) -> list[Problem]:
    """Pairs of branches that could hold at once: no shared condition keeps them apart."""
    problems = []
    for index, branch in enumerate(branches):
        for other in range(index):
            if not _exclude_each_other(branches[other].when, branch.when):
                rule = "at most one branch may hold at a time"
                got = f"{branches[other].condition()} and {branch.condition()}"
                problems.append(Problem(f"{key}.{index}", rule, got))
    return problems


def _exclude_each_other(
    left: Mapping[str, tuple[Any, ...]], right: Mapping[str, tuple[Any, ...]]
) -> bool:
    """Whether two conditions read the same name and allow it no common value."""
    return any(
        not any(strictly_in(value, right[name]) for value in left[name])
        for name in left
        if name in right
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
