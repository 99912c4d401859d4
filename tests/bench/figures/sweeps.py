"""Whole sweeps through the command, and what comes before the first training step."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

from arms import Arm, Figure, NotMeasuredError, Reach, Told
from peers.material import REPOSITORY, Work, sweep_content, write_rows

from figures.commands import peer_command, void
from figures.profile import profile
from sweep.spec.spec import ResourceSpec
from trial.store.folders import StudyFolder

COMMAND = Path(sys.executable).with_name("gaudi-sweep")
PACKS = "pack" in ResourceSpec.model_fields


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
        lambda folder: peer_command("peers/tune.py", str(folder), *work.words(), *words),
        read=read,
        prepare=lambda folder: void(write_rows(folder)),
    )


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
