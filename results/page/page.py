"""The elements of a page, independent of HTML and Markdown."""

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
    """Sort key; the text when None."""
    link: str = ""
    """A path relative to the page."""


@dataclass(frozen=True, slots=True)
class Head:
    """One column of a table."""

    text: str
    number: bool = True
    """Numeric column: right-aligned and sorted as numbers."""


@dataclass(frozen=True, slots=True)
class Grid:
    """A table for reading: sortable, and filterable when it is long."""

    key: str
    caption: str
    heads: Sequence[Head]
    rows: Sequence[Sequence[Cell]]
    marked: frozenset[int] = frozenset()
    """Highlighted rows."""
    brief: int = 20
    """Number of rows in Markdown."""
    note: str = ""


@dataclass(frozen=True, slots=True)
class Text:
    """A paragraph."""

    text: str
    tone: Literal["plain", "lead", "warn", "note"] = "plain"


@dataclass(frozen=True, slots=True)
class Code:
    """A code block."""

    text: str
    title: str = ""


Block = Text | Grid | Chart | Code


@dataclass(frozen=True, slots=True)
class PageSection:
    """A section of a page."""

    key: str
    title: str
    blocks: tuple[Block, ...] = ()

    def charts(self) -> list[Chart]:
        """The section's charts, in order."""
        return [block for block in self.blocks if isinstance(block, Chart)]


@dataclass(frozen=True, slots=True)
class Fact:
    """A key figure in the page's header."""

    label: str
    value: str


@dataclass(frozen=True, slots=True)
class Page:
    """A whole report."""

    title: str
    question: str
    answer: Sequence[str]
    facts: Sequence[Fact]
    sections: Sequence[PageSection]
    made: str = ""
    name: str = "report"
    """Stem of the page's files."""
    files: Sequence[str] = field(default_factory=tuple)
    """Names of the files beside the page."""

    def charts(self) -> list[Chart]:
        """All charts of the page, in order."""
        return [chart for section in self.sections for chart in section.charts()]
