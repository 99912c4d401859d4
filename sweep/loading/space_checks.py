"""Does a sweep's space fit its trials? Every value that can occur is tried on a configuration.

Each function notes its mistakes in the sheet; keys are those of the sweep file.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from sweep.loading.raw_sweep import (
    CONFIG_SECTIONS,
    RawSweep,
    flatten,
    is_at_or_below,
    is_path,
    unknown_path,
)
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
from sweep.spec.overlay import overlay, values_of_base
from sweep.spec.space import Space, in_dependency_order
from sweep.spec.spec import SweepSpec
from trial.config.config_rules import SET_BY_HARNESS
from trial.config.errors import ConfigError, Problem, nearest
from trial.config.trial_config import known_paths, problems_of
from trial.store.metrics import EVALUATED

_CORNERS = 1000
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def known_names(sheet: RawSweep, kind: str, dimensions: Mapping[str, Any]) -> list[str]:
    """The good names: paths that are keys of a trial's configuration, variables that are free."""
    good = []
    for name in dimensions:
        problem = _path_problem(name) if kind == "space" else _variable_problem(name)
        if problem:
            sheet.refuse(replace(problem, key=f"{kind}.{name}"))
        else:
            good.append(name)
    return good


def _path_problem(path: str) -> Problem | None:
    if path in CONFIG_SECTIONS:
        return Problem("", "is a section: name one of its keys", repr(path))
    harness = path.startswith("training.") and path.removeprefix("training.") in SET_BY_HARNESS
    if is_path(path) or harness:
        return None
    return unknown_path(path, known_paths())


def _variable_problem(name: str) -> Problem | None:
    if not _VARIABLE.fullmatch(name):
        return Problem("", "a variable is one word of letters, digits and _", repr(name))
    if name in FUNCTIONS or name in CONFIG_SECTIONS or is_path(name) or name in ("True", "False"):
        return Problem("", "this name is taken; choose another", repr(name))
    return None


def check_references(sheet: RawSweep, spec: SweepSpec) -> bool:
    """Conditions and expressions must read what exists, can occur, and runs in no circle."""
    dimensions = {**spec.variables, **spec.space}
    values = values_of_base(spec.base)
    named = {*values, *sheet.section("space"), *sheet.section("variables")}
    before = len(sheet.problems)
    for name, dimension in dimensions.items():
        key = _key(spec, name)
        for missing in sorted(dependencies(dimension) - named):
            rule = "is read here and has no value: not in space, variables or base"
            near = nearest(missing, [*dimensions, *values])
            sheet.refuse(Problem(key, f"`{missing}` {rule}", near=near))
        for index, branch in enumerate(dimension):
            at = f"{key}.{index}.when" if len(dimension) > 1 else f"{key}.when"
            for parent, allowed in branch.when.items():
                if parent in dimensions:
                    _check_condition(sheet, at, parent, allowed, dimensions[parent], values)
    try:
        in_dependency_order(dimensions)
    except ConfigError as error:
        for problem in error.problems:
            sheet.refuse(replace(problem, key=_key(spec, problem.key)))
    return len(sheet.problems) == before


def _check_condition(
    sheet: RawSweep,
    at: str,
    parent: str,
    allowed: tuple[Any, ...],
    dimension: Dimension,
    constants: Mapping[str, Any],
) -> None:
    """A value that the parent never takes is a typo."""
    if any(isinstance(branch, Derived) for branch in dimension):
        return
    for value in allowed:
        standing = parent in constants and strictly_in(value, [constants[parent]])
        if not any(_can_be(branch, value) for branch in dimension) and not (
            standing and all(branch.when for branch in dimension)
        ):
            known = "; ".join(b.describe() for b in dimension if isinstance(b, Choices | Range))
            problem = Problem(f"{at}.{parent}", f"never holds: {parent} is {known}", repr(value))
            sheet.refuse(problem)


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


def check_base(sheet: RawSweep, spec: SweepSpec) -> None:
    """The base must be a valid configuration once the space is laid over it."""
    first = {path: next(_values(dimension), (None, ""))[0] for path, dimension in spec.space.items()
             if _plain(dimension)}  # fmt: skip
    try:
        content = overlay(spec.base, first)
    except ConfigError as error:
        for problem in error.problems:
            sheet.refuse(replace(problem, key=f"space.{problem.key}"))
        content = dict(spec.base)
    for problem in problems_of(content):
        searched = any(is_at_or_below(problem.key, path) for path in spec.space)
        if problem.key and not searched:
            sheet.refuse(replace(problem, key=f"base.{problem.key}"))


def check_metrics(sheet: RawSweep, spec: SweepSpec) -> None:
    """A figure of unlearning must be one that the trials report."""
    data, evaluation = (
        section if isinstance(section := spec.base.get(name), dict) else {}
        for name in ("data", "evaluation")
    )
    reported = evaluation.get("metrics")
    for goal in spec.objectives:
        if goal.metric not in EVALUATED:
            continue
        if data.get("forget_path") is None and "data.forget_path" not in spec.space:
            rule = f"{goal.metric} is measured on what is to be forgotten: say `data.forget_path`"
            sheet.refuse(Problem("base.data.forget_path", rule, "null"))
        if reported is not None and goal.metric not in reported:
            rule = f"a list with {goal.metric}, which the sweep optimises"
            sheet.refuse(Problem("base.evaluation.metrics", rule, repr(reported)))
        if goal.metric == "forget_quality" and evaluation.get("retain_model") is None:
            rule = "forget_quality compares with a trial that never saw the forget set: name it"
            sheet.refuse(Problem("base.evaluation.retain_model", rule, "null"))


