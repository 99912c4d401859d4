"""The rules of a sweep's space: every value that can occur is tried on a configuration.

Each rule yields its problems with the keys of the sweep file.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from sweep.loading.keys import CONFIG_SECTIONS, is_at_or_below, is_config_path, unknown_path
from sweep.loading.raw_sweep import RawSweep
from sweep.loading.sections import enqueued_point
from sweep.spec.dimension import (
    Branch,
    Choices,
    Derived,
    Dimension,
    Fixed,
    Range,
    dependencies,
    strictly_in,
)
from sweep.spec.expression import FUNCTIONS
from sweep.spec.grid import MAX_POINTS, extreme_points, grid_size
from sweep.spec.space import Space, in_dependency_order, overlay, values_of_base
from sweep.spec.spec import SweepSpec
from trial.config.config_rules import SET_BY_HARNESS
from trial.config.errors import ConfigError, Problem, nearest
from trial.config.trial_config import known_paths, problems_of
from trial.store.metrics import EVALUATED

MAX_CHECKED_POINTS = 1000
"""Points at the extremes of the space that are tried."""

MAX_POINT_PROBLEMS = 20
"""No further points are tried after so many problems."""

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True)
class ParsedSweep:
    """A sweep file and the spec that its sections make, for the rules."""

    raw: RawSweep
    spec: SweepSpec

    @property
    def branches(self) -> list[Branch]:
        """The branches of all dimensions that were understood."""
        dimensions = [*self.spec.space.values(), *self.spec.variables.values()]
        return [branch for dimension in dimensions for branch in dimension]

    @cached_property
    def has_all_dimensions(self) -> bool:
        """Whether every dimension of the file was understood."""
        if any(problem.key in ("space", "variables") for problem in self.raw.problems):
            return False
        read = {"space": self.spec.space, "variables": self.spec.variables}
        return all(self.raw.section(name).keys() == read[name].keys() for name in read)

    @cached_property
    def reference_problems(self) -> list[Problem]:
        """What is wrong with the names that conditions and expressions read."""
        return list(_reference_problems(self.raw, self.spec))

    @cached_property
    def space(self) -> Space | None:
        """The space, when all of its dimensions were understood and their references resolve."""
        if not self.has_all_dimensions or self.reference_problems:
            return None
        return Space.of(self.spec)


def path_problem(path: str) -> Problem | None:
    """What is wrong with a name under `space`: it must be a key of a trial's configuration."""
    if path in CONFIG_SECTIONS:
        return Problem("", "is a section: name one of its keys", repr(path))
    harness = path.startswith("training.") and path.removeprefix("training.") in SET_BY_HARNESS
    if is_config_path(path) or harness:
        return None
    return unknown_path(path, known_paths())


def variable_problem(name: str) -> Problem | None:
    """What is wrong with a name under `variables`: it must be one word that is not taken."""
    if not _VARIABLE.fullmatch(name):
        return Problem("", "a variable is one word of letters, digits and _", repr(name))
    taken = name in FUNCTIONS or name in CONFIG_SECTIONS or name in ("True", "False")
    if taken or is_config_path(name):
        return Problem("", "this name is taken; choose another", repr(name))
    return None


# The base and single values


def base_is_valid(sweep: ParsedSweep) -> Iterator[Problem]:
    """The base must be a valid configuration once the space is laid over it."""
    spec = sweep.spec
    first = {
        path: next(_values(dimension), (None, ""))[0]
        for path, dimension in spec.space.items()
        if len(dimension) == 1 and not isinstance(dimension[0], Derived)
    }
    try:
        content = overlay(spec.base, first)
    except ConfigError as error:
        for problem in error.problems:
            yield replace(problem, key=f"space.{problem.key}")
        content = dict(spec.base)
    for problem in problems_of(content):
        searched = any(is_at_or_below(problem.key, path) for path in spec.space)
        if problem.key and not searched:
            yield replace(problem, key=f"base.{problem.key}")


def each_value_is_valid(sweep: ParsedSweep) -> Iterator[Problem]:
    """Every choice, both ends of every range and every fixed value must be valid, one at a time."""
    for path, dimension in sweep.spec.space.items():
        for value, suffix in _values(dimension):
            try:
                content = overlay(sweep.spec.base, {path: value})
            except ConfigError:
                break
            found = [p for p in problems_of(content) if is_at_or_below(p.key, path)]
            if found:
                expected = " or ".join(dict.fromkeys(problem.expected for problem in found))
                where = _locate_value(sweep.raw, f"space.{path}", suffix)
                yield Problem(f"space.{path}", expected, repr(value), found[0].near, where)


