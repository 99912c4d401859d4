"""The page of a bench run: a table of ratios and goals, then the values of each arm."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from arms import Measured, Reach

PROFILE = "profile: "


def page(measured: Sequence[Measured], about: Mapping[str, Any]) -> str:
    """Markdown of a whole run."""
    arms = _arms(measured, about["command"])
    return "\n".join([*_head(about), *_table(measured), *arms]) + "\n"


def _head(about: Mapping[str, Any]) -> Iterator[str]:
    machine, quick = about["machine"], about["quick"]
    command = about["command"] + (" (quick)" if quick else "")
    used = machine.get("gpu", "no accelerator used")
    peers = ", ".join(f"{name} {version}" for name, version in about["peers"].items())
    yield "# Speed beside the peers"
    yield ""
    yield f"Written by `{command}` on {about['date']} ({about['minutes']:.0f} minutes) from "
    yield f"`{about['commit']}`: {machine['cores']} cores ({machine['processor']}), "
    yield f"{machine['memory_gb']} GB, {used}, Python {machine['python']}."
    where = "an environment of their own" if about.get("apart") else "the same environment"
    yield f"Peers, in {where}: {peers}."
    yield ""
    yield "Arms take turns, each run in a fresh process. A ratio compares arms within one round."
    yield "`cpu_seconds` are the CPU seconds of an arm's process and its children. Processes that"
    yield "Ray itself starts are not included: the peers' workers are such processes, ours are"
    yield "forked by a child of the command and are included."
    if quick:
        yield "**A quick run: fewer than five rounds and smaller work; for orientation only.**"
    yield ""


def _table(measured: Sequence[Measured]) -> Iterator[str]:
    yield "| | ratio of | goal | median | lowest | highest | rounds | reached |"
    yield "|---|---|---|---|---|---|---|---|"
    for found in measured:
        for reach in found.figure.reaches:
            yield _line(found, reach)
    yield ""


def _line(found: Measured, reach: Reach) -> str:
    ratios = found.ratios(reach)
    sign = "" if reach.bound is None else f"{'>=' if reach.at_least else '<='} {reach.bound:g}"
    if not ratios:
        missing = [arm for arm in _arm_names(reach) if arm in found.failures]
        why = found.failures[missing[0]] if missing else "no round was completed"
        shown = f"| {found.figure.key} | {reach.what} | {sign} | not measured: {_cell(why)} |"
        return f"{shown} | | 0 | |"
    middle = statistics.median(ratios)
    verdict = ""
    if reach.bound is not None:
        good = middle >= reach.bound if reach.at_least else middle <= reach.bound
        verdict = "yes" if good else "**no**"
    shown = " | ".join(f"{value:.3g}" for value in (middle, min(ratios), max(ratios)))
    return f"| {found.figure.key} | {reach.what} | {sign} | {shown} | {len(ratios)} | {verdict} |"


def _arm_names(reach: Reach) -> list[str]:
    return [*reach.ours[0].split(" + "), *(reach.peer[0].split(" + ") if reach.peer else [])]


def _cell(text: str) -> str:
    return text.replace("|", "/").replace("\n", " ")[:200]


def _arms(measured: Sequence[Measured], command: str) -> Iterator[str]:
    for found in measured:
        figure = found.figure
        yield f"## {figure.key}. {figure.title}"
        yield ""
        yield f'`{command} ARGS="--only {figure.key}"`. Load average at the rounds: ' + (
            ", ".join(f"{load:g}" for load in found.load) + "."
        )
        yield from figure.notes
        yield ""
        yield from _values(found)
        yield ""
        yield from _profiles(found)


def _values(found: Measured) -> Iterator[str]:
    """A row for each value of each arm: median, lowest and highest of the rounds."""
    yield "| arm | value | median | lowest | highest |"
    yield "|---|---|---|---|---|"
    for arm in found.figure.arms:
        if arm.name in found.failures:
            yield f"| {arm.name} | not measured: {_cell(found.failures[arm.name])} | | | |"
        for name in _names(found):
            if values := found.values(arm.name, name):
                middle = statistics.median(values)
                shown = " | ".join(f"{v:.3g}" for v in (middle, min(values), max(values)))
                yield f"| {arm.name} | {name} | {shown} |"


def _names(found: Measured) -> list[str]:
    names = (name for told in found.told.values() for row in told for name in row)
    hidden = ("load", "best", "trials", "refills")
    return [n for n in dict.fromkeys(names) if n not in hidden and not n.startswith(PROFILE)]


def _profiles(found: Measured) -> Iterator[str]:
    """Breakdown of the median round's makespan."""
    for arm, rounds in found.told.items():
        names = [name for name in rounds[0] if name.startswith(PROFILE)]
        if not names:
            continue
        middle = sorted(rounds, key=lambda told: told["seconds"])[len(rounds) // 2]
        yield f"Where the {middle['seconds']:.1f} s of {arm} went (mean of its workers):"
        yield ""
        yield "| what | seconds |"
        yield "|---|---|"
        yield from _rows((name.removeprefix(PROFILE), middle[name]) for name in names)
        yield f"| sum | {sum(middle[name] for name in names):.1f} |"
        yield ""


def _rows(items: Iterable[tuple[str, float]]) -> Iterator[str]:
    for name, seconds in items:
        yield f"| {name} | {seconds:.1f} |"
