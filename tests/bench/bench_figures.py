"""The figures of `make bench`: what is done, by whom, and what is to be reached."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import bench_peers
from bench_material import (
    REPOSITORY,
    Work,
    points,
    sweep_content,
    trial_content,
    write_rows,
)
from bench_profile import profile
from bench_run import Arm, Figure, NotMeasuredError, Reach, Told

from sweep.spec.spec import ResourceSpec
from trial.config.trial_config import parse
from trial.store.folders import StudyFolder, TrialFolder

HERE = Path(__file__).resolve().parent
COMMAND = Path(sys.executable).with_name("gaudi-sweep")
PACKS = "pack" in ResourceSpec.model_fields
SLOTS, PROCESS_TRIALS = 8, 3


def peers(script: str, *words: str) -> list[str]:
    """A command of the peers' Python."""
    return [str(bench_peers.python()), str(HERE / script), *words]


def ours(script: str, *words: str) -> list[str]:
    """A command of our Python."""
    return [sys.executable, str(HERE / script), *words]


# a. A whole sweep


def sweep_arm(name: str, work: Work, pack: str | int | None = "auto") -> Arm:
    """`gaudi-sweep run` from process start to process end."""

    def prepare(folder: Path) -> None:
        write_rows(folder)
        content = sweep_content(work, folder, pack if PACKS else None)
        (folder / "sweep.yaml").write_text(json.dumps(content))

    return Arm(
        name,
        lambda folder: [str(COMMAND), "run", "sweep.yaml", "--runs", "runs"],
        read=lambda folder, told, began: read_sweep(folder, told, began, work),
        prepare=prepare,
    )


def read_sweep(folder: Path, told: Told, began: float, work: Work) -> Told:
    """The makespan taken apart; every trial must have ended whole."""
    ended = began + told["seconds"]
    study = folder / "runs" / "sweep"
    results = [trial.read_result() for _, trial in StudyFolder(study).all_trials()]
    whole = [r for r in results if r and r.state == "complete" and r.steps == work.steps]
    if len(whole) != work.trials:
        raise NotMeasuredError(f"{len(whole)} of {work.trials} trials are complete")
    parts = profile(study, began, ended)
    told["seconds_to_last_result"] = max(result.finished for result in whole) - began
    return told | {f"profile: {name}": seconds for name, seconds in parts.items()}


def tune_arm(name: str, work: Work, *, reuse: bool) -> Arm:
    """Ray Tune with the stock Trainer."""
    words = ["--reuse"] * reuse

    def read(folder: Path, told: Told, began: float) -> Told:
        if told["trials"] != work.trials:
            raise NotMeasuredError(f"{told['trials']} of {work.trials} trials are complete")
        return told

    return Arm(
        name,
        lambda folder: peers("peers_tune.py", str(folder), *work.words(), *words),
        read=read,
        prepare=lambda folder: void(write_rows(folder)),
    )


def void(_: Any) -> None:
    """Nothing, of anything."""


def makespan(rounds: int, work: Work) -> Figure:
    """A whole sweep beside Ray Tune's."""
    size = f"{work.trials} trials x {work.steps} steps, batch {work.batch} x {work.length}"
    return Figure(
        "a",
        f"Makespan of a small sweep ({size}), two workers, from process start to process end",
        [
            sweep_arm("gaudi-sweep", work),
            tune_arm("Ray Tune", work, reuse=False),
            tune_arm("Ray Tune, reuse_actors", work, reuse=True),
        ],
        [
            Reach("makespan / Ray Tune + OptunaSearch + HF Trainer",
                  ("gaudi-sweep", "seconds"), ("Ray Tune", "seconds"), 1 / 4),
            Reach("makespan / the same with `reuse_actors`",
                  ("gaudi-sweep", "seconds"), ("Ray Tune, reuse_actors", "seconds"), 1 / 2),
        ],
        rounds,
        [
            f"No pruning, ranks 2-16, evaluation every {work.eval_every} steps. Ours ends with its "
            "table and report, which peers do not write.",
            *([] if PACKS else ["`resources.pack` does not exist yet: trials were not packed."]),
        ],
    )  # fmt: skip


# b. Trainer steps only


