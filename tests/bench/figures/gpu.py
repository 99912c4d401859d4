"""The figures of `make bench-gpu`: the same trials packed and one at a time, on one CUDA GPU."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from arms import Arm, Figure, Reach
from ours.folders import folders_of
from peers.material import Work

from figures.commands import our_command, peer_command
from figures.packing import trials_arm

HALF = Work(trials=1, steps=20, eval_every=20, length=512, model="llama-0.5b", device="cuda")
"""One at a time; packed arms train more, so that slots are refilled."""
PACKED_TRIALS = 16
SEVEN = Work(
    trials=4, steps=3, eval_every=3, eval_rows=2, eval_batch=2, batch=1, length=2048,
    model="llama-7b", device="cuda",
)  # fmt: skip


def figures(quick: bool, scratch: Path, rounds: int | None = None) -> list[Figure]:
    """All of them, at full or quick size."""
    works = [replace(HALF, batch=batch, model=str(scratch / HALF.model)) for batch in (1, 2)]
    if quick:
        works = works[:1]
    seven = replace(SEVEN, model=str(scratch / SEVEN.model))
    return [
        hourly(rounds or (1 if quick else 5), works, 8 if quick else PACKED_TRIALS),
        saturated(rounds or 1, seven),
        recorded(rounds or 1, works[0]),
    ]


def hourly(rounds: int, works: Sequence[Work], many: int) -> Figure:
    """Trials an hour, of a half-billion Llama."""
    more = [replace(work, trials=many) for work in works]

    def trainer(folder: Path) -> list[str]:
        return peer_command("peers/trainer.py", str(folder), *(w.words()[0] for w in works))

    reaches = []
    for work in works:
        value = f"trials_per_hour_{work.cell}"
        shown = f"batch {work.batch} x {work.length}"
        reaches += [
            Reach(f"trials an hour, packed (K = auto), {shown} / Trainer, one at a time",
                  ("packed, K = auto", value), ("Trainer", value), 3, at_least=True),
        ]  # fmt: skip
    return Figure(
        "i",
        f"Trials an hour on one GPU: Llama of 0.5 B parameters, bf16, {works[0].steps} steps, "
        f"evaluated every {works[0].eval_every}",
        [
            on("0.5b", works[0], Arm("Trainer", trainer)),
            on("0.5b", works[0], trials_arm("packed, K = auto", more, "packed", 0, steps=True)),
        ],
        reaches,
        rounds,
        [
            "Imports and base model are paid beforehand in all arms, and one trial is trained "
            f"unmeasured. Measured are {works[0].trials} trial a round one at a time and {many} "
            "packed; the measurement of how many slots pay is in the packed arm's time."
        ],
    )


def saturated(rounds: int, work: Work) -> Figure:
    """A base model whose every step fills the GPU."""
    arm, value = "one process", f"step_seconds_{work.cell}"
    return Figure(
        "j",
        f"Where packing does not pay: a 7B Llama, bf16, batch {work.batch} x {work.length}",
        [on("7b", work, trials_arm(arm, [work, work], "packed", "1,0", steps=True))],
        [
            Reach("7B: optimizer step at K = 1 / at the K that `auto` takes",
                  (arm, f"{value}_K=1"), (arm, f"{value}_K=auto")),
        ],
        rounds,
        ["Without gradient checkpointing, which packed jobs do not know: 4 x 2048 tokens at once "
         "do not fit into 80 GB."],
    )  # fmt: skip


def recorded(rounds: int, work: Work) -> Figure:
    """Passes launched kernel by kernel, and played back from their recording."""
    arms = []
    for dropout in (0.0, 0.05):

        def prepare(folder: Path, dropout: float = dropout) -> None:
            folders_of(work, folder, dropout=dropout)

        made = Arm(
            f"dropout {dropout:g}",
            lambda folder: our_command("ours/packed.py", "passes", str(folder)),
            prepare=prepare,
        )
        arms.append(on("0.5b", work, made))
    return Figure(
        "k",
        f"A pass over a 0.5 B Llama by number of slots, batch {work.batch} x {work.length}",
        arms,
        [
            Reach(f"a pass at K = {slots}: recorded / launched kernel by kernel",
                  (arms[0].name, f"recorded_pass_seconds_K={slots}"),
                  (arms[0].name, f"pass_seconds_K={slots}"))
            for slots in (1, 8, 16)
        ],
        rounds,
    )  # fmt: skip


def on(size: str, work: Work, arm: Arm) -> Arm:
    """The arm, after the model of random weights has been written for the first of them."""

    def prepare(folder: Path) -> None:
        if not Path(work.model).exists():
            subprocess.run(our_command("ours/packed.py", "model", size, work.model), check=True)
        arm.prepare(folder)

    return replace(arm, prepare=prepare)
