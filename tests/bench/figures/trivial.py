"""Trials a second that do nothing."""

from __future__ import annotations

from arms import Arm, Figure, Reach

from figures.commands import our_command, peer_command

# d. Trivial trials


def trivial(rounds: int, counts: dict[str, int]) -> Figure:
    """Trials a second that do nothing."""

    def peer(name: str, how: str) -> Arm:
        return Arm(
            name,
            lambda folder: peer_command(
                "peers/trivial.py", how, str(folder), "--trials", str(counts[how])
            ),
        )

    rate = "trials_per_second"
    return Figure(
        "d",
        "Trivial trials a second, 5 reports each, pruner asked at each, two workers, steady rate",
        [
            Arm("gaudi-sweep", lambda folder: our_command(
                "ours/trivial.py", str(folder), "--trials", str(counts["ours"]))),
            peer("Ray Tune", "tune"),
            peer("Ray Tune, reuse_actors, no loggers", "tune-reuse"),
            peer("bare Ray actors, journal", "actors"),
        ],
        [
            Reach("trivial trials a second / Ray Tune",
                  ("gaudi-sweep", rate), ("Ray Tune", rate), 50, at_least=True),
            Reach("trivial trials a second / `reuse_actors`, no loggers",
                  ("gaudi-sweep", rate), ("Ray Tune, reuse_actors, no loggers", rate), 2,
                  at_least=True),
            Reach("trivial trials a second / bare Ray actors with a journal",
                  ("gaudi-sweep", rate), ("bare Ray actors, journal", rate), 0.8, at_least=True),
        ],
        rounds,
        ["From the first trial's end to the last one's. Ours also writes and syncs each trial's "
         "folder; Ray Tune keeps its searcher in memory. Trials: "
         + ", ".join(f"{name} {count}" for name, count in counts.items()) + "."],
    )  # fmt: skip
