"""The figures of `make bench`: what is done, by whom, and what is to be reached."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from arms import Figure
from peers.material import Work

from figures.packing import refilling, saturated, steps_figure, whole
from figures.policies import SEEDS, policies
from figures.sweeps import makespan, start
from figures.trivial import trivial

FULL = {"ours": 200, "tune": 8, "tune-reuse": 100, "actors": 100}
QUICK = {"ours": 60, "tune": 4, "tune-reuse": 40, "actors": 40}


def figures(quick: bool, scratch: Path, rounds: int | None = None) -> list[Figure]:
    """All of them, at full or quick size."""
    many = rounds or (1 if quick else 5)
    sweep = Work(trials=4, steps=20, eval_every=10) if quick else Work()
    short = Work(trials=8, steps=15, eval_every=15)
    cells = [Work(trials=8, steps=30, eval_every=30), replace(short, length=128)]
    if not quick:
        cells += [replace(short, batch=2), replace(short, batch=2, length=128)]
    return [
        makespan(many, sweep),
        steps_figure(many, cells),
        policies(many, SEEDS // 5 if quick else SEEDS),
        trivial(many, QUICK if quick else FULL),
        start(many),
        whole(many, Work(trials=8 if quick else 24, steps=40, eval_every=20)),
        refilling(many),
        saturated(many, scratch),
    ]
