"""The points of a search space, listed or counted: whole grids, extremes, and chosen variants.

A point has the parameters whose conditions hold in it; no point comes twice.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from sweep.spec.dimension import Choices, Distribution, Range
from sweep.spec.space import Params, Space
from trial.config.errors import ConfigError
from trial.config.sections import Scalar

MAX_POINTS = 100_000
"""A grid with more points than this is refused: it is taken for a mistake."""

ListValues = Callable[[str, Distribution], Iterable[Scalar]]
"""The values of a parameter to combine: (parameter name, distribution) -> values."""


def grid_points(space: Space) -> list[Params]:
    """Every point, in dependency order of the dimensions, the last one fastest.

    Raises:
        ValueError: A float range has no step, which is named, or there are too many points.
    """
    size = grid_size(space)
    if size is None:
        raise ValueError(f"{_endless_name(space)}: a float range needs a `step` in a grid")
    if size > MAX_POINTS:
        raise ValueError(f"the grid has {size} points; at most {MAX_POINTS} are enumerated")
    return list(_combine(space, lambda _, distribution: distribution.grid_values()))


def grid_size(space: Space) -> int | None:
    """The number of different points; None when a float range without a step has no end of them.

    Only the dimensions that conditions read are enumerated; the others' counts are multiplied.

    Raises:
        ValueError: The conditions have too many combinations to count.
    """
    if _endless_name(space):
        return None
    controls = _controls(space)
    combinations = math.prod(
        _sum_over_branches(space, name, lambda distribution: distribution.count() or 1)
        for name in controls
    )
    if combinations > MAX_POINTS:
        raise ValueError(f"{', '.join(controls)}: too many combinations of conditions to count")
    return sum(_count(space, known, controls) for known in _control_values(space, controls))


def extreme_points(space: Space, limit: int = 1000) -> Iterator[Params]:
    """Points at the extremes of every dimension: all of them, or a fixed sample of `limit`."""
    count = math.prod(
        _sum_over_branches(space, name, lambda distribution: len(distribution.extremes()))
        for name in space.order
    )
    if count <= limit:
        yield from _combine(space, lambda _, distribution: distribution.extremes())
        return
    rng = random.Random(0)
    for _ in range(limit):
        params: Params = {}

        def draw(name: str, distribution: Distribution, params: Params = params) -> Scalar:
            params[name] = rng.choice(distribution.extremes())
            return params[name]

        # A failing expression ends the draw; `Space.values` raises its error again for the point.
        with contextlib.suppress(ConfigError):
            space.resolve(draw)
        yield params


def variants(space: Space, sections: Sequence[str], limit: int = 1000) -> Iterator[dict[str, Any]]:
    """Values by dotted path that differ only in what lies at or below `sections`.

    There, ranges take both their ends and choices all their values; other dimensions keep their
    first value.

    Args:
        space: The space.
        sections: Dotted paths; what their dimensions depend on varies too.
        limit: Most points to yield.
    """
    varied = {n for n in space.order if any(n == s or n.startswith(f"{s}.") for s in sections)}
    varied = space.with_dependencies(varied)
    constant = {name for name, _ in space.parameters() if name.split("[")[0] not in varied}

    def list_values(name: str, distribution: Distribution) -> Sequence[Scalar]:
        return distribution.extremes()[:1] if name in constant else distribution.extremes()

    for params in itertools.islice(_combine(space, list_values), limit):
        yield space.values(params)


def _endless_name(space: Space) -> str:
    """The first parameter with no end of values; empty when there is none."""
    return next((name for name, found in space.parameters() if found.count() is None), "")


def _sum_over_branches(space: Space, name: str, count: Callable[[Distribution], int]) -> int:
    """An upper bound on a dimension's number of values: at most one of its branches holds."""
    return sum(
        count(branch) if isinstance(branch, Choices | Range) else 1
        for branch in space.branches(name)
    )


def _controls(space: Space) -> list[str]:
    """Dimensions that a condition reads, directly or through others."""
    read = {
        parent for name in space.order for branch in space.branches(name) for parent in branch.when
    }
    controls = space.with_dependencies(read)
    return [name for name in space.order if name in controls]


def _control_values(space: Space, controls: list[str]) -> Iterator[dict[str, Any]]:
    """Every combination of the controls' values by name, each with the base's values added."""

    def extend(index: int, known: dict[str, Any]) -> Iterator[dict[str, Any]]:
        if index == len(controls):
            yield known
            return
        options = _options(space, controls[index], known, lambda _, found: found.grid_values())
        for _, value in options:
            yield from extend(index + 1, {**known, **value})

    return extend(0, dict(space.base_values))


def _count(space: Space, known: Mapping[str, Any], controls: list[str]) -> int:
    """The number of points that share one combination of the controls."""
    branches = (space.active_branch(name, known) for name in space.order if name not in controls)
    return math.prod(b.count() or 1 for b in branches if isinstance(b, Choices | Range))


def _combine(space: Space, list_values: ListValues) -> Iterator[Params]:
    """Every combination of the listed values, of those parameters whose conditions hold."""

    def extend(index: int, known: dict[str, Any], params: Params) -> Iterator[Params]:
        if index == len(space.order):
            yield params
            return
        for drawn, value in _options(space, space.order[index], known, list_values):
            yield from extend(index + 1, {**known, **value}, {**params, **drawn})

    return extend(0, dict(space.base_values), {})


def _options(
    space: Space, name: str, known: Mapping[str, Any], list_values: ListValues
) -> Iterator[tuple[Params, dict[str, Any]]]:
    """A dimension's alternatives, given the values of those it reads.

    Yields its parameter and its value, each by name: both empty where no condition holds.
    """
    branch = space.active_branch(name, known)
    if branch is None:
        yield {}, {}
    elif isinstance(branch, Choices | Range):
        parameter = space.parameter_name(name, branch)
        for drawn in list_values(parameter, branch):
            yield {parameter: drawn}, {name: branch.decode(drawn)}
    else:
        yield {}, {name: space.value_of(name, branch, known, lambda n, b: None)}
