"""Compare trials of one or several studies: differing settings, objectives, curves, samples."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from results.analysis import significance
from results.analysis.leaderboard import Leaderboard, leaderboard
from results.analysis.study_analysis import ReportOptions, StudyAnalysis, analyse, settings
from results.data import format
from results.data.folders import TrialRead, read_study
from results.data.measured import measured_alike, measured_groups
from results.data.naming import capitalize
from results.data.trials_table import MEASURED_ON
from results.page import tables
from results.page.chart import Axis, Chart, Series, plain, robust_limits
from results.page.page import Block, Cell, Code, Fact, Grid, Head, Page, PageSection, Text
from results.report import write_page
from trial.store.files import read_lines
from trial.store.folders import StudyFolder, TrialFolder

SAMPLES = "samples.jsonl"
"""File in a trial's folder with generated text: JSON lines with `prompt` and `completion`."""
MOST = 12
"""Largest number of trials on one page."""


@dataclass(frozen=True, slots=True)
class Pick:
    """One compared trial, with the analysis of its study."""

    label: str
    analysis: StudyAnalysis
    trial: TrialRead
    row: dict[str, Any]
    group: significance.Group | None
    """The trial's configuration with its repeats over seeds; None unless it is complete."""

    @property
    def value(self) -> float | None:
        """Objective, averaged over the seeds where it was repeated; None unless complete.

        A pruned trial has no value here: its last evaluation was made at an earlier step.
        """
        return None if self.group is None else self.group.mean

    @property
    def ending(self) -> str:
        """State of a trial without a value, in words."""
        steps = self.row["steps"]
        at = "" if format.is_missing(steps) else f" at step {steps}"
        return f"{self.label} ({self.row['state']}{at})"


def compare(
    studies: Sequence[StudyFolder],
    trials: Sequence[int | str] = (),
    options: ReportOptions | None = None,
    before: Callable[[Sequence[TrialFolder]], None] | None = None,
) -> Path:
    """Write a page that holds trials side by side, under the first study's `report` folder.

    Args:
        studies: one or more studies.
        trials: numbers when there is one study, `study:number` when there are several; without
            any, the recommended trial of each study (of one study: its three best).
        options: how the page is made.
        before: called with the trials' folders before the page is made, e.g. to generate samples.

    Returns:
        The path of the HTML page; the Markdown page has the same stem.

    Raises:
        ValueError: a study or trial is not there, or there are too few or too many.
    """
    if not studies:
        raise ValueError("compare needs at least one study, got none")
    analyses = {_label(studies, study): analyse(read_study(study), options) for study in studies}
    picks = [_pick(analyses, *name) for name in _wanted(analyses, trials)]
    if not 2 <= len(picks) <= MOST:
        raise ValueError(f"compare takes 2 to {MOST} trials, got {len(picks)}")
    if before:
        before([pick.trial.folder for pick in picks])
    return write_page(_page(picks), studies[0].report, _name(picks))


def _label(studies: Sequence[StudyFolder], study: StudyFolder) -> str:
    """A study's name; with its place in the list when two have the same."""
    alike = [other for other in studies if other.name == study.name]
    return study.name if len(alike) == 1 else f"{study.name}#{studies.index(study) + 1}"


def _wanted(
    analyses: dict[str, StudyAnalysis], trials: Sequence[int | str]
) -> list[tuple[str, int]]:
    """Study and number of every trial asked for, each once."""
    only = next(iter(analyses)) if len(analyses) == 1 else ""
    if not trials:
        return _best(analyses)
    wanted = []
    for asked in trials:
        study, _, number = str(asked).rpartition(":")
        study = study or only
        if study not in analyses or not number.isdecimal():
            known = ", ".join(analyses)
            rule = "a number" if only else f"`study:number` with one of {known}"
            raise ValueError(f"a trial to compare is {rule}, got {str(asked)!r}")
        wanted.append((study, int(number)))
    return list(dict.fromkeys(wanted))


