"""Which configurations a study has tried, and which points of its space it has not."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from optuna.trial import FrozenTrial

from sweep.spec import hpu_shapes
from sweep.spec.grid import grid_points, grid_size
from sweep.spec.space import Space
from sweep.spec.spec import SweepSpec
from trial.config.errors import ConfigError

MAX_ENUMERATED = 10_000
"""Larger spaces are not enumerated to find an untried point."""


class KnownConfigurations:
    """The fingerprints of a study's configurations, each with the trial that had it first."""

    def __init__(self, spec: SweepSpec, space: Space, past: Iterable[FrozenTrial]) -> None:
        self._space = space
        self._by_shape = hpu_shapes.is_for_hpu(spec)
        """Whether points of equal tensor shapes are to follow each other."""
        self._numbers: dict[str, int] = {}
        for trial in past:
            if trial.state.is_finished() and "duplicate_of" not in trial.user_attrs:
                with contextlib.suppress(ConfigError, KeyError):
                    config = space.configure(trial.params, trial.number)
                    self.add(config.fingerprint(), trial.number)

    def add(self, fingerprint: str, number: int) -> int | None:
        """Note a trial's configuration; the number of the trial that had it before, if any."""
        first = self._numbers.setdefault(fingerprint, number)
        return first if first != number else None

    def enumerable(self) -> bool:
        """Whether the space is small enough to look at each of its points."""
        try:
            size = grid_size(self._space)
        except ValueError:
            return False
        return size is not None and size <= MAX_ENUMERATED

    def untried(self) -> Iterator[Mapping[str, Any]]:
        """Points of the space whose configuration is not known when the iterator reaches them."""
        points = grid_points(self._space)
        if self._by_shape:
            points = hpu_shapes.grouped_by_shape(points, self._values)
        for point in points:
            try:
                config = self._space.configure(point, None)
            except ConfigError:
                continue
            if config.fingerprint() not in self._numbers:
                yield point

    def _values(self, point: Mapping[str, Any]) -> Mapping[str, Any]:
        """A point as values by dotted path; empty when it is invalid."""
        try:
            return self._space.values(point)
        except ConfigError:
            return {}
