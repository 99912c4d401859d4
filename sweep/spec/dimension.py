"""One value of a sweep file that is searched, fixed or derived: its grammar and its rules.

[4, 8, 16]                                      choices
{low: 1.0e-5, high: 1.0e-3, log: true}          range; int when both ends are ints
{value: 16}, or just 16                         fixed
{expression: 2 * lora.r}                        derived
{low: 1, high: 4, when: {lora.use_rslora: true}}    only while the condition holds
[{..., when: ...}, {..., when: ...}]            branches: at most one of them holds
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field

from sweep.spec import expression
from trial.config.errors import ConfigError, Problem, nearest
from trial.config.trial_config import Scalar


class Suggests(Protocol):
    """What is needed of an Optuna trial."""

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """One of the choices."""

    def suggest_int(
        self, name: str, low: int, high: int, *, step: int = 1, log: bool = False
    ) -> int:
        """A whole number, both ends included."""

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        """A number, both ends included."""


class Branch(BaseModel):
    """One way a value comes about, and the condition under which it does."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    when: dict[str, tuple[Any, ...]] = Field(default_factory=dict)
    """Other values by path or variable name, each with those that let this branch hold."""

    def holds(self, values: Mapping[str, Any]) -> bool:
        """Whether every condition is met."""
        return all(
            name in values and is_in(values[name], allowed) for name, allowed in self.when.items()
        )

    def condition(self) -> str:
        """The condition as it stands in parameter names: `lora.use_rslora=true`."""
        return ",".join(
            f"{name}={'|'.join(map(_plain, allowed))}" for name, allowed in self.when.items()
        )


class Choices(Branch):
    """One of several values, which may be lists or mappings."""

    choices: tuple[Any, ...]

    @property
    def labels(self) -> list[Scalar]:
        """The choices as Optuna sees them."""
        return [label(choice) for choice in self.choices]

    def draw(self, trial: Suggests, name: str) -> Scalar:
        """Ask Optuna for a label."""
        return trial.suggest_categorical(name, self.labels)

    def decode(self, drawn: Scalar) -> Any:
        """The value behind a label."""
        for choice in self.choices:
            if same(label(choice), drawn):
                return copy.deepcopy(choice)
        raise ValueError(f"{drawn!r} is not one of {self.describe()}")

    def encode(self, value: Any) -> Scalar:
        """The label of a value.

        Raises:
            ValueError: it is not one of the choices.
        """
        return label(self.decode(label(value)))

    def count(self) -> int | None:
        """How many values there are; None when they cannot be counted."""
        return len(self.choices)

    def points(self) -> Iterable[Scalar]:
        """Every label, in file order."""
        return self.labels

    def ends(self) -> Sequence[Scalar]:
        """The labels at which a mistake would show: all."""
        return self.labels

    def describe(self) -> str:
        """In words, for messages."""
        return ", ".join(map(_plain, self.choices))


