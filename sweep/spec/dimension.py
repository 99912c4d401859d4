"""The dimensions of a search space: how one configuration value is searched, fixed or derived.

`Choices` and `Range` stand for Optuna's categorical, int and float distributions. Every type may
carry a condition, which makes it a conditional parameter.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field

from sweep.spec import expression
from trial.config.sections import Scalar


class SupportsSuggest(Protocol):
    """The methods of an Optuna trial that draw a parameter."""

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """Draw one of the choices."""

    def suggest_int(
        self, name: str, low: int, high: int, *, step: int = 1, log: bool = False
    ) -> int:
        """Draw an integer; both ends are included."""

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        """Draw a float; both ends are included."""


class Conditional(BaseModel):
    """A value that a trial has only while its condition holds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    when: dict[str, tuple[Any, ...]] = Field(default_factory=dict)
    """The condition: other paths or variables, each with the values that it allows. All must match;
    without any, the condition always holds."""

    def holds(self, values: Mapping[str, Any]) -> bool:
        """Whether the condition holds for the values of the other paths and variables."""
        return all(
            name in values and strictly_in(values[name], allowed)
            for name, allowed in self.when.items()
        )

    def condition(self) -> str:
        """The condition as it is written in Optuna's parameter names: `lora.use_rslora=true`."""
        return ",".join(
            f"{name}={'|'.join(map(_plain, allowed))}" for name, allowed in self.when.items()
        )


class Choices(Conditional):
    """One of several values, which may be lists or mappings: Optuna's categorical distribution."""

    choices: tuple[Any, ...]

    @property
    def optuna_choices(self) -> list[Scalar]:
        """The choices as Optuna stores them."""
        return [optuna_choice(choice) for choice in self.choices]

    def suggest(self, trial: SupportsSuggest, name: str) -> Scalar:
        """Draw a choice, as Optuna stores it."""
        return trial.suggest_categorical(name, self.optuna_choices)

    def decode(self, drawn: Scalar) -> Any:
        """The configuration value of a choice that Optuna stores.

        Raises:
            ValueError: It is not one of the choices.
        """
        for choice in self.choices:
            if strictly_equal(optuna_choice(choice), drawn):
                return copy.deepcopy(choice)
        raise ValueError(f"{drawn!r} is not one of {self.describe()}")

    def encode(self, value: Any) -> Scalar:
        """A configuration value as Optuna stores it.

        Raises:
            ValueError: It is not one of the choices.
        """
        return optuna_choice(self.decode(optuna_choice(value)))

    def count(self) -> int | None:
        """The number of values; None when there is no end of them."""
        return len(self.choices)

    def grid_values(self) -> Iterable[Scalar]:
        """Every value as Optuna stores it, in the order of the file."""
        return self.optuna_choices

    def extremes(self) -> Sequence[Scalar]:
        """The values to try when a space is checked: all, since choices have no order."""
        return self.optuna_choices

    def describe(self) -> str:
        """The choices as text for messages."""
        return ", ".join(map(_plain, self.choices))


