"""What a page consists of, before it becomes HTML or Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from results.page.chart import Chart


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell of a table."""

    text: str
    sort: float | str | None = None
    """What the column is sorted by; the text when None."""
    link: str = ""
    """A path relative to the page."""


@dataclass(frozen=True, slots=True)
class Head:
    """One column of a table."""

    text: str
    number: bool = True
    """Numbers stand to the right and sort as numbers."""


@dataclass(frozen=True, slots=True)
class Grid:
    """A table for reading: sortable, and filterable when it is long."""

    key: str
    caption: str
    heads: Sequence[Head]
    rows: Sequence[Sequence[Cell]]
    marked: frozenset[int] = frozenset()
    """Rows to stress."""
    brief: int = 20
    """Rows that Markdown shows."""
    note: str = ""


@dataclass(frozen=True, slots=True)
class Text:
    """A paragraph."""

    text: str
    tone: Literal["plain", "lead", "warn", "note"] = "plain"


@dataclass(frozen=True, slots=True)
class Code:
    """Lines to copy."""

    text: str
    title: str = ""


Block = Text | Grid | Chart | Code


@dataclass(frozen=True, slots=True)
class Section:
    """A part of a page."""

    key: str
    title: str
    blocks: tuple[Block, ...] = ()

    def charts(self) -> list[Chart]:
        """Its plots, in order."""
        return [block for block in self.blocks if isinstance(block, Chart)]


@dataclass(frozen=True, slots=True)
class Fact:
    """A figure for the head of the page."""

    label: str
    value: str


@dataclass(frozen=True, slots=True)
class Page:
    """A whole report."""

    title: str
    question: str
    answer: Sequence[str]
    facts: Sequence[Fact]
    sections: Sequence[Section]
    made: str = ""
    name: str = "report"
    """Stem of its files."""
    files: Sequence[str] = field(default_factory=tuple)
    """Names of the files beside the page."""

    def charts(self) -> list[Chart]:
        """All plots, in order."""
        return [chart for section in self.sections for chart in section.charts()]