def _best(analyses: dict[str, StudyAnalysis]) -> list[tuple[str, int]]:
    if len(analyses) == 1:
        [(label, item)] = analyses.items()
        return [(label, standing.group.trials[0]) for standing in item.board.standings[:3]]
    taken = {label: item.board.recommended for label, item in analyses.items()}
    return [(label, group.trials[0]) for label, group in taken.items() if group]


def _pick(analyses: dict[str, StudyAnalysis], study: str, number: int) -> Pick:
    item = analyses[study]
    trial = next((trial for trial in item.study.trials if trial.number == number), None)
    if trial is None:
        there = [trial.number for trial in item.study.trials]
        known = f"{min(there)} to {max(there)}" if there else "none"
        raise ValueError(f"study {study} has no trial {number}; it has {known}")
    row = item.table[item.table["number"] == number].iloc[0]
    # By configuration: the run that got it picked is no part of its own confirmed mean.
    board = _board(item, row[MEASURED_ON])
    alike = [s.group for s in board.standings if s.group.row["group"] == row["group"]]
    group = alike[0] if row["state"] == "complete" and alike else None
    label = f"trial {number}" if len(analyses) == 1 else f"{study}:{number}"
    return Pick(label, item, trial, {str(k): v for k, v in row.items()}, group)


def _board(item: StudyAnalysis, group: str | None) -> Leaderboard:
    """The leaderboard of the trials that were measured on the same things."""
    groups = measured_groups(item.table)
    if len(groups) < 2 or format.is_missing(group) or group == groups[0]:
        return item.board
    return leaderboard(measured_alike(item.table, group))


def _name(picks: Sequence[Pick]) -> str:
    """A file name made of the trials; shortened when there are many."""
    name = plain("compare_" + "_".join(pick.label.removeprefix("trial ") for pick in picks))
    short = hashlib.sha256(name.encode()).hexdigest()[:8]
    return name if len(name) <= 80 else f"{name[:70]}_{short}"


# The page


def _page(picks: Sequence[Pick]) -> Page:
    built = [_settings(picks), _outcome(picks), _curves(picks), _samples(picks)]
    return Page(
        title=_head(" against ".join(pick.label for pick in picks)),
        question="What differs, and what came of it?",
        answer=[*_answer(picks), *_warnings(picks)],
        facts=[Fact(pick.label, pick.analysis.value(pick.value)) for pick in picks],
        sections=[section for section in built if section.blocks],
        made=picks[0].analysis.options.made,
        name=_name(picks),
    )


def _ordered(picks: Sequence[Pick]) -> list[Pick]:
    """Trials with a value, best first."""
    known = [pick for pick in picks if pick.value is not None]
    return sorted(known, key=lambda pick: picks[0].analysis.sign * (pick.value or 0.0))


def _answer(picks: Sequence[Pick]) -> list[str]:
    ordered = _ordered(picks)
    if not ordered:
        return ["None of these trials has been completed, so there is nothing to compare yet."]
    missing = [pick.ending for pick in picks if pick.value is None]
    without = [f"Without a final value: {', '.join(missing)}."] if missing else []
    if not _measured_alike(ordered):
        values = [f"{pick.label} {pick.analysis.value(pick.value)}" for pick in ordered]
        return [
            "These trials were measured on unlike evaluation sets, so their values are not "
            f"compared: {', '.join(values)}.",
            *without,
        ]
    best = ordered[0]
    words = settings(best.row, best.analysis.searched)
    better = "lowest" if best.analysis.sign > 0 else "highest"
    value = f"{best.analysis.metric}, {best.analysis.value(best.value)}"
    if best.group and best.group.repeated:
        value += f" on average over {len(best.group.values)} seeds"
    texts = [f"{_head(best.label)} has the {better} {value} ({words})."]
    texts += [_against(best, other) for other in ordered[1:4]]
    return texts + without


def _measured_alike(picks: Sequence[Pick]) -> bool:
    """Whether the values can be compared; of equal data they can, whatever else is recorded."""
    return any(len(_known(picks, column)) < 2 for column in (MEASURED_ON, "data_hash"))


