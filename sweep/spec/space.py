"""The search space of a sweep: from Optuna's parameters to a trial's configuration and back.

Optuna sees flat parameters (`lora.r`, `alpha_over_r`); trials need configurations. In between are
conditions, branches, derived and fixed values, all resolved in one walk, parents first.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from sweep.spec.dimension import Choices, Derived, Dimension, Fixed, Range, Searched, Suggests
from sweep.spec.spec import SweepSpec
from trial.config.errors import ConfigError, Problem, nearest, unknown
from trial.config.trial_config import Origin, Scalar, TrialConfig, parse

__all__ = ["MAX_ENUMERATED", "Space"]

Params = dict[str, Scalar]
Choose = Callable[[str, Searched], Scalar]
Points = Callable[[str, Searched], Iterable[Scalar]]

MAX_ENUMERATED = 100_000
"""A grid of more points than this is refused: nobody means it."""


class _Unknown:
    """The value of a parameter that an enqueued point leaves to the sampler."""

    def __repr__(self) -> str:
        return "not given"


_UNKNOWN = _Unknown()


class Space:
    """What may be searched, with its conditions. Immutable; every method is pure."""

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
        self._constants = constants(base)
        self._order = order(self._dimensions)

    @classmethod
    def of(cls, spec: SweepSpec) -> Space:
        """The space of a sweep.

        Raises:
            ConfigError: derived values or conditions depend on each other in a circle.
        """
        return cls(spec.name, spec.base, spec.space, spec.variables)

    def names(self) -> list[str]:
        """Every parameter name Optuna may see."""
        return [name for name, _ in self.searched()]

    def searched(self) -> list[tuple[str, Searched]]:
        """Every searched branch with its parameter name, parents first."""
        return [
            (self._label(name, branch), branch)
            for name in self._order
            for branch in self._dimensions[name]
            if isinstance(branch, Choices | Range)
        ]

    def suggest(self, trial: Suggests) -> Params:
        """Draw one point from an Optuna trial: the parameters that are active together."""
        params: Params = {}

        def choose(name: str, branch: Searched) -> Scalar:
            params[name] = branch.draw(trial, name)
            return params[name]

        self._walk(choose)
        return params

    def values(self, params: Mapping[str, Scalar]) -> dict[str, Any]:
        """What a point means, by dotted path: decoded, derived and fixed values of active paths.

        Raises:
            ConfigError: a parameter is missing or cannot be decoded, or an expression fails.
        """
        walked = self.named(params)
        return {path: walked[path] for path in self._paths if path in walked}

    def named(self, params: Mapping[str, Scalar]) -> dict[str, Any]:
        """What a point means by the name of each active dimension, variables included.

        Raises:
            ConfigError: as `values` does.
        """

        def choose(name: str, branch: Searched) -> Scalar:
            if name not in params:
                raise ConfigError([Problem(name, "has no value in this point")])
            return params[name]

        return self._walk(choose)

    def open_names(self) -> list[str]:
        """Paths and variables that are searched, parents first."""
        return list(dict.fromkeys(label.split("[")[0] for label, _ in self.searched()))

    def configure(self, params: Mapping[str, Scalar], number: int | None = None) -> TrialConfig:
        """The configuration of one trial: a point laid over the base.

        Raises:
            ConfigError: the point does not make a valid configuration; every mistake at once.
        """
        origin = None
        if number is not None:
            origin = Origin(study=self._study, number=number, params=dict(params))
        return self.lay(self.values(params), origin)

    def lay(self, values: Mapping[str, Any], origin: Origin | None = None) -> TrialConfig:
        """The base with values laid over it by dotted path.

        Raises:
            ConfigError: that is not a valid configuration; every mistake at once.
        """
        return parse({**overlay(self._base, values), "origin": origin})

    def variants(self, sections: Sequence[str], limit: int = 1000) -> Iterator[dict[str, Any]]:
        """Values that differ in what lies at or below `sections`; ranges count by their ends.

        Everything else stands at its first value. At most `limit` points are looked at.
        """
        moving = {n for n in self._order if any(n == s or n.startswith(f"{s}.") for s in sections)}
        moving = self._with_parents(moving)
        still = {label for label, branch in self.searched() if label.split("[")[0] not in moving}

        def points(name: str, branch: Searched) -> Sequence[Scalar]:
            return branch.ends()[:1] if name in still else branch.ends()

        for params in itertools.islice(self._enumerate(points), limit):
            yield self.values(params)

    def grid(self) -> list[Params]:
        """Every point, in file order (parents first), the last dimension fastest.

        Raises:
            ValueError: a float range without a step, which is named, or too many points.
        """
        size = self.size()
        if size is None:
            raise ValueError(f"{self._endless()}: a float range needs a `step` in a grid")
        if size > MAX_ENUMERATED:
            raise ValueError(f"the grid has {size} points; at most {MAX_ENUMERATED} are enumerated")
        return list(self._enumerate(lambda _, branch: branch.points()))

    def size(self) -> int | None:
        """How many different points there are; None when there is no end of them.

        Raises:
            ValueError: the conditions have too many combinations to count.
        """
        if self._endless():
            return None
        controls = self._controls()
        if math.prod(self._most(name) for name in controls) > MAX_ENUMERATED:
            raise ValueError(f"{', '.join(controls)}: too many combinations of conditions to count")
        return sum(self._count(walked, controls) for walked in self._control_points(controls))

    def corners(self, limit: int = 1000) -> Iterator[Params]:
        """Points at the ends of every dimension: all of them, or a fixed sample of `limit`."""
        if math.prod(self._most(name, ends=True) for name in self._order) <= limit:
            yield from self._enumerate(lambda _, branch: branch.ends())
            return
        rng = random.Random(0)
        for _ in range(limit):
            params: Params = {}

            def choose(name: str, branch: Searched, params: Params = params) -> Scalar:
                params[name] = rng.choice(branch.ends())
                return params[name]

            # A failing expression ends the walk; `values` of the point says so again.
            with contextlib.suppress(ConfigError):
                self._walk(choose)
            yield params

    def check_point(self, point: Mapping[str, Any]) -> Params:
        """Optuna's parameters for a point given by dotted path; what it leaves out stays open.

        Raises:
            ConfigError: the point is outside the space; every mistake at once.
        """
        params: Params = {}
        problems = [unknown(n, tuple(self._dimensions), "path of the space") for n in point
                    if n not in self._dimensions]  # fmt: skip
        known: dict[str, Any] = dict(self._constants)
        for name in self._order:
            try:
                self._place(name, point, known, params)
            except ValueError as error:
                known[name] = _UNKNOWN
                problems.append(Problem(name, str(error)))
        if problems:
            raise ConfigError(problems)
        return params

    def _place(
        self, name: str, point: Mapping[str, Any], known: dict[str, Any], params: Params
    ) -> None:
        """One dimension of a given point: into `params` when searched, into `known` always."""
        open_parents = [n for n in self._parents(name) if known.get(n) is _UNKNOWN]
        if open_parents:
            known[name] = _UNKNOWN
            missing = [parent for parent in open_parents if parent not in point]
            if name in point and missing:
                raise ValueError(f"depends on {', '.join(missing)}: give that too")
            return
        branch = self._active(name, known)
        if isinstance(branch, Choices | Range):
            if name not in point:
                known[name] = _UNKNOWN
                return
            params[self._label(name, branch)] = drawn = branch.encode(point[name])
            known[name] = branch.decode(drawn)
            return
        if branch is not None:
            known[name] = _settle(branch, known)
        if name in point and point[name] != known.get(name):
            raise ValueError(f"is not searched here, its value is {known.get(name)!r}")

    def _walk(self, choose: Choose) -> dict[str, Any]:
        """The values of all active paths and variables, with `choose` for the searched ones."""
        known = dict(self._constants)
        active = {}
        for name in self._order:
            branch = self._active(name, known)
            if branch is not None:
                known[name] = active[name] = self._value(name, branch, known, choose)
        return active

    def _value(
        self,
        name: str,
        branch: Choices | Range | Fixed | Derived,
        known: Mapping[str, Any],
        choose: Choose,
    ) -> Any:
        try:
            if isinstance(branch, Choices | Range):
                return branch.decode(choose(self._label(name, branch), branch))
            return _settle(branch, known)
        except ConfigError:
            raise
        except ValueError as error:
            raise ConfigError([Problem(name, str(error))]) from error

    def _active(
        self, name: str, known: Mapping[str, Any]
    ) -> Choices | Range | Fixed | Derived | None:
        return next((branch for branch in self._dimensions[name] if branch.holds(known)), None)

    def _label(self, name: str, branch: Searched) -> str:
        """The parameter's name: each of several branches has a distribution of its own."""
        alone = len(self._dimensions[name]) == 1
        return name if alone else f"{name}[{branch.condition()}]"

    def _parents(self, name: str) -> set[str]:
        return reads(self._dimensions[name])

    def _endless(self) -> str:
        """The first searched dimension without an end of values; empty when there is none."""
        return next((name for name, branch in self.searched() if branch.count() is None), "")

    def _most(self, name: str, ends: bool = False) -> int:
        """At most so many values of one dimension, over all its branches."""
        return sum(
            (len(branch.ends()) if ends else branch.count() or 1)
            if isinstance(branch, Choices | Range)
            else 1
            for branch in self._dimensions[name]
        )

    def _controls(self) -> list[str]:
        """Dimensions that a condition reads, directly or through others."""
        dimensions = self._dimensions.values()
        read = {name for dimension in dimensions for branch in dimension for name in branch.when}
        wanted = self._with_parents(read)
        return [name for name in self._order if name in wanted]

    def _with_parents(self, names: set[str]) -> set[str]:
        """The names and all that they depend on."""
        for name in reversed(self._order):
            if name in names:
                names = names | self._parents(name)
        return names

    def _control_points(self, controls: list[str]) -> Iterator[dict[str, Any]]:
        """Every combination of the controls' values, over the base's."""

        def extend(index: int, known: dict[str, Any]) -> Iterator[dict[str, Any]]:
            if index == len(controls):
                yield known
                return
            for value in self._options(controls[index], known, lambda _, branch: branch.points()):
                yield from extend(index + 1, {**known, **value[1]})

        return extend(0, dict(self._constants))

    def _count(self, known: Mapping[str, Any], controls: list[str]) -> int:
        """Points that share one combination of the controls."""
        branches = (self._active(name, known) for name in self._order if name not in controls)
        return math.prod(b.count() or 1 for b in branches if isinstance(b, Choices | Range))

    def _enumerate(self, points: Points) -> Iterator[Params]:
        def extend(index: int, known: dict[str, Any], params: Params) -> Iterator[Params]:
            if index == len(self._order):
                yield params
                return
            for drawn, value in self._options(self._order[index], known, points):
                yield from extend(index + 1, {**known, **value}, {**params, **drawn})

        return extend(0, dict(self._constants), {})

    def _options(
        self,
        name: str,
        known: Mapping[str, Any],
        points: Points,
    ) -> Iterator[tuple[Params, dict[str, Any]]]:
        """What a dimension can be, given its parents: (parameters, values) of each option."""
        branch = self._active(name, known)
        if branch is None:
            yield {}, {}
        elif isinstance(branch, Choices | Range):
            label = self._label(name, branch)
            for drawn in points(label, branch):
                yield {label: drawn}, {name: branch.decode(drawn)}
        else:
            yield {}, {name: self._value(name, branch, known, lambda n, b: None)}


