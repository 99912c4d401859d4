"""The best trial among those that were measured on the same things, while a sweep runs.

The groups, and which of them comes first, are those of `results.data.measured` for a table: the
largest one decides, of equally large ones that with the earliest trial. Results come in one by one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from trial.store import metrics
from trial.store.records import Result


@dataclass(frozen=True, slots=True)
class BestTrial:
    """The best finished trial by the first objective."""

    number: int
    value: float
    params: Mapping[str, Any]


class _Ended(NamedTuple):
    """What counts of a trial that has ended."""

    number: int
    group: str
    """What it was measured on; empty where that is not known."""
    data_hash: str
    value: float | None
    """The first objective; None of a trial that is not complete."""
    params: Mapping[str, Any]
    repeat: bool


@dataclass(slots=True)
class _Group:
    """Trials that were measured on the same things."""

    complete: int = 0
    """Number of complete trials, repeats included."""
    first: int = 0
    """The lowest number of a complete trial."""
    best: BestTrial | None = None


@dataclass(slots=True)
class BestTrials:
    """The best trial of each group."""

    objectives: Sequence[str]
    """The sweep's metrics; values of the first one are compared."""
    maximize: bool = False
    largest: _Group = field(default_factory=_Group)
    """The group with the most complete trials; empty before a trial is complete."""
    complete: int = 0
    """Number of complete trials of all groups."""
    groups: int = 0
    """Number of groups with a complete trial."""
    since_best: int = 0
    """Trials of the search in a row that were no improvement. An improvement is better than all
    earlier trials that were measured on the same things; so is the first complete trial, but not
    the first of a further group: where each trial has a group of its own, a sweep has to end."""
    _by_hash: dict[str, _Group] = field(default_factory=dict)
    _rows: list[_Ended] = field(default_factory=list)
    _hash_of_data: dict[str, str] = field(default_factory=dict)
    """By the hash of all data: what trials with these data were measured on."""

    def add(self, number: int, result: Result, params: Mapping[str, Any], repeat: bool) -> None:
        """Count a trial that has ended. A repeat is never the best, it only adds to its group."""
        value = metrics.of_result(result, self.objectives[0])
        group = metrics.measured_on({number: result}, self.objectives)[number]
        row = _Ended(
            number,
            group,
            result.data_hash,
            value if result.state == "complete" else None,
            params,
            repeat,
        )
        self._rows.append(row)
        if group and group != result.data_hash and result.data_hash not in self._hash_of_data:
            self._hash_of_data[result.data_hash] = group
            if result.data_hash in self._by_hash:
                # Results of an earlier version of the same data turn out to belong to this group.
                self._count_anew()
                return
        self._count(row)

    def _count_anew(self) -> None:
        self.largest, self.complete, self.groups, self.since_best = _Group(), 0, 0, 0
        self._by_hash.clear()
        for row in self._rows:
            self._count(row)

    def _count(self, row: _Ended) -> None:
        self.since_best += not row.repeat
        if row.value is None:
            return
        group = self._by_hash.setdefault(self._hash_of_data.get(row.group, row.group), _Group())
        group.first = min(group.first, row.number) if group.complete else row.number
        self.groups += not group.complete
        group.complete += 1
        self.complete += 1
        if not row.repeat and self._is_better(row.value, group.best):
            if group.best is not None or self.groups == 1:
                self.since_best = 0
            group.best = BestTrial(row.number, row.value, row.params)
        # Only the group that has just grown can have become the largest.
        if (group.complete, -group.first) > (self.largest.complete, -self.largest.first):
            self.largest = group

    def _is_better(self, value: float, best: BestTrial | None) -> bool:
        sign = -1.0 if self.maximize else 1.0
        return best is None or sign * value < sign * best.value