def _plain(dimension: Dimension) -> bool:
    return len(dimension) == 1 and not isinstance(dimension[0], Derived)


def check_values(sheet: RawSweep, spec: SweepSpec) -> None:
    """Every choice, both ends of every range and every fixed value, one at a time."""
    for path, dimension in spec.space.items():
        for value, suffix in _values(dimension):
            try:
                content = overlay(spec.base, {path: value})
            except ConfigError:
                break
            found = [p for p in problems_of(content) if is_at_or_below(p.key, path)]
            if found:
                expected = " or ".join(dict.fromkeys(problem.expected for problem in found))
                problem = Problem(f"space.{path}", expected, repr(value), found[0].near)
                sheet.refuse(problem, at=_item(sheet, f"space.{path}", suffix))


def _values(dimension: Dimension) -> Iterator[tuple[Any, str]]:
    """Values to try, each with its place below the dimension's key."""
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


def _item(sheet: RawSweep, key: str, suffix: str) -> str:
    """The place of a value in the file: choices may stand without their keyword."""
    short = f"{key}.{suffix.replace('choices.', '')}"
    return short if short in sheet.where and "choices" in suffix else f"{key}.{suffix}"


def check_points(sheet: RawSweep, spec: SweepSpec, space: Space) -> None:
    """Points at the ends of all dimensions together: derived values and rules across keys."""
    found = 0
    try:
        for params in extreme_points(space, _CORNERS):
            found += _check_point(sheet, spec, space, params)
            if found >= 20:
                return
    except ConfigError as error:
        _refuse_all(sheet, spec, error, "")


def _check_point(sheet: RawSweep, spec: SweepSpec, space: Space, params: Mapping[str, Any]) -> int:
    before = len(sheet.problems)
    shown = ", ".join(f"{name}={value}" for name, value in params.items())
    try:
        space.configure(params)
    except ConfigError as error:
        _refuse_all(sheet, spec, error, shown)
    return len(sheet.problems) - before


def _refuse_all(sheet: RawSweep, spec: SweepSpec, error: ConfigError, shown: str) -> None:
    """Note the problems of one point, each rule once per key: the first point stands for all."""
    for problem in error.problems:
        key = _key(spec, problem.key) if problem.key else "space"
        got = " at ".join(text for text in (problem.key and problem.got, shown) if text)
        if not any(seen.key == key for seen in sheet.problems):
            sheet.refuse(replace(problem, key=key, got=got))


def enqueued(sheet: RawSweep, space: Space | None) -> tuple[dict[str, Any], ...]:
    """The enqueued points by dotted path; each must lie in the space, once that is understood."""
    raw = sheet.content.get("enqueue")
    if raw is not None and not isinstance(raw, list):
        sheet.refuse(Problem("enqueue", "is a list of points", repr(raw)))
    points = []
    for index, item in enumerate(raw if isinstance(raw, list) else ()):
        if not isinstance(item, dict) or not item:
            sheet.refuse(Problem(f"enqueue.{index}", "a point is {path: value, ...}", repr(item)))
            continue
        points.append(dict(flatten(item)))
        try:
            if space:
                space.encode_point(points[-1])
        except ConfigError as error:
            for problem in error.problems:
                sheet.refuse(replace(problem, key=f"enqueue.{index}.{problem.key}"))
    return tuple(points)


def check_grid(sheet: RawSweep, space: Space) -> None:
    """A grid must have an end, and one that somebody can wait for."""
    try:
        size = grid_size(space)
    except ValueError as error:
        sheet.refuse(Problem("sampler.name", f"the grid is too large: {error}", "grid"))
        return
    if size is None:
        for name, branch in space.parameters():
            if branch.count() is None:
                path = name.partition("[")[0]
                key = f"space.{path}" if f"space.{path}" in sheet.where else f"variables.{path}"
                sheet.refuse(Problem(key, "needs a `step` in a grid", branch.describe()))
    elif size > MAX_POINTS:
        rule = f"the grid must not exceed {MAX_POINTS} points"
        sheet.refuse(Problem("sampler.name", rule, f"{size}"))


def check_confirm(sheet: RawSweep, spec: SweepSpec) -> None:
    """The best can be taken at each value only of what is drawn from few values."""
    per = spec.confirm.per if spec.confirm else None
    listed = {
        name: [b for b in dimension if isinstance(b, Choices | Range)]
        for name, dimension in {**spec.space, **spec.variables}.items()
    }
    few = [name for name, drawn in listed.items() if drawn and all(b.count() for b in drawn)]
    if per is not None and per not in few:
        rule = f"a searched key with a list of values: {', '.join(few) or 'this sweep has none'}"
        sheet.refuse(Problem("confirm.per", rule, repr(per), nearest(per, few)))


def _key(spec: SweepSpec, name: str) -> str:
    """The sweep file's key for a path or variable, or for a key of the base."""
    if any(is_at_or_below(name, path) for path in spec.space):
        return f"space.{name}"
    return f"variables.{name}" if name in spec.variables else f"base.{name}"