def _known(picks: Sequence[Pick], column: str) -> set[str]:
    return {str(pick.row[column]) for pick in picks if not format.is_missing(pick.row[column])}


def _against(best: Pick, other: Pick) -> str:
    if best.group is other.group:
        return f"{_head(other.label)} is the same configuration with another seed."
    gap = abs((other.value or 0.0) - (best.value or 0.0))
    lead = f"{_head(other.label)} is {best.analysis.gap(gap)} behind"
    test = _test(best, other)
    if test is None:
        return f"{lead}; without repeats over seeds of both, nobody knows whether that is noise."
    how = f"paired t test over {test.paired} seeds" if test.paired else "Welch's test"
    if test.pooled:
        how += f" with the noise of {test.pooled} configurations together"
    verdict = "within the noise" if test.tied else "outside the noise"
    low, high = best.analysis.gap(test.interval.low), best.analysis.gap(test.interval.high)
    return f"{lead} (95% interval {low} to {high}, {how}): {verdict}."


def _test(best: Pick, other: Pick) -> significance.Comparison | None:
    if best.group is None or other.group is None or best.group is other.group:
        return None
    if not (best.group.repeated and other.group.repeated):
        return None
    if best.analysis is not other.analysis:
        return significance.compare(other.group, best.group, best.analysis.sign)
    board = best.analysis.board
    if best.group is board.leader:  # the report's own test, corrected as it is there
        return next(s.comparison for s in board.standings if s.group is other.group)
    among = [standing.group for standing in board.standings if standing.group.repeated]
    return significance.compare(other.group, best.group, best.analysis.sign, among)


def _head(label: str) -> str:
    """A label at the start of a sentence: a study's name stays as it is."""
    return capitalize(label) if label.startswith("trial ") else label


def _warnings(picks: Sequence[Pick]) -> list[str]:
    """Reasons why the values cannot be compared (other data, other metric)."""
    measured = _known(picks, MEASURED_ON)
    same = len(measured) == 1 and bool(measured - {""})
    so = "but were measured on the same evaluation set." if same else "do not compare the values."
    texts = []
    for column, what in (("data_hash", "data"), ("model_hash", "base models")):
        if len(_known(picks, column)) > 1:
            sign = "," if same else ":"
            texts.append(f"Warning: these trials used different {what}{sign} {so}")
    if len({pick.analysis.metric for pick in picks}) > 1:
        texts.append("Warning: the studies have different objectives.")
    return texts


def _settings(picks: Sequence[Pick]) -> PageSection:
    keys = dict.fromkeys(key for pick in picks for key in pick.trial.config)
    texts = {key: [format.number(pick.trial.config.get(key)) for pick in picks] for key in keys}
    same = {key: values[0] for key, values in texts.items() if len(set(values)) == 1}
    heads = [Head("setting", False), *(Head(pick.label, False) for pick in picks)]
    rows = [
        [Cell(key), *(Cell(text) for text in texts[key])] for key in sorted(texts.keys() - same)
    ]
    blocks: list[Block] = [
        Grid("differences", "Settings that differ", heads, rows, brief=100)
        if rows
        else Text("All settings are equal.", "note")
    ]
    equal = "\n".join(f"{key}: {same[key]}" for key in sorted(same))
    blocks.append(Code(equal, f"{len(same)} settings are equal in all"))
    return PageSection("settings", "Settings", tuple(blocks))


_OUTCOMES: tuple[tuple[str, str, tables.Text], ...] = (
    ("state", "state", str), ("best_step", "best step", str), ("steps", "steps", str),
    ("tokens", "training tokens", format.count),
    ("trainable_parameters", "trained parameters", format.count),
    ("seconds_per_step", "seconds per step", format.number),
    ("tokens_per_second", "tokens per second", format.number),
    ("device_seconds", "device time", format.seconds),
    ("peak_memory_bytes", "peak memory", format.size), ("device", "device", str),
    ("seed", "seed", str), ("cause", "cause of its end", str),
)  # fmt: skip


