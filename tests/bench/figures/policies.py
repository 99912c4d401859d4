"""Which trials to run: policies replayed from recorded curves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from arms import Arm, Figure, Reach

from figures.commands import our_command

# c. Which trials to run


GRIDS = ("rank x rate", "joint")
RUNGS = "ours: default, evaluated at its rungs"
OURS = ("ours: default", RUNGS, f"{RUNGS}, packed")
TUNE, REUSED = "Ray Tune: OptunaSearch, ASHA", "Ray Tune: the same, reuse_actors"
SEEDS = 100
"""Sweeps of each policy in a round; every round has seeds of its own."""


def policies(rounds: int, seeds: int = SEEDS) -> Figure:
    """Whole sweeps played from recorded curves; nothing in it depends on the machine."""
    reaches = [
        Reach(f"device-seconds to within noise of the {grid} grid's best, {our} / {other}",
              (grid, our), (grid, other), 1 / 4 if other == TUNE else None)
        for grid in GRIDS
        for our in (*OURS, "floor")
        for other in (TUNE, REUSED)
        if our != "floor" or other == TUNE
    ]  # fmt: skip
    return Figure(
        "c",
        "Device-seconds until the trial that a sweep would name its best is within noise of the "
        f"full grid's best, replayed on two devices: medians over {seeds} seeds a round",
        [policies_arm(grid, seeds) for grid in GRIDS],
        reaches,
        rounds,
        [
            "The draws are seeded: every machine plays the same. `floor` is two workers' start-up "
            "and one whole trial, with both devices held: no sweep can be sooner, however it draws."
            " See docs/defaults.md for the policies."
        ],
    )  # fmt: skip


def policies_arm(grid: str, seeds: int) -> Arm:
    """These policies on one recorded grid, with the round's own seeds."""

    def command(folder: Path) -> Sequence[str]:
        first = int(folder.name.partition("-")[0]) * seeds
        words = ["--grid", grid, "--seeds", str(seeds), "--first", str(first)]
        names = [word for name in (*OURS, TUNE, REUSED) for word in ("--policy", name)]
        return our_command("replay/policies.py", *words, *names)

    return Arm(grid, command)