def folders_of(
    work: Work, folder: Path, *, dropout: float = 0.0, seeds: bool = False
) -> Sequence[Path]:
    """Prepared trial folders; with `seeds` each has its own."""
    write_rows(folder, work.length)
    found = []
    for number, (rank, rate) in enumerate(points(work.trials)):
        content = trial_content(work, folder, rank, rate)
        content["lora"]["lora_dropout"] = dropout
        if seeds:
            content["training"]["seed"] = number
        path = folder / "trials" / f"{number:05d}"
        found.append(TrialFolder.create(path, parse(content)).path)
    return found


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
        return ours("ours_trials.py", how, *map(str, homes), "--slots", str(slots), *more)

    return Arm(name, command, read=lambda folder, told, began: told, prepare=prepare)


def steps_figure(rounds: int, works: Sequence[Work]) -> Figure:
    """Optimizer steps beside the plain loop."""
    loop = Arm(
        "plain loop",
        lambda folder: peers("peers_loop.py", str(folder), *(w.words()[0] for w in works)),
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
        return ours("replay_policies.py", *words, *names)

    return Arm(grid, command)


# d. Trivial trials


def trivial(rounds: int, counts: dict[str, int]) -> Figure:
    """Trials a second that do nothing."""

    def peer(name: str, how: str) -> Arm:
        return Arm(
            name,
            lambda folder: peers(
                "peers_trivial.py", how, str(folder), "--trials", str(counts[how])
            ),
        )

    rate = "trials_per_second"
    return Figure(
        "d",
        "Trivial trials a second, 5 reports each, pruner asked at each, two workers, steady rate",
        [
            Arm("gaudi-sweep", lambda folder: ours(
                "ours_trivial.py", str(folder), "--trials", str(counts["ours"]))),
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


# e. Start


RAY_ALONE = """
import os
os.environ.update({
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_enable_metrics_collection": "0",
    "RAY_DISABLE_IMPORT_WARNING": "1",
})
import json, time
import ray
ray.init(address="local", include_dashboard=False, num_cpus=2, log_to_driver=False,
         object_store_memory=100 * 1024 * 1024)
told = time.time()
ray.shutdown()
print(json.dumps({"ready": told}))
"""

IMPORTS_ALONE = """
import sys
sys.path.insert(0, {repository!r})
from trial.preload import preload
preload("cpu")
import json, time
print(json.dumps({{"ready": time.time()}}))
"""


def start(rounds: int) -> Figure:
    """From the command to the first training step."""
    work = Work(trials=2, steps=2, eval_every=2)
    sweep = sweep_arm("gaudi-sweep", work)

    def prepare(folder: Path) -> None:
        sweep.prepare(folder)
        source = folder / "sweep.yaml"
        content = json.loads(source.read_text())
        content["base"]["training"]["logging_steps"] = 1
        source.write_text(json.dumps(content))

    def stepped(folder: Path) -> bool:
        files = (folder / "runs" / "sweep" / "trials").glob("*/metrics.jsonl")
        return any(file.stat().st_size for file in files)

    def ready(folder: Path, told: Told, began: float) -> Told:
        return told | {"seconds_until": told.pop("ready") - began}

    def alone(name: str, text: str) -> Arm:
        return Arm(name, lambda folder: [sys.executable, "-c", text], read=ready)

    return Figure(
        "e",
        "From the command to the end of the first training step",
        [
            replace(sweep, prepare=prepare, until=stepped, read=lambda folder, told, began: told),
            alone("ray.init alone", RAY_ALONE),
            alone("imports alone", IMPORTS_ALONE.format(repository=str(REPOSITORY))),
        ],
        [
            Reach("command to first training step / ray.init + imports, each measured alone",
                  ("gaudi-sweep", "seconds_until"),
                  ("ray.init alone + imports alone", "seconds_until"), 1.15),
        ],
        rounds,
        ["Interpreter start is in each of the three; ours also starts two workers at once, loads "
         "the model and makes its first step."],
    )  # fmt: skip


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
        return peers("peers_gaudi.py", str(folder), *few.words(), str(few.trials))

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
                lambda folder: ours("ours_packed.py", "refill", str(folder)),
                prepare=lambda folder: void(folders_of(work, folder, seeds=True)),
            ),
            Arm(
                "seen before",
                lambda folder: ours("ours_packed.py", "refill", str(folder)),
                prepare=lambda folder: void(folders_of(work, folder)),
            ),
            Arm("compile", lambda folder: ours("ours_packed.py", "compile")),
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
                subprocess.run(ours("ours_packed.py", "model", "512", str(model)), check=True)
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