def _outcome(picks: Sequence[Pick]) -> PageSection:
    heads = [Head("result", False), *(Head(pick.label) for pick in picks)]
    values = [
        Cell(picks[0].analysis.metric),
        *(Cell(p.analysis.value(p.row["value"])) for p in picks),
    ]
    rows = [values, *_means(picks)]
    for name, title, text in _OUTCOMES:
        cells = [Cell(format.MISSING if format.is_missing(p.row[name]) else text(p.row[name]))
                 for p in picks]  # fmt: skip
        if any(cell.text != format.MISSING for cell in cells):
            rows.append([Cell(title), *cells])
    grid = Grid("outcome", "What came of it", heads, rows, brief=100)
    return PageSection("outcome", "Results", (grid,))


def _means(picks: Sequence[Pick]) -> list[list[Cell]]:
    if not any(pick.group and pick.group.repeated for pick in picks):
        return []
    texts = []
    for pick in picks:
        ends = pick.group.interval if pick.group else None
        if pick.group is None or ends is None:
            texts.append(format.MISSING)
            continue
        low, high = pick.analysis.value(ends.low), pick.analysis.value(ends.high)
        runs = len(pick.group.values)
        texts.append(f"{pick.analysis.value(pick.group.mean)} ({low} to {high}; {runs} seeds)")
    return [[Cell("mean over seeds (95% interval)"), *(Cell(text) for text in texts)]]


_ALONG = (
    ("step", "By step", "optimizer step", "Which settings learn more from the same updates."),
    ("tokens", "By tokens", "training tokens", "Which settings learn more from the same data."),
    ("device", "By device time", "device seconds of training",
     "Which settings learn more for the same money."),
)  # fmt: skip


def _curves(picks: Sequence[Pick]) -> PageSection:
    known = [pick for pick in picks if len(pick.trial.curve)]
    if not known:
        return PageSection("curves", "Learning curves")
    limits = robust_limits(np.concatenate([pick.trial.curve.eval_loss for pick in known]))
    charts = [_along(known, limits, *how) for how in _ALONG]
    return PageSection("curves", "Learning curves", tuple(chart for chart in charts if chart))


def _along(
    picks: Sequence[Pick],
    limits: tuple[float, float] | None,
    column: str,
    title: str,
    axis: str,
    read: str,
) -> Chart | None:
    series = []
    for index, pick in enumerate(picks):
        x = _progress(pick, column)
        if np.any(x > 0):
            series.append(Series(pick.label, list(x), list(pick.trial.curve.eval_loss),
                                 kind="both", index=index, dashed=index >= 8))  # fmt: skip
    if not series:
        return None
    return Chart(
        f"by_{column}", title, read, Axis(axis), Axis("eval loss (nats per token)", limits=limits),
        tuple(series), wide=column == "step",
    )  # fmt: skip


def _progress(pick: Pick, column: str) -> np.ndarray:
    curve = pick.trial.curve
    if column != "device":
        return np.asarray(getattr(curve, column))
    devices = pick.row["devices"]
    return curve.train_seconds * (1 if format.is_missing(devices) else int(devices))


def _samples(picks: Sequence[Pick]) -> PageSection:
    """Section with generated text for the same prompts, where trials have any."""
    said: dict[str, dict[str, str]] = {}
    for pick in picks:
        for line in read_lines(pick.trial.folder.path / SAMPLES):
            prompt, text = line.get("prompt"), line.get("completion")
            if isinstance(prompt, str) and isinstance(text, str):
                said.setdefault(prompt, {})[pick.label] = text
    if not said:
        return PageSection("samples", "Generations")
    heads = [Head("prompt", False), *(Head(pick.label, False) for pick in picks)]
    rows = [
        [Cell(prompt), *(Cell(texts.get(pick.label, format.MISSING)) for pick in picks)]
        for prompt, texts in said.items()
    ]
    grid = Grid("samples", "What each says to the same prompt", heads, rows, brief=10)
    return PageSection("samples", "Generations", (grid,))
