"""The answer in words: what wins, whether it really wins, what it cost, what to try next."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from results.analysis import zero_stages
from results.analysis.importance import is_number
from results.analysis.pareto import Front, Goal, Member, goal_of
from results.analysis.significance import Group, Standing
from results.analysis.study_analysis import (
    CPU_MEMORY,
    RANK,
    RATE,
    StudyAnalysis,
    best_of_each,
    settings,
    underrated,
)
from results.data import format
from results.data.naming import lower_is_better, sentence, short
from results.page.tables import p_value

FEW_REPEATS = 3
DOMINATES = 0.6
"""A parameter with this share of the importance is said to dominate."""


def sentences(found: StudyAnalysis) -> list[str]:
    """Three to seven sentences; the first one is the answer."""
    if found.complete.empty:
        told = [_nothing(found.table), _unfinished(found), _cost(found), *_memory(found)]
        return [text for text in told if text]
    if found.systems:
        told = _stages(found)
    elif found.front and found.front.members:
        told = _front(found, found.front)
    else:
        told = _confirmed(found) if found.board.noise is not None else _unconfirmed(found)
    told += [
        _rates(found),
        _underrated(found),
        _dominant(found),
        _parity(found),
        _unfinished(found),
        _cost(found),
        *_next(found),
    ]
    return [text for text in told if text]


# What wins


def name_of(found: StudyAnalysis, group: Group) -> str:
    """A configuration in words, with the trial it is in."""
    trial = "trial" if len(group.trials) == 1 else "trials"
    numbers = ", ".join(map(str, group.trials[:5])) + (", …" if len(group.trials) > 5 else "")
    return f"{settings(group.row, found.telling)} ({trial} {numbers})"


def _rank_of(found: StudyAnalysis, group: Group) -> str:
    rank = group.row.get(RANK)
    searched = RANK in found.searched and not format.is_missing(rank)
    return f"rank {rank}" if searched else ""


def _confirmed(found: StudyAnalysis) -> list[str]:
    """Repeats over seeds exist: say what they can tell apart."""
    leader = found.board.leader
    if leader is None:
        return []
    mean = f"{found.metric} {found.value(leader.mean)} on average over {len(leader.values)} seeds"
    interval = leader.interval
    if interval:
        mean += f" (95% interval {found.value(interval.low)} to {found.value(interval.high)})"
    if len(found.board.tied) > 1:
        told = _tie(found, leader, mean)
    else:
        head = _rank_of(found, leader).capitalize() or "One configuration"
        told = [f"{head} wins: {name_of(found, leader)} reaches {mean}."]
    return [*told, _next_best(found), _single_runs(found)]


def _tie(found: StudyAnalysis, leader: Group, mean: str) -> list[str]:
    tied = [standing.group for standing in found.board.tied]
    best = found.board.recommended or leader
    ranks = sorted({group.row[RANK] for group in tied}) if _rank_of(found, leader) else []
    who = f"{len(tied)} configurations tie"
    if len(ranks) > 1:
        who = f"ranks {_listed([str(rank) for rank in ranks])} tie"
    take = "they cost the same, so take" if found.board.same_cost else "take the cheapest,"
    lead = f"No single winner: {who} within the noise; {take} {name_of(found, best)}."
    lowest = "It" if found.board.same_cost else "It also"
    lowest = lowest if best is leader else sentence(name_of(found, leader))
    return [lead, f"{lowest} has the best mean: {mean}."]


def _next_best(found: StudyAnalysis) -> str:
    beaten = found.board.beaten
    if not beaten:
        return "Nothing that was repeated over seeds is outside the leader's noise."
    first = beaten[0]
    return (
        f"The best beats {name_of(found, first.group)} by {_by(found, first)}: outside the noise."
    )


def _by(found: StudyAnalysis, standing: Standing) -> str:
    against = standing.comparison
    if against is None:
        return ""
    test = f"paired t test over {against.paired} shared seeds" if against.paired else "Welch's test"
    if against.pooled:
        test += f" with the noise of {against.pooled} configurations together"
    ends = f"{found.gap(against.interval.low)} to {found.gap(against.interval.high)}"
    p = p_value(against.adjusted)
    p = f"p {p}" if p.startswith("<") else f"p = {p}"
    return f"{found.gap(against.difference)} (95% interval {ends}; {test}, {p} after Holm)"


def _single_runs(found: StudyAnalysis) -> str:
    near = [item for item in found.board.standings if item.tier is None and item.within_noise]
    if not near:
        return ""
    what = "configuration" if len(near) == 1 else "configurations"
    return (
        f"{len(near)} {what} with a single run cannot be told from it "
        f"(the noise of one run is about ± {found.noise})."
    )


def _unconfirmed(found: StudyAnalysis) -> list[str]:
    """No repeats: say what is lowest, and that nobody knows the noise."""
    best = found.board.standings[0].group
    rank = _rank_of(found, best)
    lead = f"{rank.capitalize()} has" if rank else f"Trial {best.trials[0]} has"
    better = "lowest" if lower_is_better(found.table) else "highest"
    first = f"{lead} the {better} {found.metric}, {found.value(best.mean)}: {name_of(found, best)}."
    if len(found.board.standings) < 2:
        return [f"{first} It is the only configuration that was completed, so it beats nothing."]
    return [first, _margin(found, best)]


def _margin(found: StudyAnalysis, best: Group) -> str:
    second = found.board.standings[1].group
    other = _best_other_rank(found, best)
    gap = abs(second.mean - best.mean)
    text = f"Next is {name_of(found, second)}, {found.gap(gap)} behind"
    if other is not None and int(other["number"]) not in second.trials:
        away = abs(other["value"] - best.mean)
        text += f"; the best of another rank, r {other[RANK]}, is {found.gap(away)} behind"
    return (
        f"{text}. No configuration was repeated over seeds, so the noise is unknown and such a "
        "difference may mean nothing."
    )


def _best_other_rank(found: StudyAnalysis, best: Group) -> pd.Series | None:
    if not _rank_of(found, best):
        return None
    others = found.complete[found.complete[RANK] != best.row[RANK]]
    return others.iloc[0] if len(others) else None


# Several objectives


def _front(found: StudyAnalysis, front: Front) -> list[str]:
    """Several objectives have no single winner: what is left to choose from, and by what."""
    names = _listed([goal.name for goal in front.goals])
    if len(front.members) == 1:
        only = front.members[0]
        lead = f"One configuration is best in {names} at once: {_member(found, front, only)}."
        return [lead, _front_noise(found, front)]
    lead = (
        f"{len(front.members)} of {front.among} configurations are worth choosing from: they form "
        f"the Pareto front of {names}, where each gain in one costs something in another."
    )
    told = [lead, *(_leads(found, goal) for goal in front.goals)]
    if front.compromise:
        told.append(f"The most even compromise is {_member(found, front, front.compromise)}.")
    return [*told, _front_noise(found, front)]


def _member(found: StudyAnalysis, front: Front, member: Member) -> str:
    values = [
        f"{goal.name} {goal.text(value)}"
        for goal, value in zip(front.goals, member.values, strict=True)
    ]
    return f"{name_of(found, member.group)} with {_listed(values)}"


def _leads(found: StudyAnalysis, goal: Goal) -> str:
    """Who is best in one objective, and whether others are as good within the noise."""
    board = goal.board
    best = board.leader
    if best is None:
        return ""
    word = "lowest" if goal.sign > 0 else "highest"
    told = f"The {word} {goal.name}, {goal.text(best.mean)}, is that of {name_of(found, best)}"
    if board.noise is None:
        return f"{told}."
    tied = len(board.tied) - 1
    if tied > 0:
        others = "another one ties" if tied == 1 else f"{tied} others tie"
        return f"{told}; {others} with it within the noise."
    return f"{told}, outside the noise of all that was repeated." if board.beaten else f"{told}."


def _front_noise(found: StudyAnalysis, front: Front) -> str:
    if found.board.noise is None:
        return (
            "No configuration was repeated over seeds, so the noise is unknown: configurations "
            "near the front may belong to it, and some on it may not."
        )
    single = sum(not member.group.repeated for member in front.members)
    if not single:
        return ""
    what = "One configuration" if single == 1 else f"{single} configurations"
    return f"{what} on the front ran only once: luck may have put it there."


def _stages(found: StudyAnalysis) -> list[str]:
    """Systems knobs alone were searched: speed and memory are the answer."""
    stages = zero_stages.stages(found.table)
    fast = _least(stages, "seconds_per_step")
    lean = _least(stages, "peak_memory_bytes")
    if fast is None or lean is None:
        return ["The complete trials hold no step times and memory to compare stages by."]
    told = [_fastest(found, fast)]
    if found.on_cpu:
        told.append(f"Which stage needs the least memory cannot be told here: {CPU_MEMORY}.")
    else:
        told.append(_leanest(found, fast, lean))
    if found.board.noise is None:
        told.append("No stage was repeated over seeds, so the noise of these figures is unknown.")
    return told


def _fastest(found: StudyAnalysis, fast: pd.Series) -> str:
    pace = f"{format.number(fast['seconds_per_step'], 3)} s per step"
    tied = _tied_stages(found, "seconds_per_step")
    if len(tied) < 2:
        return f"{fast['stage']} is the fastest, {pace}."
    return (
        f"No single fastest stage: in seconds per step {_listed(tied)} cannot be told apart, their "
        f"repeats differ as much ({fast['stage']} has the least, {pace})."
    )


def _leanest(found: StudyAnalysis, fast: pd.Series, lean: pd.Series) -> str:
    size = format.size(lean["peak_memory_bytes"])
    tied = _tied_stages(found, "peak_memory_bytes")
    if len(tied) > 1:
        return (
            f"In peak memory {_listed(tied)} cannot be told apart ({lean['stage']} has the least, "
            f"{size} a device)."
        )
    if fast["stage"] == lean["stage"]:
        return f"{lean['stage']} also needs the least memory, {size} a device."
    times = format.number(lean["seconds_per_step"] / fast["seconds_per_step"], 2)
    against = format.size(fast["peak_memory_bytes"])
    return (
        f"{lean['stage']} needs the least memory, {size} a device against {against} with "
        f"{fast['stage']}, at {times} times the time per step."
    )


def _tied_stages(found: StudyAnalysis, metric: str) -> list[str]:
    """Stages that share the first place in a metric; none where nothing was repeated."""
    tied = goal_of(found.table, metric, "minimize").board.tied
    return list(
        dict.fromkeys(
            zero_stages.stage_name(item.group.row.get(zero_stages.STAGE)) for item in tied
        )
    )


def _least(stages: pd.DataFrame, column: str) -> pd.Series | None:
    known = stages.dropna(subset=[column, "seconds_per_step"])
    return None if known.empty else known.sort_values(column, kind="stable").iloc[0]


# Why


def _rates(found: StudyAnalysis) -> str:
    """How the best learning rate moves with rank."""
    best = _searched_ranks(found, best_of_each(found, RANK))
    if len(best) < 2 or RATE not in found.searched or not is_number(best[RATE].dropna()):
        return ""
    the = f"For {found.metric} alone, the" if found.front else "The"
    if best[RATE].nunique() == 1 and len(best) == found.complete[RANK].nunique():
        return f"{the} best learning rate is {format.number(best[RATE].iloc[0])} at every rank."
    rates = [format.number(rate, 3) for rate in best[RATE]]
    pairs = [f"{rate} at r {rank}" for rank, rate in zip(best[RANK], rates, strict=True)]
    return f"{the} best learning rate is {_listed(pairs[:8])}."


def _searched_ranks(found: StudyAnalysis, best: pd.DataFrame) -> pd.DataFrame:
    """Those of the ranks that more than one rate was tried at: the only one is not the best."""
    if best.empty or RATE not in found.table:
        return best.iloc[:0]
    judged = found.table[found.table["state"].isin(["complete", "pruned"])]
    rates = judged.groupby(RANK)[RATE].nunique()
    return best[best[RANK].map(rates) > 1]


def _underrated(found: StudyAnalysis) -> str:
    """Ranks that pruning may have wronged."""
    if RANK not in found.searched:
        return ""
    rows = underrated(found, RANK)
    if rows.empty:
        return ""
    ranks = _listed([str(rank) for rank in rows[RANK]])
    who = "ranks" if len(rows) > 1 else "rank"
    return (
        f"Pruning may have wronged {who} {ranks}: a pruned trial there was already better than "
        f"every complete one (trial {_listed([str(number) for number in rows['number']])}); run it "
        "to the end before ruling the rank out."
    )


def _dominant(found: StudyAnalysis) -> str:
    shares = found.importance
    if shares is None or shares.few:
        return ""
    known = [share for share in zip(shares.fanova, shares.names, strict=True) if share[0] > 0]
    if not known or max(known)[0] < DOMINATES:
        return ""
    share, name = max(known)
    return (
        f"{short(name).capitalize()} dominates: it explains {format.percent(share, 1)} of the "
        f"variance of {found.metric} over what was tried (fANOVA), so tune it before anything else."
    )


def _parity(found: StudyAnalysis) -> str:
    if not found.parity:
        return ""
    wrong = zero_stages.disagreements(found.parity)
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


def _unfinished(found: StudyAnalysis) -> str:
    """That this is not the end, where it is not."""
    count = int((found.table["state"] == "unfinished").sum())
    if not count:
        return ""
    trials = "1 trial is" if count == 1 else f"{count} trials are"
    return f"{trials} still running or interrupted: this is the state so far."


def _cost(found: StudyAnalysis) -> str:
    spent = sum(found.spent.values())
    if not spent:
        return ""
    lost = {name: found.spent[name] for name in ("pruned", "failed", "retried")}
    shares = [f"{format.percent(part, spent)} {name}" for name, part in lost.items() if part]
    money = f" ({found.price.of(spent)})" if found.price else ""
    went = f", of which {_listed(shares)}" if shares else ""
    counts = found.table["state"].value_counts()
    trials = "1 trial" if counts.sum() == 1 else f"{counts.sum()} trials"
    return f"{trials} took {format.seconds(spent)} of device time{money}{went}."


# What next


def _next(found: StudyAnalysis) -> list[str]:
    told = [] if found.systems or found.front else edges(found)
    if not found.systems and found.board.noise is None and len(found.board.standings) > 1:
        told.append("To know the noise, repeat the best few over seeds.")
    tied = found.board.tied
    if len(tied) > 1 and min(len(item.group.values) for item in tied) < FEW_REPEATS:
        told.append("Two repeats can tell hardly anything apart: run three to five seeds of each.")
    return told + _memory(found)


def _memory(found: StudyAnalysis) -> list[str]:
    count = (found.table["cause_kind"] == "out_of_memory").sum()
    if not count:
        return []
    times = "trial" if count == 1 else "trials"
    return [f"{count} {times} ran out of memory: those settings were never judged."]


def edges(found: StudyAnalysis) -> list[str]:
    """What to widen: the best value, and all that tie with it, lie at one end of what was tried."""
    best = found.board.recommended
    if best is None:
        return []
    alike = [item.group for item in found.board.tied] or [best]
    told = []
    for name in found.searched:
        tried = tried_values(found.table, name, found.spec)
        if len(tried) < 3:
            continue
        side = _side(best.row[name], tried)
        if side and all(_side(group.row[name], tried) == side for group in alike):
            told.append(
                f"The best {short(name)}, {format.number(best.row[name])}, lies at the {side} end "
                f"of what was tried ({format.number(tried[0])} to {format.number(tried[-1])}): "
                "widen it."
            )
    return told


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
    # Zero dropout or decay cannot be lowered: its lower end is no edge.
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


def _listed(parts: Sequence[str]) -> str:
    return ", ".join(parts[:-1]) + f" and {parts[-1]}" if len(parts) > 1 else "".join(parts)