def _settle(branch: Fixed | Derived, known: Mapping[str, Any]) -> Any:
    if isinstance(branch, Fixed):
        return copy.deepcopy(branch.value)
    return branch.evaluate(known)


def reads(dimension: Dimension) -> set[str]:
    """The paths and variables that a dimension's conditions and expressions read."""
    found = {name for branch in dimension for name in branch.when}
    return found.union(*(branch.names for branch in dimension if isinstance(branch, Derived)))


def order(dimensions: Mapping[str, Dimension]) -> list[str]:
    """The dimensions in file order, each after those it reads.

    Raises:
        ConfigError: some depend on each other in a circle.
    """
    ordered: dict[str, None] = {}
    waiting = {name: reads(dimension) & dimensions.keys() for name, dimension in dimensions.items()}
    while waiting:
        ready = next((name for name in waiting if waiting[name] <= ordered.keys()), None)
        if ready is None:
            circle = _circle(waiting)
            raise ConfigError(
                [Problem(circle[0], "depends on itself", " -> ".join([*circle, circle[0]]))]
            )
        ordered[ready] = None
        del waiting[ready]
    return list(ordered)


def _circle(waiting: Mapping[str, set[str]]) -> list[str]:
    """One circle among names that all wait for another of them."""
    path = [next(iter(waiting))]
    while True:
        following = min(waiting[path[-1]] & waiting.keys())
        if following in path:
            return path[path.index(following) :]
        path.append(following)


