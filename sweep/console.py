"""Progress of a running sweep: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from sweep.driver.executor import Evaluated, Event, Finished, Interrupted
from sweep.driver.interfaces import View
from sweep.driver.progress import RunningTrial, SweepProgress
from sweep.spec.text import duration_text, number_text, params_text
from trial.store import metrics
from trial.store.records import Result

SUMMARY_SECONDS = 30.0
"""Seconds between two summaries when there is no terminal."""

COLOURS = {"complete": "green", "pruned": "yellow", "failed": "red", "duplicate": "dim"}


@contextmanager
def open_view(console: Console, metric: str) -> Iterator[View]:
    """A live view on a terminal, a plain one elsewhere; it lasts as long as the context."""
    if not console.is_terminal:
        yield PlainView(console, metric)
        return
    with Live(console=console, refresh_per_second=4, transient=True) as live:
        yield LiveView(console, metric, live)


class PlainView:
    """Prints one line for every trial that ends, and a summary every SUMMARY_SECONDS."""

    def __init__(self, console: Console, metric: str) -> None:
        self.console = console
        self.metric = metric
        self._last_summary = time.monotonic()

    def update(self, progress: SweepProgress) -> None:
        """Print a summary when the last one is SUMMARY_SECONDS old."""
        if time.monotonic() - self._last_summary >= SUMMARY_SECONDS:
            self._last_summary = time.monotonic()
            self.note(summary(progress))

    def on_event(self, event: Event, progress: SweepProgress) -> None:
        """Print how a trial ended."""
        if isinstance(event, Finished):
            params = progress.params.get(event.number, {})
            self._print(trial_line(event.number, event.result, params, progress))
        elif isinstance(event, Interrupted):
            self._print(Text(f"trial {event.number:>3}  interrupted, to go on from its checkpoint"))

    def note(self, text: str) -> None:
        """Print a line."""
        self._print(Text(text))

    def _print(self, text: Text) -> None:
        self.console.print(text, soft_wrap=True)


class LiveView(PlainView):
    """Prints the same lines above a table of the running trials."""

    def __init__(self, console: Console, metric: str, live: Live) -> None:
        super().__init__(console, metric)
        self.live = live

    def update(self, progress: SweepProgress) -> None:
        """Redraw the table."""
        self.live.update(Group(running_table(progress, self.metric), Text(summary(progress))))

    def on_event(self, event: Event, progress: SweepProgress) -> None:
        """Print how a trial ended; show a new evaluation at once."""
        super().on_event(event, progress)
        if isinstance(event, Evaluated):
            self.update(progress)


def running_table(progress: SweepProgress, metric: str) -> Table:
    """One row per running trial; shows the eval loss for a metric that is known only at the end."""
    metric = metric if metrics.has_curve(metric) else "eval_loss"
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("trial", "parameters", "step", metric, "device", "seconds"):
        table.add_column(name, justify="right" if name in ("trial", "step", metric) else "left")
    now = progress.clock()
    for number, row in sorted(progress.running.items()):
        table.add_row(*_cells(number, progress.params.get(number, {}), row, now, metric))
    return table


def _cells(
    number: int, params: Mapping[str, Any], row: RunningTrial, now: float, metric: str
) -> tuple[str, ...]:
    step = f"{row.last.step}" if row.last else "-"
    if row.max_steps:
        step = f"{step}/{row.max_steps}"
    value = metrics.of_evaluation(row.last, metric) if row.last else None
    value_text = "-" if value is None else number_text(value)
    device = f"{row.device} ({row.stopping})" if row.stopping else row.device or "starting"
    return (str(number), params_text(params), step, value_text, device, f"{now - row.since:.0f}")


def trial_line(
    number: int, result: Result, params: Mapping[str, Any], progress: SweepProgress
) -> Text:
    """One line that says how a trial ended."""
    text = Text(f"trial {number:>3}  ")
    text.append(f"{result.state:<9}", style=COLOURS.get(result.state, ""))
    value = metrics.of_result(result, progress.metric)
    if value is not None and result.state in ("complete", "pruned"):
        text.append(f" {number_text(value)}")
    text.append(f"  {params_text(params)}")
    if result.state == "pruned":
        text.append(f"  at step {result.steps}/{result.max_steps}")
    if result.cause:
        text.append(f"  {result.cause.kind}: {result.cause.message}")
    text.append(f"  {result.seconds.total:.1f} s", style="dim")
    if progress.best and progress.best.number == number:
        among = " of the largest group" if progress.measured.groups > 1 else ""
        text.append(f"  best so far{among}", style="bold green")
    return text


def compared(progress: SweepProgress) -> str:
    """Among which trials the best one is; empty where all were measured on the same things."""
    measured = progress.measured
    if measured.groups < 2:
        return ""
    return (
        f" among {measured.largest.complete} of {measured.complete} complete trials: the largest of"
        f" {measured.groups} groups that were measured on the same evaluation set"
    )


def summary(progress: SweepProgress) -> str:
    """One line: counts, the best trial so far, elapsed and remaining time."""
    planned = f" of {progress.total}" if progress.total else ""
    states = ", ".join(f"{count} {state}" for state, count in sorted(progress.states.items()))
    parts = [f"{progress.ended}{planned} trials ended" + (f" ({states})" if states else "")]
    parts.append(f"{len(progress.running)} running on {progress.capacity}")
    if progress.best:
        best = progress.best
        value = number_text(best.value)
        shown = f"best {value} (trial {best.number}: {params_text(best.params)})"
        parts.append(shown + compared(progress))
    parts.append(f"{duration_text(progress.elapsed)} elapsed")
    if (left := progress.remaining_seconds) is not None:
        parts.append(f"about {duration_text(left)} left")
    return "; ".join(parts)
