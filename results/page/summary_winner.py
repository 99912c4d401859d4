"""Sentences on the winner: one objective, several (Pareto front), or ZeRO stages."""

from __future__ import annotations

import pandas as pd

from results.analysis import zero_stages
from results.analysis.leaderboard import Standing
from results.analysis.pareto import Front, Goal, Member, goal_of
from results.analysis.significance import Group
from results.analysis.study_analysis import (
    CPU_MEMORY,
    RANK,
    StudyAnalysis,
    settings,
)
from results.data import format
from results.data.naming import capitalize, join_words, lower_is_better
from results.page.tables import p_value

# What wins


def winner_sentences(analysis: StudyAnalysis) -> list[str]:
    """Sentences on what wins, and on whether repeats over seeds support it."""
    if analysis.systems:
        return _stages(analysis)
    if analysis.front and analysis.front.members:
        return _front(analysis, analysis.front)
    return _confirmed(analysis) if analysis.board.noise is not None else _unconfirmed(analysis)


def name_of(analysis: StudyAnalysis, group: Group) -> str:
    """A configuration in words, with its trial numbers."""
    trial = "trial" if len(group.trials) == 1 else "trials"
    numbers = ", ".join(map(str, group.trials[:5])) + (", …" if len(group.trials) > 5 else "")
    return f"{settings(group.row, analysis.naming_parameters)} ({trial} {numbers})"


def _rank_of(analysis: StudyAnalysis, group: Group) -> str:
    rank = group.row.get(RANK)
    searched = RANK in analysis.searched and not format.is_missing(rank)
    return f"rank {rank}" if searched else ""


def _confirmed(analysis: StudyAnalysis) -> list[str]:
    """With repeats over seeds: the winner or the ties, with intervals and tests."""
    leader = analysis.board.leader
    if leader is None:
        return []
    seeds = len(leader.values)
    mean = f"{analysis.metric} {analysis.value(leader.mean)} on average over {seeds} seeds"
    interval = leader.interval
    if interval:
        mean += f" (95% interval {analysis.value(interval.low)} to {analysis.value(interval.high)})"
    if len(analysis.board.tied) > 1:
        texts = _tie(analysis, leader, mean)
    else:
        head = _rank_of(analysis, leader).capitalize() or "One configuration"
        texts = [f"{head} wins: {name_of(analysis, leader)} reaches {mean}."]
    return [*texts, _next_best(analysis), _single_runs(analysis)]


def _tie(analysis: StudyAnalysis, leader: Group, mean: str) -> list[str]:
    tied = [standing.group for standing in analysis.board.tied]
    best = analysis.board.recommended or leader
    ranks = sorted({group.row[RANK] for group in tied}) if _rank_of(analysis, leader) else []
    who = f"{len(tied)} configurations tie"
    if len(ranks) > 1:
        who = f"ranks {join_words([str(rank) for rank in ranks])} tie"
    take = "they cost the same, so take" if analysis.board.same_cost else "take the cheapest,"
    lead = f"No single winner: {who} within the noise; {take} {name_of(analysis, best)}."
    lowest = "It" if analysis.board.same_cost else "It also"
    lowest = lowest if best is leader else capitalize(name_of(analysis, leader))
    return [lead, f"{lowest} has the best mean: {mean}."]


def _next_best(analysis: StudyAnalysis) -> str:
    beaten = analysis.board.beaten
    if not beaten:
        return "Nothing that was repeated over seeds is outside the leader's noise."
    first = beaten[0]
    name, margin = name_of(analysis, first.group), _by(analysis, first)
    return f"The best beats {name} by {margin}: outside the noise."


def _by(analysis: StudyAnalysis, standing: Standing) -> str:
    against = standing.comparison
    if against is None:
        return ""
    test = f"paired t test over {against.paired} shared seeds" if against.paired else "Welch's test"
    if against.pooled:
        test += f" with the noise of {against.pooled} configurations together"
    ends = f"{analysis.gap(against.interval.low)} to {analysis.gap(against.interval.high)}"
    p = p_value(against.adjusted)
    p = f"p {p}" if p.startswith("<") else f"p = {p}"
    return f"{analysis.gap(against.difference)} (95% interval {ends}; {test}, {p} after Holm)"


def _single_runs(analysis: StudyAnalysis) -> str:
    near = [item for item in analysis.board.standings if item.tier is None and item.within_noise]
    if not near:
        return ""
    what = "configuration" if len(near) == 1 else "configurations"
    return (
        f"{len(near)} {what} with a single run cannot be told from it "
        f"(the noise of one run is about ± {analysis.noise})."
    )


def _unconfirmed(analysis: StudyAnalysis) -> list[str]:
    """Without repeats: the lowest value, and that the noise is unknown."""
    best = analysis.board.standings[0].group
    rank = _rank_of(analysis, best)
    lead = f"{rank.capitalize()} has" if rank else f"Trial {best.trials[0]} has"
    better = "lowest" if lower_is_better(analysis.table) else "highest"
    value, name = analysis.value(best.mean), name_of(analysis, best)
    first = f"{lead} the {better} {analysis.metric}, {value}: {name}."
    if len(analysis.board.standings) < 2:
        return [f"{first} It is the only configuration that was completed, so it beats nothing."]
    return [first, _margin(analysis, best)]