def _values(dimension: Dimension) -> Iterator[tuple[Any, str]]:
    """The values to try, each with its key below the dimension's."""
    for index, branch in enumerate(dimension):
        prefix = f"{index}." if len(dimension) > 1 else ""
        if isinstance(branch, Choices):
            for position, choice in enumerate(branch.choices):
                yield copy.deepcopy(choice), f"{prefix}choices.{position}"
        elif isinstance(branch, Range):
            yield branch.low, f"{prefix}low"
            yield branch.high, f"{prefix}high"
        elif isinstance(branch, Fixed):
            yield copy.deepcopy(branch.value), f"{prefix}value"


def _locate_value(raw: RawSweep, key: str, suffix: str) -> str:
    """The location of a value; a list of choices may be written without the key `choices`."""
    short = f"{key}.{suffix.replace('choices.', '')}"
    is_short = short in raw.locations and "choices" in suffix
    return raw.locate(short if is_short else f"{key}.{suffix}")


def metrics_are_reported(sweep: ParsedSweep) -> Iterator[Problem]:
    """An objective that measures forgetting must be one that the trials report."""
    spec = sweep.spec
    data, evaluation = (
        section if isinstance(section := spec.base.get(name), dict) else {}
        for name in ("data", "evaluation")
    )
    reported = evaluation.get("metrics")
    for metric in (objective.metric for objective in spec.objectives):
        if metric not in EVALUATED:
            continue
        if data.get("forget_path") is None and "data.forget_path" not in spec.space:
            rule = f"{metric} is measured on what is to be forgotten: say `data.forget_path`"
            yield Problem("base.data.forget_path", rule, "null")
        if reported is not None and metric not in reported:
            rule = f"a list with {metric}, which the sweep optimises"
            yield Problem("base.evaluation.metrics", rule, repr(reported))
        if metric == "forget_quality" and evaluation.get("retain_model") is None:
            rule = "forget_quality compares with a trial that never saw the forget set: name it"
            yield Problem("base.evaluation.retain_model", rule, "null")


# Conditions and expressions


def references_resolve(sweep: ParsedSweep) -> Iterator[Problem]:
    """Conditions and expressions must read what exists and can occur, and run in no circle."""
    yield from sweep.reference_problems


def _reference_problems(raw: RawSweep, spec: SweepSpec) -> Iterator[Problem]:
    dimensions = {**spec.variables, **spec.space}
    base_values = values_of_base(spec.base)
    named = {*base_values, *raw.section("space"), *raw.section("variables")}
    for name, dimension in dimensions.items():
        key = _file_key(spec, name)
        for missing in sorted(dependencies(dimension) - named):
            rule = "is read here and has no value: not in space, variables or base"
            near = nearest(missing, [*dimensions, *base_values])
            yield Problem(key, f"`{missing}` {rule}", near=near)
        for index, branch in enumerate(dimension):
            at = f"{key}.{index}.when" if len(dimension) > 1 else f"{key}.when"
            for parent, allowed in branch.when.items():
                if parent in dimensions:
                    found = _condition_problems(parent, allowed, dimensions[parent], base_values)
                    yield from (replace(problem, key=f"{at}.{parent}") for problem in found)
    try:
        in_dependency_order(dimensions)
    except ConfigError as error:
        yield from (replace(p, key=_file_key(spec, p.key)) for p in error.problems)


def _condition_problems(
    parent: str, allowed: tuple[Any, ...], dimension: Dimension, base_values: Mapping[str, Any]
) -> Iterator[Problem]:
    """Values of a condition that its parent never takes: typos."""
    if any(isinstance(branch, Derived) for branch in dimension):
        return
    for value in allowed:
        is_base_value = parent in base_values and strictly_in(value, [base_values[parent]])
        base_can_stand = all(branch.when for branch in dimension)
        if not any(_can_be(branch, value) for branch in dimension) and not (
            is_base_value and base_can_stand
        ):
            known = "; ".join(b.describe() for b in dimension if isinstance(b, Choices | Range))
            yield Problem("", f"never holds: {parent} is {known}", repr(value))


