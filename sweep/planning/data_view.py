"""What becomes of the data, counted in a child process: for `gaudi-sweep data` and `check`.

This process never loads torch; the child (`trial.preflight.data_view`) reads and tokenizes, and
leaves the tokens in the cache from which the trials take them.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sweep.loading.keys import is_at_or_below
from sweep.spec.grid import variants
from sweep.spec.space import Space
from sweep.spec.spec import SweepSpec
from sweep.spec.text import params_text
from trial.config.errors import ConfigError
from trial.config.trial_config import TrialConfig
from trial.preflight.data_view import DataView, RowView, ViewRequest
from trial.store.records import DataSummary

DATA_KEYS = ("data", "model.name_or_path", "model.tokenizer_name_or_path", "model.revision")
"""Parameters on which rows and tokens depend; of ranges, both ends are looked at."""
MOST = 8
"""At most so many different sets are looked at."""

TRAINED, CONTEXT = "bold green", "dim"
"""Styles of what counts in the loss, and of the rest."""
MARKS, ASCII_MARKS = ("⟦", "⟧"), ("[[", "]]")
"""Around what counts, where there are no colours."""
_CONTROLS = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | {127: 0x2421}
"""Control characters by their pictures: a row's text must not steer the terminal."""


@dataclass(frozen=True, slots=True)
class DataSet:
    """One data configuration of a sweep."""

    params: str
    """Its searched parameters that the data depend on, as text; empty where there are none."""
    config: TrialConfig


@dataclass(frozen=True, slots=True)
class SeenData:
    """A data configuration, and what became of its data."""

    params: str
    view: DataView

    def as_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {"params": self.params, **self.view.model_dump(mode="json")}


def data_sets(spec: SweepSpec) -> tuple[list[DataSet], int]:
    """The first different data configurations of a sweep, and how many there are in all."""
    space, found = Space.of(spec), dict[str, DataSet]()
    for values in variants(space, DATA_KEYS):
        try:
            config = space.configure_values(values)
        except (ConfigError, ValueError):
            continue  # The checks of the file report it.
        key = _request(config, None).model_dump_json()
        searched = {name: value for name, value in values.items() if _matters(name, spec)}
        found.setdefault(key, DataSet(params_text(searched), config))
    return list(found.values())[:MOST], len(found)


def _matters(name: str, spec: SweepSpec) -> bool:
    return spec.varies(name) and any(is_at_or_below(name, key) for key in DATA_KEYS)


def _request(config: TrialConfig, row: int | None) -> ViewRequest:
    return ViewRequest(model=config.model, data=config.data, row=row)


def look(sets: Sequence[DataSet], row: int | None = None) -> list[SeenData]:
    """Read and tokenize the data in a process of its own.

    Args:
        sets: data configurations.
        row: number of the training row to show; None for none.

    Raises:
        ConfigError: a trial would refuse its data, or there is no such row.
        ValueError: the child failed; says why.
    """
    asked = [_request(one.config, row).model_dump(mode="json") for one in sets]
    words = [sys.executable, "-m", "trial.preflight.data_view"]
    done = subprocess.run(words, input=json.dumps(asked), capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"the data could not be counted: {done.stderr.strip()[-500:]}")
    views = [DataView.model_validate(answer) for answer in json.loads(done.stdout)]
    if refused := dict.fromkeys(problem for view in views for problem in view.refusals()):
        raise ConfigError(list(refused))
    return [SeenData(one.params, view) for one, view in zip(sets, views, strict=True)]


def lines(spec: SweepSpec) -> list[str]:
    """The counts of each different data set in one or two lines, for `check`.

    Raises:
        ConfigError: a trial would refuse its data.
    """
    sets, count = data_sets(spec)
    try:
        seen = look(sets)
    except ConfigError:
        raise
    except ValueError as error:
        return [str(error)]
    found = [line for one in seen for line in _lines(one)]
    return [*found, *([f"data: {count - len(sets)} further sets not looked at"] * (count > MOST))]


