"""The search space of a sweep: from Optuna's parameters to a trial's configuration and back.

Optuna sees flat parameters (`lora.r`, `alpha_over_r`); a trial needs a configuration. Conditions,
branches, derived and fixed values are resolved in between, each dimension after those it reads.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

from sweep.spec.dimension import (
    Branch,
    Choices,
    Derived,
    Dimension,
    Distribution,
    Fixed,
    Range,
    SupportsSuggest,
    dependencies,
)
from sweep.spec.spec import SweepSpec
from trial.config.dotted import NotAMapping, flatten, set_value
from trial.config.errors import ConfigError, Problem, unknown
from trial.config.sections import Origin, Scalar
from trial.config.trial_config import TrialConfig, parse

Params = dict[str, Scalar]
"""Optuna's parameters of one point: their names, and the values that Optuna stores."""

Suggest = Callable[[str, Distribution], Scalar]
"""Gives a parameter its value, as Optuna stores it: (parameter name, distribution) -> value."""


class _LeftOpen:
    """The value of a dimension that an enqueued point leaves to the sampler."""

    def __repr__(self) -> str:
        return "not given"


_LEFT_OPEN = _LeftOpen()


class Space:
    """The dimensions of a sweep over its base configuration.

    Immutable, and every method is pure. `sweep.spec.grid` lists the points of a space.

    Attributes:
        order: Names of all dimensions (paths and variables), each after those it reads.
        base_values: Values of the base by dotted path, with the defaults of what it leaves out.
    """

    def __init__(
        self,
        study: str,
        base: Mapping[str, Any],
        space: Mapping[str, Dimension],
        variables: Mapping[str, Dimension],
    ) -> None:
        self._study = study
        self._base = base
        self._paths = space
        self._dimensions: dict[str, Dimension] = {**variables, **space}
        self.base_values = values_of_base(base)
        self.order = in_dependency_order(self._dimensions)

    @classmethod
    def of(cls, spec: SweepSpec) -> Space:
        """The space of a sweep.

        Raises:
            ConfigError: Derived values or conditions depend on each other in a circle.
        """
        return cls(spec.name, spec.base, spec.space, spec.variables)

    # The parameters that Optuna sees

    def parameters(self) -> list[tuple[str, Distribution]]:
        """Every parameter that Optuna may see, with its distribution, in dependency order."""
        return [
            (self.parameter_name(name, branch), branch)
            for name in self.order
            for branch in self._dimensions[name]
            if isinstance(branch, Choices | Range)
        ]

    def parameter_name(self, name: str, branch: Distribution) -> str:
        """Optuna's name for a branch of a dimension.

        It is the dimension's own name; of several branches each has a distribution of its own, and
        so its condition in its name: `lora.r[lora.use_rslora=true]`.
        """
        alone = len(self._dimensions[name]) == 1
        return name if alone else f"{name}[{branch.condition()}]"

    def searched_names(self) -> list[str]:
        """Paths and variables that are searched, in dependency order."""
        return list(dict.fromkeys(name.split("[")[0] for name, _ in self.parameters()))

    def suggest(self, trial: SupportsSuggest) -> Params:
        """Draw one point from an Optuna trial: the parameters whose conditions hold."""
        params: Params = {}

        def suggest(name: str, distribution: Distribution) -> Scalar:
            params[name] = distribution.suggest(trial, name)
            return params[name]

        self.resolve(suggest)
        return params

    def canonical(self, params: Mapping[str, Scalar]) -> Params:
        """Parameters with each number in its canonical form; a journal may hold another."""
        distributions = dict(self.parameters())
        return {
            name: found.canonical(value)
            if isinstance(found := distributions.get(name), Range)
            else value
            for name, value in params.items()
        }

    # From parameters to a configuration

    def values(self, params: Mapping[str, Scalar]) -> dict[str, Any]:
        """The configuration values of a point by dotted path: drawn, derived and fixed ones.

        Raises:
            ConfigError: A parameter is missing or cannot be decoded, or an expression fails.
        """
        resolved = self.named_values(params)
        return {path: resolved[path] for path in self._paths if path in resolved}

    def named_values(self, params: Mapping[str, Scalar]) -> dict[str, Any]:
        """The values of a point by name of dimension: like `values`, with the variables.

        Raises:
            ConfigError: As `values` does.
        """

        def look_up(name: str, distribution: Distribution) -> Scalar:
            if name not in params:
                raise ConfigError([Problem(name, "has no value in this point")])
            return params[name]

        return self.resolve(look_up)

    def configure(self, params: Mapping[str, Scalar], number: int | None = None) -> TrialConfig:
        """The configuration of a trial: the values of a point laid over the base.

        Args:
            params: Optuna's parameters.
            number: The trial's number, for its `origin`; without one it has no origin.

        Raises:
            ConfigError: The point makes no valid configuration; every mistake at once.
        """
        origin = None
        if number is not None:
            origin = Origin(study=self._study, number=number, params=dict(params))
        return self.configure_values(self.values(params), origin)

    def configure_values(
        self, values: Mapping[str, Any], origin: Origin | None = None
    ) -> TrialConfig:
        """The base with values laid over it by dotted path.

        Raises:
            ConfigError: That is no valid configuration; every mistake at once.
        """
        return parse({**overlay(self._base, values), "origin": origin})

    # From values to parameters

    def encode_point(self, point: Mapping[str, Any]) -> Params:
        """Optuna's parameters of a point given by path and variable.

        What the point leaves out is left to the sampler.

        Raises:
            ConfigError: The point is outside the space; every mistake at once.
        """
        params: Params = {}
        problems = [
            unknown(name, tuple(self._dimensions), "path of the space")
            for name in point
            if name not in self._dimensions
        ]
        known: dict[str, Any] = dict(self.base_values)
        for name in self.order:
            try:
                self._encode_dimension(name, point, known, params)
            except ValueError as error:
                known[name] = _LEFT_OPEN
                problems.append(Problem(name, str(error)))
        if problems:
            raise ConfigError(problems)
        return params

    def _encode_dimension(
        self, name: str, point: Mapping[str, Any], known: dict[str, Any], params: Params
    ) -> None:
        """Encode one dimension of a point: into `params` if searched, into `known` always."""
        open_parents = [n for n in self.dependencies(name) if known.get(n) is _LEFT_OPEN]
        if open_parents:
            known[name] = _LEFT_OPEN
            missing = [parent for parent in open_parents if parent not in point]
            if name in point and missing:
                raise ValueError(f"depends on {', '.join(missing)}: give that too")
            return
        branch = self.active_branch(name, known)
        if isinstance(branch, Choices | Range):
            if name not in point:
                known[name] = _LEFT_OPEN
                return
            drawn = branch.encode(point[name])
            params[self.parameter_name(name, branch)] = drawn
            known[name] = branch.decode(drawn)
            return
        if branch is not None:
            known[name] = _compute(branch, known)
        if name in point and point[name] != known.get(name):
            raise ValueError(f"is not searched here, its value is {known.get(name)!r}")

    # Conditions and dependencies

    def resolve(self, suggest: Suggest) -> dict[str, Any]:
        """The values of all dimensions whose conditions hold, by name.

        Args:
            suggest: Gives each searched dimension its value; called in dependency order.

        Raises:
            ConfigError: A value cannot be decoded, or an expression fails.
        """
        known = dict(self.base_values)
        active = {}
        for name in self.order:
            branch = self.active_branch(name, known)
            if branch is not None:
                known[name] = active[name] = self.value_of(name, branch, known, suggest)
        return active

    def value_of(
        self, name: str, branch: Branch, known: Mapping[str, Any], suggest: Suggest
    ) -> Any:
        """The value of one branch of a dimension, given those of the dimensions it reads.

        Raises:
            ConfigError: The value cannot be decoded, or the expression fails.
        """
        try:
            if isinstance(branch, Choices | Range):
                return branch.decode(suggest(self.parameter_name(name, branch), branch))
            return _compute(branch, known)
        except ConfigError:
            raise
        except ValueError as error:
            raise ConfigError([Problem(name, str(error))]) from error

    def branches(self, name: str) -> Dimension:
        """All branches of a dimension."""
        return self._dimensions[name]

    def active_branch(self, name: str, known: Mapping[str, Any]) -> Branch | None:
        """The branch whose condition holds; None when the dimension is inactive."""
        return next((branch for branch in self._dimensions[name] if branch.holds(known)), None)

    def dependencies(self, name: str) -> set[str]:
        """The paths and variables that a dimension reads."""
        return dependencies(self._dimensions[name])

    def with_dependencies(self, names: set[str]) -> set[str]:
        """The names and all that they depend on, directly or through others."""
        for name in reversed(self.order):
            if name in names:
                names = names | self.dependencies(name)
        return names


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


def in_dependency_order(dimensions: Mapping[str, Dimension]) -> list[str]:
    """Names of the dimensions in the order of the file, but each after those it reads.

    Raises:
        ConfigError: Some depend on each other in a circle.
    """
    ordered: dict[str, None] = {}
    waiting = {
        name: dependencies(dimension) & dimensions.keys() for name, dimension in dimensions.items()
    }
    while waiting:
        ready = next((name for name in waiting if waiting[name] <= ordered.keys()), None)
        if ready is None:
            circle = _find_circle(waiting)
            raise ConfigError(
                [Problem(circle[0], "depends on itself", " -> ".join([*circle, circle[0]]))]
            )
        ordered[ready] = None
        del waiting[ready]
    return list(ordered)


def _find_circle(waiting: Mapping[str, set[str]]) -> list[str]:
    """One circle among names that all wait for another of them."""
    path = [next(iter(waiting))]
    while True:
        following = min(waiting[path[-1]] & waiting.keys())
        if following in path:
            return path[path.index(following) :]
        path.append(following)


def _compute(branch: Fixed | Derived, known: Mapping[str, Any]) -> Any:
    if isinstance(branch, Fixed):
        return copy.deepcopy(branch.value)
    return branch.evaluate(known)