def _can_be(branch: Branch, value: Any) -> bool:
    if isinstance(branch, Fixed):
        return strictly_in(value, [branch.value])
    if isinstance(branch, Derived):
        return True
    try:
        branch.encode(value)
    except ValueError:
        return False
    return True


# Whole points


def points_are_valid(sweep: ParsedSweep) -> Iterator[Problem]:
    """Points at the extremes of all dimensions must be valid: derived values, rules across keys.

    Checked only for a sweep without other problems; reports the first problem of each key.
    """
    if sweep.space is None or sweep.raw.problems:
        return
    seen: set[str] = set()
    for shown, problems in _invalid_points(sweep.space):
        for problem in problems:
            key = _file_key(sweep.spec, problem.key) if problem.key else "space"
            if key not in seen:
                seen.add(key)
                got = " at ".join(text for text in (problem.key and problem.got, shown) if text)
                yield replace(_division_hint(sweep.space, problem), key=key, got=got)
        if len(seen) >= MAX_POINT_PROBLEMS:
            return


def _division_hint(space: Space, problem: Problem) -> Problem:
    """The problem, with the operator that keeps whole numbers where `/` made a fraction of one."""
    branches = space.branches(problem.key) if problem.key in space.order else ()
    divides = any(
        isinstance(b, Derived) and "/" in b.expression.replace("//", "") for b in branches
    )
    if "int" not in problem.expected or not divides:
        return problem
    return replace(problem, expected=f"{problem.expected} (`//` divides to a whole number)")


def _invalid_points(space: Space) -> Iterator[tuple[str, Sequence[Problem]]]:
    """Points that make no valid configuration, as text, each with its problems."""
    try:
        for params in extreme_points(space, MAX_CHECKED_POINTS):
            try:
                space.configure(params)
            except ConfigError as error:
                shown = ", ".join(f"{name}={value}" for name, value in params.items())
                yield shown, error.problems
    except ConfigError as error:
        yield "", error.problems


def enqueued_points_fit(sweep: ParsedSweep) -> Iterator[Problem]:
    """Each enqueued point must be a mapping, and lie in the space if that is understood."""
    given = sweep.raw.content.get("enqueue")
    if given is not None and not isinstance(given, list):
        yield Problem("enqueue", "is a list of points", repr(given))
        return
    for index, item in enumerate(given or ()):
        if not isinstance(item, dict) or not item:
            yield Problem(f"enqueue.{index}", "a point is {path: value, ...}", repr(item))
        elif sweep.space:
            try:
                sweep.space.encode_point(enqueued_point(item))
            except ConfigError as error:
                for problem in error.problems:
                    yield replace(problem, key=f"enqueue.{index}.{problem.key}")


def grid_has_an_end(sweep: ParsedSweep) -> Iterator[Problem]:
    """A grid must be finite, and small enough to be waited for."""
    if sweep.space is None or sweep.spec.sampler.name != "grid":
        return
    try:
        size = grid_size(sweep.space)
    except ValueError as error:
        yield Problem("sampler.name", f"the grid is too large: {error}", "grid")
        return
    if size is None:
        for name, distribution in sweep.space.parameters():
            if distribution.count() is None:
                path = name.partition("[")[0]
                section = "space" if f"space.{path}" in sweep.raw.locations else "variables"
                yield Problem(
                    f"{section}.{path}",
                    f"needs a `step` in a grid, or a list: `{_example_list(distribution)}`",
                    distribution.describe(),
                )
    elif size > MAX_POINTS:
        rule = f"the grid must not exceed {MAX_POINTS} points"
        yield Problem("sampler.name", rule, f"{size}")


def _file_key(spec: SweepSpec, name: str) -> str:
    """The sweep file's key for a path or variable, or for a key of the base."""
    if any(is_at_or_below(name, path) for path in spec.space):
        return f"space.{name}"
    return f"variables.{name}" if name in spec.variables else f"base.{name}"


def _example_list(distribution: Choices | Range) -> str:
    """Five values of a range as a YAML list, evenly spaced, by ratio where the range is `log`."""
    assert isinstance(distribution, Range)  # choices have an end
    low, high = float(distribution.low), float(distribution.high)
    parts = [part / 4 for part in range(5)]
    if distribution.log:
        values = [low * (high / low) ** part for part in parts]
    else:
        values = [low + (high - low) * part for part in parts]
    return "[" + ", ".join(f"{value:.2g}" for value in values) + "]"
