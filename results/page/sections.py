"""Sections of a study's report, in order; a section without content is left out."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from operator import attrgetter
from typing import Any

import pandas as pd

from results.analysis import cost, zero_stages
from results.analysis.importance import ENOUGH, MAX_FANOVA_TRIALS
from results.analysis.study_analysis import CPU_MEMORY, RANK, StudyAnalysis, best_of_each
from results.data import format
from results.data.folders import TrialRead
from results.data.measured import measured_groups, not_compared
from results.data.naming import ranked_trials
from results.data.trials_table import MEASURED_ON
from results.page import summary
from results.page import tables as grids
from results.page.charts_cost import cost_charts, zero_charts
from results.page.charts_lora import lora_charts
from results.page.charts_study import study_charts
from results.page.page import Block, Code, Fact, Grid, Head, Page, PageSection, Text
from results.page.page import Cell as _Cell

FILES = ("trials.csv", "trials.parquet")

_COUNTS = {
    "training rows": "train_rows", "held out": "eval_rows", "skipped": "skipped",
    "left out": "overlapping", "repeated": "duplicates", "in both sets": "duplicates_across",
    "cut": "truncated", "answers cut": "answers_cut", "tokens that count": "train_tokens",
    "held-out tokens": "eval_tokens",
}  # fmt: skip
"""Columns of the table of data, and the fields of `DataSummary` that they show."""

_PRICE_WORDS = (
    "Give a price (`resources.price_per_device_hour` in the sweep file, or `report --price`) to "
    "see it in money."
)
_LOSS_WORDS = ", cross-entropy in nats per completion token over the whole held-out set."
_SINGLE_WORDS = (
    "No configuration was repeated over seeds: no interval and no test is given. (`training.seed` "
    "as a searched value, or the best few run again with other seeds, would tell.)"
)
_REPEATED_WORDS = (
    "Repeats are complete trials that differ in nothing but the seed. Means carry 95% Student t "
    "intervals; each configuration is compared with the leader by a paired t test over shared "
    "seeds, or Welch's where fewer than two are shared (SciPy), with Holm's correction "
    "(statsmodels); intervals of differences are not corrected. Where three or more configurations "
    "share the same seeds and these are fewer than five, their noise is taken together (two-way "
    "analysis of variance: configuration and seed), as if all were equally noisy. Assumed: "
    "independent repeats and about normal differences. The leader is picked from the same runs, "
    "so its own mean is slightly flattered. Where a search's best was confirmed by two or more "
    "repeats, the run that got it picked is left out of its mean."
)


def page_of(analysis: StudyAnalysis) -> Page:
    """The report of a study."""
    built = [make(analysis) for make in _SECTIONS]
    if analysis.systems:
        built.sort(key=lambda section: section.key != "zero")
    return Page(
        title=analysis.study.name,
        question=str(analysis.spec.get("question") or ""),
        answer=summary.sentences(analysis),
        facts=_facts(analysis),
        sections=[section for section in built if section.blocks],
        made=analysis.options.made,
        files=FILES,
    )


def _facts(analysis: StudyAnalysis) -> list[Fact]:
    spent = sum(analysis.spent.values())
    counts = Counter(analysis.table["state"])
    texts = ", ".join(f"{counts[state]} {state}" for state in sorted(counts)) or "none"
    facts = [Fact("trials", texts), Fact("device time", format.seconds(spent))]
    goals = [goal for goal in analysis.front.goals if goal.board.leader] if analysis.front else []
    best = [(goal.name, goal.text(goal.board.leader.mean)) for goal in goals if goal.board.leader]
    if not goals and analysis.board.leader:
        best = [(analysis.metric, analysis.value(analysis.board.leader.mean))]
    facts = [*(Fact(f"best {name}", value) for name, value in best), *facts]
    facts.append(Fact("noise of one run", f"± {analysis.noise}" if analysis.noise else "unknown"))
    return facts + ([Fact("cost", analysis.price.of(spent))] if analysis.price else [])


def _problem(analysis: StudyAnalysis) -> PageSection:
    texts = analysis.study.problem
    blocks = (Text(f"The study's own record could not be read: {texts}", "warn"),) if texts else ()
    return PageSection("problem", "Broken record", blocks)


def _leaderboard(analysis: StudyAnalysis) -> PageSection:
    if not analysis.board.standings:
        return PageSection("leaderboard", "Leaderboard")
    blocks: list[Block] = []
    if words := not_compared(analysis.table):
        blocks += [Text(words, "warn"), grids.groups(analysis)]
    if analysis.front:
        blocks += [grids.front(analysis, analysis.front), grids.leaders(analysis, analysis.front)]
    return PageSection("leaderboard", "Leaderboard",
                   (*blocks, _noise_words(analysis), grids.leaderboard(analysis)))  # fmt: skip


def _noise_words(analysis: StudyAnalysis) -> Text:
    if analysis.board.noise is None:
        return Text(
            "Every configuration ran once, so the noise between seeds is unknown: neighbours in "
            "this list may well be in the wrong order.",
            "note",
        )
    return Text(
        f"One run varies by about ± {analysis.noise} (standard deviation over seeds, pooled). "
        "Configurations of one place cannot be told apart; the marked one is the cheapest of the "
        "first place, of equally costly ones the best. p values are corrected for the number of "
        "comparisons."
    )


def _lora(analysis: StudyAnalysis) -> PageSection:
    charts = lora_charts(analysis)
    blocks: list[Block] = []
    best = best_of_each(analysis, RANK)
    if len(best) > 1:
        blocks.append(grids.best_per(analysis, RANK, best))
    return PageSection("lora", "LoRA", (*blocks, *charts))


def _zero(analysis: StudyAnalysis) -> PageSection:
    if not zero_stages.is_searched(analysis.table):
        return PageSection("zero", "ZeRO stages")
    words: list[Block] = [
        Text(
            "Stages are ranked on speed and memory: their losses should be equal but for rounding."
        )
    ]
    if analysis.on_cpu:
        words.append(Text(f"Peak memory does not rank stages here: {CPU_MEMORY}.", "note"))
    wrong = zero_stages.disagreements(analysis.parity)
    if wrong:
        pairs = f"{len(wrong)} of {len(analysis.parity)} pairs of trials"
        words.append(Text(f"{pairs} differ by more than rounding explains.", "warn"))
    elif not analysis.parity:
        words.append(Text("No two complete trials differ in the stage alone: no audit.", "note"))
    tables = [grids.stages(analysis)] + ([grids.parity(analysis)] if analysis.parity else [])
    return PageSection("zero", "ZeRO stages", (*words, *tables, *zero_charts(analysis)))


def _search(analysis: StudyAnalysis) -> PageSection:
    return PageSection("search", "The search", tuple(study_charts(analysis)))


def _cost(analysis: StudyAnalysis) -> PageSection:
    if not sum(analysis.spent.values()):
        return PageSection("cost", "What it cost")
    blocks: list[Block] = [grids.spending(analysis)]
    if not analysis.price:
        blocks.append(Text(_PRICE_WORDS, "note"))
    if analysis.worker_time:
        blocks.append(grids.workers(analysis.worker_time))
    return PageSection(
        "cost", "What it cost", (*blocks, *cost_charts(analysis), grids.trial_spending(analysis))
    )


def _pruned(analysis: StudyAnalysis) -> PageSection:
    rows = ranked_trials(analysis.alike, "pruned")
    others = ranked_trials(analysis.table, "pruned")
    rows = pd.concat([rows, others[~others["number"].isin(rows["number"])]])
    names = ["number", "value", *analysis.searched, "steps", "max_steps", "device_seconds"]
    grid = grids.grid_of(
        analysis, "pruned", "Stopped early; the value is the last one seen", rows, names
    )
    return PageSection("pruned", "Pruned", (grid,) if len(rows) else ())


def _failures(analysis: StudyAnalysis) -> PageSection:
    kinds, each = grids.failures(analysis)
    return PageSection("failures", "Failures", (kinds, each) if each.rows else ())


def _trials(analysis: StudyAnalysis) -> PageSection:
    if analysis.table.empty:
        return PageSection("trials", "All trials")
    order = {state: place for place, state in enumerate(("complete", "unfinished", "pruned"))}
    # Those of other groups that were measured on the same things follow the largest one.
    behind = {name: place for place, name in enumerate(measured_groups(analysis.table))}
    place = analysis.table["state"].map(lambda state: order.get(state, 9))
    place = place + analysis.table[MEASURED_ON].map(behind).fillna(0) / (len(behind) + 1)
    key = analysis.table["value"] * analysis.sign
    rows = analysis.table.assign(place=place, key=key).sort_values(["place", "key", "number"])
    others = [column for _, column in analysis.objectives[1:]]
    names = [
        "number",
        "state",
        "value",
        *[MEASURED_ON] * (len(behind) > 1),
        *others,
        *analysis.table.attrs["varied"],
    ]
    names += ["scale", "best_step"]
    names += ["steps", "trainable_parameters", "seconds_per_step", "device_seconds"]
    names += ["peak_memory_bytes", "device", "attempts", "duplicate_of"]
    names = list(dict.fromkeys(names))
    alone = " within each evaluation set" if len(behind) > 1 else ""
    grid = grids.grid_of(analysis, "trials", f"All trials, best first{alone}", rows, names)
    return PageSection("trials", "All trials", (grid,))


def _data(analysis: StudyAnalysis) -> PageSection:
    """What became of the data: one row for each set of tokens and labels that trials had."""
    results = [trial.result for trial in analysis.study.trials if trial.result]
    summaries = [result.data for result in results if result.data]
    if not summaries:
        return PageSection("data", "Data")
    counts = attrgetter(*_COUNTS.values())
    trials = Counter(summary.data_hash for summary in summaries)
    distinct = {summary.data_hash: summary for summary in summaries}
    heads = [Head("data hash", False), *map(Head, ("trials", *_COUNTS))]
    heads += [Head("format", False), Head("train_on", False), Head("columns not used", False)]
    rows = [
        [
            _Cell(name),
            *(_Cell(f"{n:,}", n) for n in (trials[name], *counts(found))),
            *map(_Cell, (found.format_words, found.train_on)),
            _Cell(", ".join(found.unused_columns) or "none"),
        ]
        for name, found in distinct.items()
    ]
    grid = Grid("data", "Data of the trials that read them, one row for each set of tokens and "
                "labels", heads, rows)  # fmt: skip
    return PageSection("data", "Data", (grid,))


def _provenance(analysis: StudyAnalysis) -> PageSection:
    rows = [[_Cell(name), _Cell(value)] for name, value in _facts_of_record(analysis)]
    grid = Grid("provenance", "What it was made with", [Head("what", False), Head("value", False)],
                rows, brief=100)  # fmt: skip
    blocks: list[Block] = [grid, Code(_again(analysis), "Repeat any row (from the study's folder)")]
    sweep = analysis.study.folder.sweep_file
    if sweep.exists():
        blocks.append(Code(sweep.read_text(encoding="utf-8", errors="replace"), "Sweep file"))
    else:
        text = json.dumps(analysis.spec, indent=2, sort_keys=True, default=str)
        blocks.append(Code(text, "Resolved sweep"))
    return PageSection("provenance", "Provenance", tuple(blocks))


def _again(analysis: StudyAnalysis) -> str:
    group = analysis.board.recommended
    number = f"{group.trials[0] if group else 0:05d}"
    return (
        f"mkdir -p again/{number} && cp trials/{number}/config.json again/{number}/ && "
        f"python -m trial again/{number}"
    )


def _facts_of_record(analysis: StudyAnalysis) -> list[tuple[str, str]]:
    record, trials = analysis.study.record, analysis.study.trials
    rows = [("sweep file", record.source)]
    for name, value in sorted(record.provenance.items()):
        if isinstance(value, Mapping):
            rows += [(f"{name}: {key}", _plain(item)) for key, item in sorted(value.items())]
        else:
            rows.append((name, _plain(value)))
    hashes = analysis.table
    rows += [("data hash", _different(hashes["data_hash"])),
             ("model hash", _different(hashes["model_hash"])),
             ("devices", _different(hashes["device"])),
             ("training seeds", _different(hashes["seed"]))]  # fmt: skip
    used = {f"{name} {version}" for t in trials for name, version in _versions(t).items()}
    return [(n, v) for n, v in [*rows, ("versions in the trials", ", ".join(sorted(used)))] if v]


def _versions(trial: TrialRead) -> Mapping[str, str]:
    return trial.attempts[-1].versions if trial.attempts else {}


def _different(column: Any) -> str:
    values = sorted({str(value) for value in column.dropna()})
    more = f" and {len(values) - 10} more" if len(values) > 10 else ""
    return ", ".join(values[:10]) + more


def _plain(value: Any) -> str:
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return " ".join(value)
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)


def _method(analysis: StudyAnalysis) -> PageSection:
    words = [
        f"Values are {analysis.metric}{_LOSS_WORDS if analysis.metric == 'eval loss' else '.'}",
        _REPEATED_WORDS if analysis.board.noise is not None else _SINGLE_WORDS,
        f"Importance is Optuna's, on an in-memory copy of the table; with fewer than {ENOUGH} "
        f"complete trials it is a hint, and fANOVA sees at most {MAX_FANOVA_TRIALS:,} trials.",
        "Pruned and failed trials are left out of every test, fit and axis. A first view leaves "
        "out far-off points (beyond three interquartile ranges); double-click a plot to see all.",
        "Device time is wall time of a trial's phases times the devices it held; "
        f"`retried` is estimated from evaluations made twice. {cost.USES[0].capitalize()} is "
        "process start, loading, and the first step of every attempt.",
    ]
    if zero_stages.is_searched(analysis.table):
        allowed = ", ".join(f"{dtype} {limit:.0e}" for dtype, limit in zero_stages.ROUNDING.items())
        words.append(f"Parity between stages allows a relative difference of {allowed}.")
    return PageSection("method", "How this was computed", tuple(Text(word) for word in words))


_SECTIONS: tuple[Callable[[StudyAnalysis], PageSection], ...] = (
    _problem, _leaderboard, _lora, _zero, _search, _cost, _pruned, _failures, _trials,
    _data, _provenance, _method,
)  # fmt: skip
