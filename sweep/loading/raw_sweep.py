"""A sweep file as it was read: plain values, the location of each key, and the problems so far."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sweep.loading.keys import SHORT_FORMS, is_at_or_below, suggestion
from trial.config.errors import ConfigError, Problem

LONGEST_VALUE = 200
"""Characters of a wrong value that a problem shows."""

MOST_PROBLEMS = 200
"""A file with more is not looked at any further."""

MOST_ENTRIES = {"space": 200, "variables": 200, "enqueue": 5000, "objectives": 20, "warm_start": 50}
"""Of the top-level lists and mappings whose entries are compared with each other."""


@dataclass(slots=True)
class RawSweep:
    """The values of a sweep file.

    `space` and `variables` are mappings by dotted path, short forms are written out, and overrides
    are applied.
    """

    source: Path
    content: dict[str, Any]
    locations: dict[str, str] = field(default_factory=dict)
    """The location of each key by dotted path: `spaces/x.yaml:14` or `--set a.b=c`."""
    problems: list[Problem] = field(default_factory=list)
    base_folder: Path | None = None
    """Folder of the file that `base` names."""

    def locate(self, key: str) -> str:
        """The location of a key, or of the nearest section that has one."""
        while key and key not in self.locations:
            key = key.rpartition(".")[0]
        return self.locations.get(key, str(self.source))

    def set_location(self, key: str, location: str) -> None:
        """Note that `key` and all below it now come from a location."""
        for old in [old for old in self.locations if old.startswith(f"{key}.")]:
            del self.locations[old]
        self.locations[key] = location

    def add_problem(self, problem: Problem) -> None:
        """Note a problem once; where it has no location, it gets that of its key.

        Raises:
            ConfigError: there are too many; holds those that were noted.
        """
        got = problem.got
        if len(got) > LONGEST_VALUE:
            got = f"{got[:LONGEST_VALUE]}..."
        where = problem.where or self.locate(problem.key)
        located = replace(problem, where=where, got=got, near=suggestion(problem))
        if located in self.problems:
            return
        if len(self.problems) >= MOST_PROBLEMS:
            rule = f"has more than {MOST_PROBLEMS} mistakes; the first ones are listed"
            more = Problem("", rule, where=str(self.source))
            raise ConfigError([*in_file_order(self.problems), more])
        self.problems.append(located)

    def add_problems(self, problems: Iterable[Problem]) -> None:
        """Note several problems."""
        for problem in problems:
            self.add_problem(problem)

    def refuse_crowded(self) -> None:
        """Refuse sections with so many entries that checking them would take minutes.

        Raises:
            ConfigError: there are some.
        """
        sizes = {
            key: len(content)
            for key in MOST_ENTRIES
            if isinstance(content := self.content.get(key), list | dict)
        }
        crowded = [key for key, size in sizes.items() if size > MOST_ENTRIES[key]]
        for key in crowded:
            rule = f"must not have more than {MOST_ENTRIES[key]} entries"
            self.add_problem(Problem(key, rule, str(sizes[key])))
        if crowded:
            raise ConfigError(in_file_order(self.problems))

    def has_problem(self, *keys: str) -> bool:
        """Whether a problem was noted at or below one of the keys."""
        return any(is_at_or_below(found.key, key) for found in self.problems for key in keys)

    def section(self, key: str) -> dict[str, Any]:
        """A top-level mapping; empty when it is absent, null or of another kind (a problem)."""
        content = self.content.get(key)
        if content is None:
            return {}
        if not isinstance(content, dict):
            named = " or a name" if key in SHORT_FORMS else ""
            self.add_problem(Problem(key, f"is a mapping{named}", repr(content)))
            self.content[key] = {}
            return {}
        return content


def in_file_order(problems: Iterable[Problem]) -> list[Problem]:
    """Problems in the order of their lines."""
    return sorted(problems, key=_file_and_line)


def _file_and_line(problem: Problem) -> tuple[str, int]:
    file, _, line = problem.where.rpartition(":")
    return (file, int(line)) if line.isdecimal() else (problem.where, 0)