def _lines(seen: SeenData) -> list[str]:
    name = f"data ({seen.params})" if seen.params else "data"
    summary = seen.view.summary
    if summary is None:
        return [f"{name}: not counted: {seen.view.error}"]
    cut = f"{summary.truncated:,} cut ({summary.answers_cut:,} answers lost tokens)"
    if seen.view.absent:
        cut = f"what is cut is not known, {seen.view.absent} is not on this machine"
    first = (
        f"{name}: {summary.train_rows:,} training and {summary.eval_rows:,} held-out rows as"
        f" {summary.format_words}; {summary.skipped:,} skipped, {cut},"
        f" {summary.duplicates_across:,} of the held-out rows trained on too"
    )
    more = [f"columns not used: {', '.join(summary.unused_columns)}"] * bool(summary.unused_columns)
    more += [f"{summary.duplicates:,} rows repeat another one"] * bool(summary.duplicates)
    if summary.overlapping:
        more.append(f"{summary.overlapping:,} training rows left out, the eval set asks the same")
    return [first, *([f"  {'; '.join(more)}"] if more else [])]


def print_data(seen: SeenData, console: Console) -> None:
    """Print the counts of one data set, and its row as it is trained."""
    if seen.params:
        console.print(seen.params, style="bold", markup=False, soft_wrap=True)
    if seen.view.summary is None:
        raise ValueError(f"the data could not be counted: {seen.view.error}")
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, value in _facts(seen.view.summary, seen.view.absent).items():
        table.add_row(name, Text(_printable(value)))
    console.print(table)
    if seen.view.absent:
        rule = "is not on this machine: rows are counted, tokens are not"
        console.print(f"{seen.view.absent} {rule}", style="yellow", markup=False, soft_wrap=True)
    if seen.view.row is not None:
        _print_row(seen.view.row, seen.view.summary.train_rows, console)


def _facts(summary: DataSummary, absent: str) -> Mapping[str, str]:
    facts = {
        "training rows": f"{summary.train_rows:,}",
        "held out": f"{summary.eval_rows:,}",
        "skipped": f"{summary.skipped:,} (no prompt, or no answer that counts)",
        "repeated": f"{summary.duplicates:,} (equal to an earlier row of their set)",
        "in both sets": f"{summary.duplicates_across:,} held-out rows are trained on too",
    }
    if summary.overlapping:
        facts["left out"] = f"{summary.overlapping:,} training rows: the eval set asks the same"
    if not absent:
        facts["cut"] = f"{summary.truncated:,} rows; {summary.answers_cut:,} answers lost tokens"
        trained, held_out = summary.train_tokens, summary.eval_tokens
        facts["tokens that count"] = f"{trained:,} in training, {held_out:,} held out"
    facts |= {
        "columns used": ", ".join(summary.used_columns) or "none",
        "columns not used": ", ".join(summary.unused_columns) or "none",
        "prompt format": summary.format_words,
        "train_on": summary.train_on,
        "tokenize": summary.tokenize,
        "date in the template": summary.date,
        "data hash": summary.data_hash,
    }
    return {name: value for name, value in facts.items() if value}


def _print_row(row: RowView, rows: int, console: Console) -> None:
    """The row's text: what counts in colour, or between marks where there is no colour."""
    coloured = console.color_system is not None and not console.no_color
    marks = MARKS if console.encoding.lower().startswith("utf") else ASCII_MARKS
    how = "green" if coloured else f"between {marks[0]} and {marks[1]}"
    console.print(
        f"training row {row.number} of {rows:,} (from 0): {row.tokens:,} tokens,"
        f" {row.counted:,} count in the loss ({how})",
        markup=False,
        soft_wrap=True,
    )
    text = Text()
    for piece, trained in row.pieces:
        shown = _printable(piece)
        if trained and not coloured:
            shown = f"{marks[0]}{shown}{marks[1]}"
        text.append(shown, style=TRAINED if trained else CONTEXT)
    console.print(text, soft_wrap=True)


def _printable(text: str) -> str:
    whole = text.encode("utf-8", "replace").decode("utf-8")
    return whole.translate(_CONTROLS)
