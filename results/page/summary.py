"""Summary sentences: winner, evidence, explanation, cost, and what to try next."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from results.analysis import zero_stages
from results.analysis.importance import is_number
from results.analysis.study_analysis import (
    RANK,
    RATE,
    StudyAnalysis,
    best_of_each,
    better_when_pruned,
    settings,
)
from results.data import format
from results.data.measured import not_compared
from results.data.naming import join_words, short_name
from results.page.summary_winner import winner_sentences

FEW_REPEATS = 3
DOMINATES = 0.6
"""Share of the variance from which the summary calls a parameter dominant."""


def sentences(analysis: StudyAnalysis) -> list[str]:
    """Three to seven sentences; the first one answers the study's question.

    Where trials were measured on unlike things, those that say so come before it.
    """
    if analysis.complete.empty:
        texts = [
            _nothing(analysis.table),
            _unfinished(analysis),
            _cost(analysis),
            *_memory(analysis),
        ]
        return [text for text in texts if text]
    texts = [
        not_compared(analysis.table),
        *_best_of_groups(analysis),
        *winner_sentences(analysis),
        _rates(analysis),
        _underrated(analysis),
        _dominant(analysis),
        _parity(analysis),
        _unfinished(analysis),
        _cost(analysis),
        *_next(analysis),
    ]
    return [text for text in texts if text]


MOST_GROUPS = 6
"""Groups whose best the summary names; a table has them all."""


def _best_of_groups(analysis: StudyAnalysis) -> list[str]:
    """The best trial of each group that was measured on the same things, in one sentence."""
    groups = analysis.measured
    if len(groups) < 2:
        return []
    parts = [
        f"{settings(item.row, item.names) or item.label} {analysis.value(item.row['value'])} "
        f"(trial {item.row['number']} of {item.trials})"
        for item in groups[:MOST_GROUPS]
    ]
    more = len(groups) - MOST_GROUPS
    also = f", and {more} more in the table" if more > 0 else ""
    return [f"The best {analysis.metric} of each, not to be compared: {'; '.join(parts)}{also}."]


# Why


def _rates(analysis: StudyAnalysis) -> str:
    """Best learning rate of each rank."""
    best = _searched_ranks(analysis, best_of_each(analysis, RANK))
    if len(best) < 2 or RATE not in analysis.searched or not is_number(best[RATE].dropna()):
        return ""
    the = f"For {analysis.metric} alone, the" if analysis.front else "The"
    if best[RATE].nunique() == 1 and len(best) == analysis.complete[RANK].nunique():
        return f"{the} best learning rate is {format.number(best[RATE].iloc[0])} at every rank."
    rates = [format.number(rate, 3) for rate in best[RATE]]
    pairs = [f"{rate} at r {rank}" for rank, rate in zip(best[RANK], rates, strict=True)]
    return f"{the} best learning rate is {join_words(pairs[:8])}."


def _searched_ranks(analysis: StudyAnalysis, best: pd.DataFrame) -> pd.DataFrame:
    """Ranks at which more than one learning rate was tried."""
    if best.empty or RATE not in analysis.alike:
        return best.iloc[:0]
    judged = analysis.alike[analysis.alike["state"].isin(["complete", "pruned"])]
    rates = judged.groupby(RANK)[RATE].nunique()
    return best[best[RANK].map(rates) > 1]


def _underrated(analysis: StudyAnalysis) -> str:
    """Ranks at which a pruned trial was better than every complete one."""
    if RANK not in analysis.searched:
        return ""
    rows = better_when_pruned(analysis, RANK)
    if rows.empty:
        return ""
    ranks = join_words([str(rank) for rank in rows[RANK]])
    trials = join_words([str(number) for number in rows["number"]])
    who = "ranks" if len(rows) > 1 else "rank"
    return (
        f"Pruning may have wronged {who} {ranks}: a pruned trial there was already better than "
        f"every complete one (trial {trials}); run it "
        "to the end before ruling the rank out."
    )


def _dominant(analysis: StudyAnalysis) -> str:
    shares = analysis.importance
    if shares is None or shares.few:
        return ""
    known = [share for share in zip(shares.fanova, shares.names, strict=True) if share[0] > 0]
    if not known or max(known)[0] < DOMINATES:
        return ""
    share, name = max(known)
    return (
        f"{short_name(name).capitalize()} dominates: it explains {format.percent(share, 1)} of the "
        f"variance of {analysis.metric} over what was tried (fANOVA), so tune it before anything "
        "else."
    )


def _parity(analysis: StudyAnalysis) -> str:
    if not analysis.parity:
        return ""
    wrong = zero_stages.disagreements(analysis.parity)
    if not wrong:
        return (
            "The ZeRO stages agree in eval loss to within rounding, so choose by speed and memory."
        )
    worst = wrong[0]
    return (
        f"Warning: {worst.stages[1]} and {worst.stages[0]} disagree in eval loss by "
        f"{100 * worst.worst:.2g}% (trials {worst.other} and {worst.reference}), more than "
        "rounding explains: do not trust both."
    )


def _unfinished(analysis: StudyAnalysis) -> str:
    """Note that trials are unfinished, if any are."""
    count = int((analysis.table["state"] == "unfinished").sum())
    if not count:
        return ""
    trials = "1 trial is" if count == 1 else f"{count} trials are"
    return f"{trials} still running or interrupted: this is the state so far."


def _cost(analysis: StudyAnalysis) -> str:
    spent = sum(analysis.spent.values())
    if not spent:
        return ""
    lost = {name: analysis.spent[name] for name in ("pruned", "failed", "retried")}
    shares = [f"{format.percent(part, spent)} {name}" for name, part in lost.items() if part]
    money = f" ({analysis.price.of(spent)})" if analysis.price else ""
    went = f", of which {join_words(shares)}" if shares else ""
    counts = analysis.table["state"].value_counts()
    trials = "1 trial" if counts.sum() == 1 else f"{counts.sum()} trials"
    return f"{trials} took {format.seconds(spent)} of device time{money}{went}."


# What next


def _next(analysis: StudyAnalysis) -> list[str]:
    texts = [] if analysis.systems or analysis.front else edges(analysis)
    if not analysis.systems and analysis.board.noise is None and len(analysis.board.standings) > 1:
        texts.append("To know the noise, repeat the best few over seeds.")
    tied = analysis.board.tied
    if len(tied) > 1 and min(len(item.group.values) for item in tied) < FEW_REPEATS:
        texts.append("Two repeats can tell hardly anything apart: run three to five seeds of each.")
    return texts + _memory(analysis)


def _memory(analysis: StudyAnalysis) -> list[str]:
    count = (analysis.table["cause_kind"] == "out_of_memory").sum()
    if not count:
        return []
    times = "trial" if count == 1 else "trials"
    return [f"{count} {times} ran out of memory: those settings were never judged."]


def edges(analysis: StudyAnalysis) -> list[str]:
    """Advice to widen a range: the best value and its ties lie at one end of those tried."""
    best = analysis.board.recommended
    if best is None:
        return []
    alike = [item.group for item in analysis.board.tied] or [best]
    texts = []
    for name in analysis.searched:
        tried = tried_values(analysis.alike, name, analysis.spec)
        if len(tried) < 3:
            continue
        side = _side(best.row[name], tried)
        if side and all(_side(group.row[name], tried) == side for group in alike):
            texts.append(
                f"The best {short_name(name)}, {format.number(best.row[name])}, lies at the {side} "
                f"end of what was tried ({format.number(tried[0])} to {format.number(tried[-1])}): "
                "widen it."
            )
    return texts


def tried_values(table: pd.DataFrame, name: str, spec: Mapping[str, Any]) -> list[float]:
    """Sorted numeric values tried, with the declared ends of ranges; empty for other kinds."""
    column = table[name].dropna()
    if column.empty or not is_number(column) or name == zero_stages.STAGE:
        return []
    declared = {**_mapping(spec.get("variables")), **_mapping(spec.get("space"))}.get(name)
    branches = declared if isinstance(declared, list) else [declared]
    ends = {
        float(branch[end])
        for branch in branches
        if isinstance(branch, Mapping)
        for end in ("low", "high")
        if isinstance(branch.get(end), int | float)
    }
    return sorted({float(value) for value in column} | ends)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _side(value: Any, tried: Sequence[float]) -> str:
    """Which end `value` is within a twentieth of, on a log axis where the range is wide."""
    if format.is_missing(value):
        return ""
    low, high, at = tried[0], tried[-1], float(value)
    if low > 0 and high / low >= 10:
        low, high, at = math.log(low), math.log(high), math.log(at)
    share = (at - low) / (high - low)
    # Zero dropout or weight decay cannot be lowered: zero is no edge to widen.
    if share <= 0.05:
        return "lower" if tried[0] > 0 else ""
    return "upper" if share >= 0.95 else ""


def _nothing(table: pd.DataFrame) -> str:
    if table.empty:
        return "No trial has been started yet."
    failed = table.loc[table["state"] == "failed", "cause"].dropna()
    common = failed.mode()
    why = f" The commonest cause of failure: {common.iloc[0]}." if len(common) else ""
    return f"No trial has been completed yet, so there is nothing to compare.{why}"