class Range(Conditional):
    """Numbers between two ends, both included: Optuna's int and float distributions."""

    type: Literal["int", "float"]
    low: int | float
    high: int | float
    step: int | float | None = None
    log: bool = False

    def suggest(self, trial: SupportsSuggest, name: str) -> Scalar:
        """Draw a number."""
        if self.type == "int":
            low, high = int(self.low), int(self.high)
            return trial.suggest_int(name, low, high, step=int(self.step or 1), log=self.log)
        drawn = trial.suggest_float(name, self.low, self.high, step=self.step, log=self.log)
        return self.canonical(drawn)

    def canonical(self, value: Scalar) -> Scalar:
        """A drawn number by its shortest decimal form: 0.3, and not the sum 0.30000000000000004.

        A number between the steps stays as it is.
        """
        if self.type == "int" or self._step is None or not isinstance(value, int | float):
            return value
        steps = round((exact(value) - exact(self.low)) / self._step)
        nearest = float(exact(self.low) + steps * self._step)
        return nearest if self._is_on_step(value) else value

    def decode(self, drawn: Scalar) -> Any:
        """The number in its canonical form; a journal may hold Optuna's binary sum."""
        return self.canonical(drawn)

    def encode(self, value: Any) -> Scalar:
        """The number itself, in the type of the range.

        Raises:
            ValueError: It is not in the range.
        """
        whole = isinstance(value, int) and not isinstance(value, bool)
        if not whole and not (self.type == "float" and isinstance(value, float)):
            raise ValueError(f"{value!r} is not of type {self.type}")
        if not self.low <= value <= self.high or not self._is_on_step(value):
            raise ValueError(f"{value!r} is not in {self.describe()}")
        return int(value) if self.type == "int" else self.canonical(float(value))

    def count(self) -> int | None:
        """The number of values; None for a float range without a step."""
        if self.low == self.high:
            return 1
        if self._step is None:
            return None
        return int((exact(self.high) - exact(self.low)) // self._step) + 1

    def grid_values(self) -> Iterator[Scalar]:
        """Every value from low to high.

        Raises:
            ValueError: A float range without a step has no end of values.
        """
        count = self.count()
        if count is None:
            raise ValueError("a float range needs a `step` to be enumerated")
        number = int if self.type == "int" else float
        step = self._step or Decimal(1)
        return (number(exact(self.low) + i * step) for i in range(count))

    def extremes(self) -> Sequence[Scalar]:
        """The values to try when a space is checked: both ends."""
        return [self.low] if self.low == self.high else [self.low, self.high]

    def describe(self) -> str:
        """The range as text for messages."""
        step = f" in steps of {self.step}" if self.step else ""
        return f"{self.low} to {self.high}{step}"

    @property
    def _step(self) -> Decimal | None:
        if self.type == "int":
            return Decimal(int(self.step or 1))
        return None if self.step is None else exact(self.step)

    def _is_on_step(self, value: float) -> bool:
        if self._step is None:
            return True
        steps = float((exact(value) - exact(self.low)) / self._step)
        return abs(steps - round(steps)) < 1e-8


class Fixed(Conditional):
    """The same value in every trial (while its condition holds)."""

    value: Any


class Derived(Conditional):
    """A value computed from others of the same trial, by `sweep.spec.expression`."""

    expression: str

    @property
    def names(self) -> frozenset[str]:
        """The paths and variables that the expression reads."""
        return expression.names(self.expression)

    def evaluate(self, known: Mapping[str, Any]) -> Scalar:
        """The expression's value, given those of other paths and variables.

        Raises:
            ValueError: It cannot be evaluated.
        """
        return expression.evaluate(self.expression, known)


Distribution = Choices | Range
"""What Optuna draws from."""
Branch = Choices | Range | Fixed | Derived
"""One of the alternatives for a value."""
Dimension = tuple[Branch, ...]
"""All branches of one path or variable, usually one; at most one of them holds in a trial."""


def dependencies(dimension: Dimension) -> set[str]:
    """The paths and variables that a dimension's conditions and expressions read."""
    found = {name for branch in dimension for name in branch.when}
    return found.union(*(branch.names for branch in dimension if isinstance(branch, Derived)))


def strictly_equal(left: Any, right: Any) -> bool:
    """Whether two values are equal; unlike `==`, true is not 1."""
    return isinstance(left, bool) == isinstance(right, bool) and bool(left == right)


def strictly_in(value: Any, allowed: Iterable[Any]) -> bool:
    """Whether one of `allowed` is strictly equal to a value."""
    return any(strictly_equal(value, item) for item in allowed)


def optuna_choice(value: Any) -> Scalar:
    """A value as Optuna's categorical distribution stores it.

    Scalars stay as they are; lists and mappings become JSON with sorted keys.
    """
    return json.dumps(value, sort_keys=True) if isinstance(value, list | dict) else value


def exact(number: float) -> Decimal:
    """A number by its shortest decimal form: `0.1` is one tenth, so that steps add up."""
    return Decimal(str(number))


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)