class Range(Branch):
    """Numbers between two ends, both included."""

    type: Literal["int", "float"]
    low: int | float
    high: int | float
    step: int | float | None = None
    log: bool = False

    def draw(self, trial: Suggests, name: str) -> Scalar:
        """Ask Optuna for a number."""
        if self.type == "int":
            low, high = int(self.low), int(self.high)
            return trial.suggest_int(name, low, high, step=int(self.step or 1), log=self.log)
        return trial.suggest_float(name, self.low, self.high, step=self.step, log=self.log)

    def decode(self, drawn: Scalar) -> Any:
        """The number itself."""
        return drawn

    def encode(self, value: Any) -> Scalar:
        """The number itself.

        Raises:
            ValueError: it is not in the range.
        """
        whole = isinstance(value, int) and not isinstance(value, bool)
        if not whole and not (self.type == "float" and isinstance(value, float)):
            raise ValueError(f"{value!r} is not of type {self.type}")
        if not self.low <= value <= self.high or not self._on_grid(value):
            raise ValueError(f"{value!r} is not in {self.describe()}")
        return int(value) if self.type == "int" else float(value)

    def count(self) -> int | None:
        """How many values there are; None when they cannot be counted."""
        if self.low == self.high:
            return 1
        if self._step is None:
            return None
        return int((_decimal(self.high) - _decimal(self.low)) // self._step) + 1

    def points(self) -> Iterator[Scalar]:
        """Every value from low to high.

        Raises:
            ValueError: a float range without a step has no end of values.
        """
        count = self.count()
        if count is None:
            raise ValueError("a float range needs a `step` to be enumerated")
        number = int if self.type == "int" else float
        step = self._step or Decimal(1)
        return (number(_decimal(self.low) + i * step) for i in range(count))

    def ends(self) -> Sequence[Scalar]:
        """The values at which a mistake would show: both ends."""
        return [self.low] if self.low == self.high else [self.low, self.high]

    def describe(self) -> str:
        """In words, for messages."""
        step = f" in steps of {self.step}" if self.step else ""
        return f"{self.low} to {self.high}{step}"

    @property
    def _step(self) -> Decimal | None:
        if self.type == "int":
            return Decimal(int(self.step or 1))
        return None if self.step is None else _decimal(self.step)

    def _on_grid(self, value: float) -> bool:
        if self._step is None:
            return True
        steps = float((_decimal(value) - _decimal(self.low)) / self._step)
        return abs(steps - round(steps)) < 1e-8


class Fixed(Branch):
    """The same value in every trial (while its condition holds)."""

    value: Any


class Derived(Branch):
    """A value computed from others of the same trial."""

    expression: str

    @property
    def names(self) -> frozenset[str]:
        """What the expression reads."""
        return expression.names(self.expression)

    def evaluate(self, known: Mapping[str, Any]) -> Scalar:
        """The expression's value among the known ones.

        Raises:
            ValueError: it cannot be evaluated.
        """
        return expression.evaluate(self.expression, known)


Searched = Choices | Range
Dimension = tuple[Choices | Range | Fixed | Derived, ...]
"""The branches of one path or variable; usually one."""


def same(left: Any, right: Any) -> bool:
    """Equality that tells true from 1."""
    return isinstance(left, bool) == isinstance(right, bool) and bool(left == right)


def is_in(value: Any, allowed: Iterable[Any]) -> bool:
    """Membership by `same`."""
    return any(same(value, item) for item in allowed)


def label(value: Any) -> Scalar:
    """A value as an Optuna choice: scalars themselves, lists and mappings as stable JSON."""
    return json.dumps(value, sort_keys=True) if isinstance(value, list | dict) else value


def parse(raw: Any, key: str) -> Dimension:
    """The dimension that a sweep file's value means; `key` names it in problems.

    Raises:
        ConfigError: every mistake in it.
    """
    if not _is_branches(raw):
        return (_branch(raw, key),)
    problems: list[Problem] = []
    branches = []
    for index, item in enumerate(raw):
        try:
            branches.append(_branch(item, f"{key}.{index}", needs_when=True))
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
_KEYS = (*(key for keys in _FORMS.values() for key in keys), "when")
_OTHER_WORDS = {
    "min": "low", "max": "high", "lower": "low", "upper": "high", "values": "choices",
    "options": "choices", "q": "step", "formula": "expression", "if": "when",
}  # fmt: skip


def _is_branches(raw: Any) -> bool:
    return isinstance(raw, list) and any(isinstance(item, dict) and "when" in item for item in raw)


def _branch(raw: Any, key: str, needs_when: bool = False) -> Choices | Range | Fixed | Derived:
    if needs_when and not (isinstance(raw, dict) and "when" in raw):
        raise ConfigError([Problem(key, "every branch is a mapping with `when`", repr(raw))])
    if isinstance(raw, list):
        raw = {"choices": raw}
    elif not isinstance(raw, dict):
        raw = {"value": raw}
    form, problems = _form(raw, key)
    when, found = _when(raw, f"{key}.when")
    problems += found
    if form and (found := _CHECKS[form](raw, key)):
        problems += found
    if problems:
        raise ConfigError(problems)
    return _build(form, raw, when)


def _form(raw: dict[str, Any], key: str) -> tuple[str, list[Problem]]:
    """Which of the four forms a mapping has, and what is wrong with its keys."""
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
        said = ", ".join(name for name in raw if name in _KEYS and name != "when")
        problems.append(
            Problem(key, "is choices, or a range, or a value, or an expression: one of them", said)
        )
    if not forms and not problems:
        problems.append(
            Problem(key, "needs `choices`, `low` and `high`, `value` or `expression`", repr(raw))
        )
    return (forms[0] if len(forms) == 1 else ""), problems


def _when(raw: dict[str, Any], key: str) -> tuple[dict[str, tuple[Any, ...]], list[Problem]]:
    if "when" not in raw:
        return {}, []
    conditions = raw["when"]
    if not isinstance(conditions, dict) or not conditions:
        return {}, [Problem(key, "is a mapping {path: value or [values]}", repr(conditions))]
    when = {
        name: tuple(allowed) if isinstance(allowed, list) else (allowed,)
        for name, allowed in conditions.items()
    }
    empty = [Problem(f"{key}.{name}", "names no value", "[]") for name in when if not when[name]]
    return when, empty


def _check_choices(raw: dict[str, Any], key: str) -> list[Problem]:
    choices = raw["choices"]
    if not isinstance(choices, list):
        return [Problem(key, "`choices` is a list", repr(choices))]
    if not choices:
        return [Problem(key, "there must be at least one choice", "[]")]
    seen: set[Scalar] = set()
    for choice in choices:
        # Plain equality: Optuna cannot tell true from 1, or 1 from 1.0, among its choices.
        if label(choice) in seen:
            return [Problem(key, "the choices must differ", f"{choice!r} twice")]
        seen.add(label(choice))
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
    return problems or _check_ends(raw, key)


def _check_ends(raw: dict[str, Any], key: str) -> list[Problem]:
    """Optuna's own rules about a range, once its parts have the right types."""
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


def _build(
    form: str, raw: dict[str, Any], when: dict[str, tuple[Any, ...]]
) -> Choices | Range | Fixed | Derived:
    if form == "choices":
        return Choices(choices=tuple(raw["choices"]), when=when)
    if form == "value":
        return Fixed(value=raw["value"], when=when)
    if form == "expression":
        return Derived(expression=raw["expression"].strip(), when=when)
    return _build_range(raw, when)


def _build_range(raw: dict[str, Any], when: dict[str, tuple[Any, ...]]) -> Range:
    """A range whose high end can be reached: Optuna would lower it too, with a warning."""
    kind: Literal["int", "float"] = _range_type(raw)
    number = int if kind == "int" else float
    low, high, step = number(raw["low"]), number(raw["high"]), raw.get("step")
    if step is not None:
        step = number(step)
        steps = (_decimal(high) - _decimal(low)) // _decimal(step)
        high = number(_decimal(low) + steps * _decimal(step))
        step = None if kind == "int" and step == 1 else step
    return Range(type=kind, low=low, high=high, step=step, log=raw.get("log", False), when=when)


def _range_type(raw: dict[str, Any]) -> Literal["int", "float"]:
    if "type" in raw:
        return "int" if raw["type"] == "int" else "float"
    parts = [raw[name] for name in ("low", "high", "step") if raw.get(name) is not None]
    return "int" if all(isinstance(part, int) for part in parts) else "float"


def _overlaps(branches: Sequence[Branch], key: str) -> list[Problem]:
    """Pairs of branches that could hold at once: no shared condition keeps them apart."""
    problems = []
    for index, branch in enumerate(branches):
        for other in range(index):
            if not _apart(branches[other].when, branch.when):
                said = f"{branches[other].condition()} and {branch.condition()}"
                problems.append(
                    Problem(f"{key}.{index}", "at most one branch may hold at a time", said)
                )
    return problems


def _apart(left: Mapping[str, tuple[Any, ...]], right: Mapping[str, tuple[Any, ...]]) -> bool:
    return any(
        not any(is_in(value, right[name]) for value in left[name]) for name in left if name in right
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _decimal(number: float) -> Decimal:
    return Decimal(str(number))


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)
