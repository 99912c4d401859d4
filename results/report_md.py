"""`report.md`: the study in one page that a code host renders."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import jinja2
import pandas as pd

from results import units
from results.answer import RANK, best_of_each, sentences
from results.reading import read_study
from results.show import objective, ranked, short, value_text
from results.table import PHASES
from trial.folder import StudyFolder, StudyRecord

TOP = 20


@dataclass(frozen=True, slots=True)
class Grid:
    """A table for reading: headings and rows of text."""

    heads: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True, slots=True)
class Section:
    """A heading, a sentence and a table."""

    title: str
    table: Grid
    note: str = ""


def render(study: StudyFolder, table: pd.DataFrame) -> str:
    """The text of `report.md`."""
    record = read_study(study, curves=False).record
    listed = [make(table) for make in _SECTIONS]
    return _template().render(
        title=record.name,
        question=str(record.spec.get("question") or ""),
        answer=sentences(table, record.spec),
        sections=[section for section in listed if section and section.table.rows],
        provenance=_provenance(record),
    )


def _best_per_rank(table: pd.DataFrame) -> Section | None:
    each = best_of_each(table, RANK)
    if len(each) < 2:
        return None
    names = [name for name in table.attrs["searched"] if name != RANK]
    note = "Ranks are compared at each one's own best settings, never at one learning rate."
    return Section("Best of each rank", _grid(each, [RANK, "value", *names, "number"], table), note)


def _leaderboard(table: pd.DataFrame) -> Section:
    rows = ranked(table)
    names = ["number", "value", *table.attrs["varied"], "scale", "best_step", "steps"]
    names += ["trainable_parameters", "seconds_total", "peak_memory_bytes"]
    note = f"The best {TOP} of {len(rows)} complete trials." if len(rows) > TOP else ""
    return Section("Leaderboard", _grid(rows.head(TOP), names, table), note)


def _pruned(table: pd.DataFrame) -> Section:
    rows = ranked(table, "pruned")
    names = ["number", "value", *table.attrs["searched"], "steps", "max_steps", "seconds_total"]
    note = f"{len(rows)} trials were stopped early; the value is the last one seen."
    return Section("Pruned", _grid(rows.head(TOP), names, table), note)


def _failed(table: pd.DataFrame) -> Section:
    rows = table[table["state"].isin(["failed", "unreadable"])].head(5 * TOP)
    names = ["number", *table.attrs["searched"], "cause_kind", "cause", "problem"]
    grid = _grid(rows, names, table)
    logs = [f"trials/{number:05d}/train.log" for number in rows["number"]]
    rows_with_logs = [[*row, log] for row, log in zip(grid.rows, logs, strict=True)]
    return Section("Failed", Grid([*grid.heads, "log"], rows_with_logs))


def _device_time(table: pd.DataFrame) -> Section:
    heads = ["state", "trials", *(phase.replace("_", " ") for phase in PHASES), "device time"]
    rows = []
    for state, group in table.groupby("state"):
        spent = [group[f"seconds_{name}"].mul(group["devices"]).sum() for name in PHASES]
        if sum(spent):
            rows.append([str(state), str(len(group)), *map(units.seconds, [*spent, sum(spent)])])
    return Section("Device time by what it bought", Grid(heads, rows))


_SECTIONS: tuple[Callable[[pd.DataFrame], Section | None], ...] = (
    _best_per_rank, _leaderboard, _pruned, _failed, _device_time,
)  # fmt: skip

_TEXT: dict[str, Callable[[Any], str]] = {
    "trainable_parameters": units.count, "seconds_total": units.seconds,
    "peak_memory_bytes": units.size, "number": str,
}  # fmt: skip

_TITLES = {
    "number": "trial", "seconds_total": "time", "peak_memory_bytes": "peak memory",
    "trainable_parameters": "trained parameters", "cause_kind": "kind",
}  # fmt: skip


def _grid(rows: pd.DataFrame, names: Sequence[str], table: pd.DataFrame) -> Grid:
    """The columns of `names` that hold anything."""
    kept = [name for name in names if name in rows and rows[name].notna().any()]
    metric = objective(table)[0].replace("_", " ")
    heads = [metric if name == "value" else _TITLES.get(name) or short(name) for name in kept]
    texts = {**_TEXT, "value": value_text(table)}
    cells = [
        [texts.get(name, units.number)(row[name]) for name in kept]
        for row in rows.to_dict("records")
    ]
    return Grid(heads, cells)


def _provenance(record: StudyRecord) -> list[tuple[str, str]]:
    rows = [("sweep file", record.source)]
    for name, value in sorted(record.provenance.items()):
        if isinstance(value, Mapping):
            rows += [(f"{name}: {key}", _plain(item)) for key, item in sorted(value.items())]
        else:
            rows.append((name, _plain(value)))
    return [(name, value) for name, value in rows if value]


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def escape(text: object) -> str:
    """Text that Markdown shows as it is, on one line."""
    one_line = " ".join(str(text).split())
    escaped = re.sub(r"([\\`*_\[\]|~#])", r"\\\1", one_line)
    return escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _markdown_table(grid: Grid) -> str:
    lines = [grid.heads, ["---"] * len(grid.heads), *grid.rows]
    safe = [[cell if cell == "---" else escape(cell) for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in safe) + "\n"


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("results"), trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined, autoescape=False,
    )  # fmt: skip
    environment.filters |= {"md": escape, "cell": escape, "mdtable": _markdown_table}
    return environment.get_template("report.md.j2")