def constants(base: Mapping[str, Any]) -> dict[str, Any]:
    """The base's values by dotted path, with the defaults of what it leaves out."""
    defaults = TrialConfig().model_dump(mode="json", exclude={"version", "origin"})
    flat: dict[str, Any] = {}
    for content in (defaults, base):
        for name, section in content.items():
            flat[name] = section
            if isinstance(section, Mapping):
                flat.update(_flat(name, section))
    return flat


def _flat(prefix: str, content: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in content.items():
        flat[f"{prefix}.{name}"] = value
        if isinstance(value, Mapping):
            flat.update(_flat(f"{prefix}.{name}", value))
    return flat


def overlay(base: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of `base` with values laid over it by dotted path.

    Raises:
        ConfigError: a path leads through something that is not a mapping.
    """
    content = copy.deepcopy(dict(base))
    problems = []
    for path, value in values.items():
        parts = path.split(".")
        place: Any = content
        for depth, part in enumerate(parts[:-1], start=1):
            if place.get(part) is None:
                place[part] = copy.deepcopy(_default(".".join(parts[:depth])))
            place = place[part]
            if not isinstance(place, dict):
                problems.append(Problem(path, f"{part} is not a mapping in the base", repr(place)))
                break
        else:
            place[parts[-1]] = copy.deepcopy(value)
    if problems:
        raise ConfigError(problems)
    return content


def _default(path: str) -> Any:
    """What a deeper path is laid over: sections start empty, `gaudi_config` has a default."""
    return TrialConfig().gaudi_config if path == "gaudi_config" else {}


def nearest_name(name: str, dimensions: Mapping[str, Dimension], base: Mapping[str, Any]) -> str:
    """The nearest name an expression or condition could have meant."""
    return nearest(name, [*dimensions, *constants(base)])
