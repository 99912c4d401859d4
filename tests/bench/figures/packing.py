"""What packing gains: optimizer steps, whole trials, refills, and where it does not pay."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from arms import Arm, Figure, Reach, Told
from ours.folders import folders_of
from peers.material import Work, write_rows

from figures.commands import our_command, peer_command, void

SLOTS, PROCESS_TRIALS = 8, 3


def trials_arm(name: str, works: Sequence[Work], how: str, slots: int | str, *, steps: bool) -> Arm:
    """Prepared folders in one process; with `steps` a command for each cell of work.

    The scripts of several cells run one after the other in one shell.
    """
    more = ["--steps"] * steps

    def prepare(folder: Path) -> None:
        for number, work in enumerate(works):
            home = folder / str(number)
            home.mkdir()
            # The first is trained beforehand, unmeasured.
            folders_of(replace(work, trials=work.trials + steps), home)

    def command(folder: Path) -> list[str]:
        homes = [folder / str(number) for number in range(len(works))]
        return our_command("ours/trials.py", how, *map(str, homes), "--slots", str(slots), *more)

    return Arm(name, command, read=lambda folder, told, began: told, prepare=prepare)


def steps_figure(rounds: int, works: Sequence[Work]) -> Figure:
    """Optimizer steps beside the plain loop."""
    loop = Arm(
        "plain loop",
        lambda folder: peer_command("peers/loop.py", str(folder), *(w.words()[0] for w in works)),
        prepare=lambda folder: void(write_rows(folder)),
    )
    slots = SLOTS
    reaches = []
    for work in works:
        value = f"step_seconds_{work.cell}"
        shown = f"batch {work.batch} x {work.length}"
        reaches += [
            Reach(f"trainer steps, packed K = {slots}, {shown} / plain PyTorch + PEFT loop",
                  ("packed", value), ("plain loop", value), 1 / 2),
            Reach(f"trainer steps, unpacked, {shown} / plain PyTorch + PEFT loop",
                  ("solo", value), ("plain loop", value), 1.05),
        ]  # fmt: skip
    return Figure(
        "b",
        "Optimizer steps alone: one trial after another in a plain PyTorch + PEFT loop, in "
        "GaudiTrainer, and packed; one thread each",
        [
            loop,
            trials_arm("solo", works, "solo", 1, steps=True),
            trials_arm("packed", works, "packed", slots, steps=True),
        ],
        reaches,
        rounds,
        ["Seconds of an optimizer step of one trial; start-up, loading and evaluation left out."],
    )


# f. Whole trials, four ways


def whole(rounds: int, work: Work) -> Figure:
    """Whole trials beside one process for each."""
    few = replace(work, trials=PROCESS_TRIALS)

    def per_trial(key: str, trials: int) -> Callable[[Path, Told, float], Told]:
        return lambda folder, told, began: told | {"seconds_per_trial": told[key] / trials}

    def arm(name: str, how: str, slots: int, chosen: Work, key: str) -> Arm:
        made = trials_arm(name, [chosen], how, slots, steps=False)
        return replace(made, read=per_trial(key, chosen.trials))

    def script(folder: Path) -> list[str]:
        return peer_command("peers/gaudi.py", str(folder), *few.words(), str(few.trials))

    each = "seconds_per_trial"
    first = ("GaudiTrainer script per trial", each)
    return Figure(
        "f",
        f"Whole trials of {work.steps} steps, batch {work.batch} x {work.length}, one thread: "
        f"{work.trials} trials from process start to process end",
        [
            Arm("GaudiTrainer script per trial", script,
                read=per_trial("seconds_inside", few.trials),
                prepare=lambda folder: void(write_rows(folder))),
            arm("python -m trial per trial", "process", 1, few, "seconds_inside"),
            arm("in-process solo", "solo", 1, work, "seconds"),
            arm("hot job, K = 1", "packed", 1, work, "seconds"),
            arm(f"packed, K = {SLOTS}", "packed", SLOTS, work, "seconds"),
        ],
        [
            Reach("one GaudiTrainer process per trial / `python -m trial` per trial",
                  ("python -m trial per trial", each), first, 1, at_least=True, turned=True),
            Reach("one GaudiTrainer process per trial / in-process solo",
                  ("in-process solo", each), first, 1, at_least=True, turned=True),
            Reach("one GaudiTrainer process per trial / hot job at K = 1",
                  ("hot job, K = 1", each), first, 4, at_least=True, turned=True),
            Reach(f"one GaudiTrainer process per trial / packed at K = {SLOTS}",
                  (f"packed, K = {SLOTS}", each), first, 7, at_least=True, turned=True),
        ],
        rounds,
        [f"The first two arms run {few.trials} trials, the others {work.trials} with one start-up. "
         "The first is a plain script in the peers' environment, without a harness."],
    )  # fmt: skip


# g. Refilling slots


REFILLED = 24
"""Trials for four slots: twenty find the job running."""


def refilling(rounds: int) -> Figure:
    """A trial into a free slot of a running job."""
    work = Work(trials=REFILLED, steps=3, eval_every=3)
    return Figure(
        "g",
        "A free slot of a running job: seconds until the next trial is in it; what is compiled "
        "again over 20 refills (torch.compile, other ranks, dropouts, rates and seeds)",
        [
            Arm(
                "refill",
                lambda folder: our_command("ours/packed.py", "refill", str(folder)),
                prepare=lambda folder: void(folders_of(work, folder, seeds=True)),
            ),
            Arm(
                "seen before",
                lambda folder: our_command("ours/packed.py", "refill", str(folder)),
                prepare=lambda folder: void(folders_of(work, folder)),
            ),
            Arm("compile", lambda folder: our_command("ours/packed.py", "compile")),
        ],
        [
            Reach("seconds of a slot refill", ("refill", "refill_seconds"), None, 0.05),
            Reach(
                "seconds of a slot refill, rank and seed seen before",
                ("seen before", "refill_seconds"),
                None,
                0.05,
            ),
            Reach("recompilations over 20 refills", ("compile", "recompilations"), None, 0),
        ],
        rounds,
        ["A refill reads the trial's folder, draws its adapter as PEFT does, and puts it in."],
    )


# h. Where packing does not pay


def saturated(rounds: int, scratch: Path) -> Figure:
    """A base model whose every step fills the core."""
    model = scratch / "llama-512"
    work = Work(trials=4, steps=2, batch=2, length=128, eval_every=2, eval_rows=2, model=str(model))

    def written(made: Arm) -> Arm:
        def prepare(folder: Path) -> None:
            if not model.exists():
                subprocess.run(
                    our_command("ours/packed.py", "model", "512", str(model)), check=True
                )
            made.prepare(folder)

        return replace(made, prepare=prepare)

    value = "step_seconds_2x128"
    hot = "hot job, K = 1"
    return Figure(
        "h",
        "Where packing does not pay: hidden 512, 8 layers, batch 2 x 128, one thread",
        [
            written(trials_arm(hot, [work], "packed", 1, steps=True)),
            written(trials_arm("packed, K = 4", [work], "packed", 4, steps=True)),
            written(trials_arm("packed, K = auto", [work], "packed", 0, steps=True)),
        ],
        [
            Reach("hidden 512: optimizer step at K = 1 / at K = 4 (what packing gains)",
                  (hot, value), ("packed, K = 4", value)),
            Reach("hidden 512: optimizer step at K = 1 / at the K that `auto` takes",
                  (hot, value), ("packed, K = auto", value)),
        ],
        rounds,
        estimate(),
    )  # fmt: skip


ACCELERATORS = {"Gaudi2": (432e12, 2.45e12), "H200": (989e12, 4.8e12)}
"""Dense bf16 operations and bytes of memory a second, from the makers' data sheets."""
SHARE = 0.5
"""Of the operations a second, as large matrix products reach in training."""
SHAPES = ((1, 512), (4, 512), (4, 2048))


def estimate(parameters: float = 6.7e9, slots: int = 8) -> list[str]:
    """What packing could gain on a 7B base: a roofline, nothing measured.

    A step reads the frozen weights twice (forward, backward to the inputs) and does four operations
    for each weight and token; slots share the reading and nothing else.
    """
    return [
        f"Estimate, not measured: a 7B base in bf16 on {name}, K = {slots}, no host time counted: "
        + ", ".join(
            f"{batch} x {length}: {gain(parameters, batch * length, slots, *speeds):.2f}x"
            for batch, length in SHAPES
        )
        + "."
        for name, speeds in ACCELERATORS.items()
    ]


def gain(parameters: float, tokens: int, slots: int, operations: float, bandwidth: float) -> float:
    """Throughput of so many slots over that of one, each with so many tokens a step."""

    def seconds(count: int) -> float:
        work = 4 * parameters * tokens * count / (operations * SHARE)
        return max(work, 2 * 2 * parameters / bandwidth)

    return slots * seconds(1) / seconds(slots)