def _margin(analysis: StudyAnalysis, best: Group) -> str:
    second = analysis.board.standings[1].group
    other = _best_other_rank(analysis, best)
    gap = abs(second.mean - best.mean)
    text = f"Next is {name_of(analysis, second)}, {analysis.gap(gap)} behind"
    if other is not None and int(other["number"]) not in second.trials:
        away = abs(other["value"] - best.mean)
        text += f"; the best of another rank, r {other[RANK]}, is {analysis.gap(away)} behind"
    return (
        f"{text}. No configuration was repeated over seeds, so the noise is unknown and such a "
        "difference may mean nothing."
    )


def _best_other_rank(analysis: StudyAnalysis, best: Group) -> pd.Series | None:
    if not _rank_of(analysis, best):
        return None
    others = analysis.complete[analysis.complete[RANK] != best.row[RANK]]
    return others.iloc[0] if len(others) else None


# Several objectives


def _front(analysis: StudyAnalysis, front: Front) -> list[str]:
    """Several objectives: the Pareto front and the leader of each."""
    names = join_words([goal.name for goal in front.goals])
    if len(front.members) == 1:
        only = front.members[0]
        lead = f"One configuration is best in {names} at once: {_member(analysis, front, only)}."
        return [lead, _front_noise(analysis, front)]
    lead = (
        f"{len(front.members)} of {front.among} configurations are worth choosing from: they form "
        f"the Pareto front of {names}, where each gain in one costs something in another."
    )
    texts = [lead, *(_leads(analysis, goal) for goal in front.goals)]
    if front.compromise:
        texts.append(f"The most even compromise is {_member(analysis, front, front.compromise)}.")
    return [*texts, _front_noise(analysis, front)]


def _member(analysis: StudyAnalysis, front: Front, member: Member) -> str:
    values = [
        f"{goal.name} {goal.text(value)}"
        for goal, value in zip(front.goals, member.values, strict=True)
    ]
    return f"{name_of(analysis, member.group)} with {join_words(values)}"


def _leads(analysis: StudyAnalysis, goal: Goal) -> str:
    """The leader of one objective and its ties."""
    board = goal.board
    best = board.leader
    if best is None:
        return ""
    word = "lowest" if goal.sign > 0 else "highest"
    texts = f"The {word} {goal.name}, {goal.text(best.mean)}, is that of {name_of(analysis, best)}"
    if board.noise is None:
        return f"{texts}."
    tied = len(board.tied) - 1
    if tied > 0:
        others = "another one ties" if tied == 1 else f"{tied} others tie"
        return f"{texts}; {others} with it within the noise."
    return f"{texts}, outside the noise of all that was repeated." if board.beaten else f"{texts}."


def _front_noise(analysis: StudyAnalysis, front: Front) -> str:
    if analysis.board.noise is None:
        return (
            "No configuration was repeated over seeds, so the noise is unknown: configurations "
            "near the front may belong to it, and some on it may not."
        )
    single = sum(not member.group.repeated for member in front.members)
    if not single:
        return ""
    what = "One configuration" if single == 1 else f"{single} configurations"
    return f"{what} on the front ran only once: luck may have put it there."


def _stages(analysis: StudyAnalysis) -> list[str]:
    """Only system settings were searched: the fastest and the leanest stage."""
    stages = zero_stages.stages(analysis.table)
    fast = _least(stages, "seconds_per_step")
    lean = _least(stages, "peak_memory_bytes")
    if fast is None or lean is None:
        return ["The complete trials hold no step times and memory to compare stages by."]
    texts = [_fastest(analysis, fast)]
    if analysis.on_cpu:
        texts.append(f"Which stage needs the least memory cannot be told here: {CPU_MEMORY}.")
    else:
        texts.append(_leanest(analysis, fast, lean))
    if analysis.board.noise is None:
        texts.append("No stage was repeated over seeds, so the noise of these figures is unknown.")
    return texts


def _fastest(analysis: StudyAnalysis, fast: pd.Series) -> str:
    pace = f"{format.number(fast['seconds_per_step'], 3)} s per step"
    tied = _tied_stages(analysis, "seconds_per_step")
    if len(tied) < 2:
        return f"{fast['stage']} is the fastest, {pace}."
    return (
        f"No single fastest stage: in seconds per step {join_words(tied)} cannot be told apart, "
        f"their repeats differ as much ({fast['stage']} has the least, {pace})."
    )


def _leanest(analysis: StudyAnalysis, fast: pd.Series, lean: pd.Series) -> str:
    size = format.size(lean["peak_memory_bytes"])
    tied = _tied_stages(analysis, "peak_memory_bytes")
    if len(tied) > 1:
        return (
            f"In peak memory {join_words(tied)} cannot be told apart ({lean['stage']} has the "
            f"least, {size} a device)."
        )
    if fast["stage"] == lean["stage"]:
        return f"{lean['stage']} also needs the least memory, {size} a device."
    times = format.number(lean["seconds_per_step"] / fast["seconds_per_step"], 2)
    against = format.size(fast["peak_memory_bytes"])
    return (
        f"{lean['stage']} needs the least memory, {size} a device against {against} with "
        f"{fast['stage']}, at {times} times the time per step."
    )


def _tied_stages(analysis: StudyAnalysis, metric: str) -> list[str]:
    """Stages that tie for the first place in a metric; empty without repeats."""
    tied = goal_of(analysis.table, metric, "minimize").board.tied
    return list(
        dict.fromkeys(
            zero_stages.stage_name(item.group.row.get(zero_stages.STAGE)) for item in tied
        )
    )


def _least(stages: pd.DataFrame, column: str) -> pd.Series | None:
    known = stages.dropna(subset=[column, "seconds_per_step"])
    return None if known.empty else known.sort_values(column, kind="stable").iloc[0]
