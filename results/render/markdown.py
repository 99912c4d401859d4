"""Render a page as Markdown with SVG pictures beside it."""

from __future__ import annotations

import re

from results.page.chart import Chart
from results.page.page import Block, Code, Grid, Page, Text
from results.render import templating


def render(page: Page, pictures: str = "figures") -> str:
    """Markdown of a page; its charts are pictures in the folder `pictures`."""
    environment = templating.environment(html=False)
    environment.filters["md"] = escape
    environment.filters["block"] = lambda block: _block(block, pictures)
    return environment.get_template("report.md.j2").render(page=page)


def _block(block: Block, pictures: str) -> str:
    if isinstance(block, Chart):
        return _chart(block, pictures)
    if isinstance(block, Grid):
        return _grid(block)
    if isinstance(block, Code):
        fence = "`" * (3 + max((len(run) for run in re.findall(r"`+", block.text)), default=0))
        return f"{escape(block.title)}:\n\n{fence}\n{block.text.rstrip()}\n{fence}"
    return _text(block)


def _text(block: Text) -> str:
    mark = "> **Warning:** " if block.tone == "warn" else ""
    return mark + escape(block.text)


def _chart(chart: Chart, pictures: str) -> str:
    read = f"{chart.read} {chart.note}".strip()
    title = escape(chart.title)
    return f"### {title}\n\n{escape(read)}\n\n![{title}]({pictures}/{chart.key}.svg)"


def _grid(grid: Grid) -> str:
    heads = [escape(head.text) for head in grid.heads]
    rule = ["---:" if head.number else "---" for head in grid.heads]
    rows = [
        [f"**{escape(cell.text)}**" if index in grid.marked else escape(cell.text) for cell in row]
        for index, row in enumerate(grid.rows[: grid.brief])
    ]
    lines = [f"| {' | '.join(line)} |" for line in (heads, rule, *rows)]
    more = len(grid.rows) - len(rows)
    last = f"\n\n{more} more rows are in `report.html` and `trials.csv`." if more else ""
    return f"**{escape(grid.caption)}**\n\n" + "\n".join(lines) + last


def escape(text: object) -> str:
    """Escape text for Markdown, on one line; `code` stays code."""
    one_line = " ".join(str(text).split())
    parts = re.split(r"(`[^`|<>]+`)", one_line)
    return "".join(part if part[:1] == "`" and len(part) > 2 else _escape(part) for part in parts)


def _escape(text: str) -> str:
    safe = re.sub(r"[\\`*\[\]|~#]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\\g<0>", text)
    return safe.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
