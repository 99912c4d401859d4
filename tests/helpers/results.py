"""Synthetic studies written through the trial folder's own classes."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from trial.config.sections import Origin
from trial.config.trial_config import TrialConfig
from trial.store.folders import StudyFolder, TrialFolder
from trial.store.records import Attempt, Cause, Evaluation, Result, Seconds, State, StudyRecord

START = 1_790_000_000.0
STEPS = 100
SPEC: dict[str, Any] = {
    "question": "Which rank?",
    "base": {"training": {"max_steps": STEPS}},
    "space": {
        "lora.r": {"choices": [4, 16, 64]},
        "training.learning_rate": {"low": 1e-5, "high": 1e-2, "log": True},
    },
    "objectives": [{"metric": "eval_loss", "direction": "minimize"}],
    "sampler": {"name": "tpe", "seed": 1},
    "pruner": {"name": "median"},
}
PROVENANCE = {
    "versions": {"torch": "2.13.0", "optuna": "5.0.0"},
    "git": {"commit": "0123456789abcdef", "dirty": True},
    "host": {"name": "bench", "cores": 2},
}


def make_study(path: Path, spec: Mapping[str, Any] | None = None) -> StudyFolder:
    study = StudyFolder(path)
    record = StudyRecord(
        name=path.name, created=START, spec=dict(spec or SPEC), source="spaces/lora_rank.yaml",
        provenance=PROVENANCE,
    )  # fmt: skip
    study.write_record(record)
    return study


def make_config(number: int, study: str = "s", **params: Any) -> TrialConfig:
    """A configuration with `params` (dotted paths, `__` for the dot) laid over the defaults."""
    drawn = {name.replace("__", "."): value for name, value in params.items()}
    lora = {k.removeprefix("lora."): v for k, v in drawn.items() if k.startswith("lora.")}
    training: dict[str, Any] = {"max_steps": STEPS}
    training |= {
        k.removeprefix("training."): v for k, v in drawn.items() if k.startswith("training.")
    }
    model = {k.removeprefix("model."): v for k, v in drawn.items() if k.startswith("model.")}
    content: dict[str, Any] = {"lora": lora, "training": training, "model": model}
    content |= {k: v for k, v in drawn.items() if "." not in k}
    for section in ("data", "model"):
        own = {k.partition(".")[2]: v for k, v in drawn.items() if k.startswith(f"{section}.")}
        content |= {section: own} if own else {}
    drawn.pop("training.seed", None)
    origin = Origin(study=study, number=number, params=drawn)
    return TrialConfig.model_validate({**content, "origin": origin.model_dump()})


def curve(final: float, steps: Iterable[int], begin: float = 5.0) -> list[Evaluation]:
    """An eval loss that falls from `begin` to `final` at the last planned step."""
    rows = []
    for step in steps:
        share = (1 - math.exp(-4 * step / STEPS)) / (1 - math.exp(-4))
        loss = begin + (final - begin) * share
        rows.append(
            Evaluation(step=step, eval_loss=loss, epoch=step / STEPS, tokens=step * 800,
                       train_seconds=step * 0.1, time=0.0)
        )  # fmt: skip
    return rows


def add_trial(
    study: StudyFolder,
    config: TrialConfig,
    loss: float | None,
    state: State = "complete",
    stopped: int = STEPS,
    cause: Cause | None = None,
    seconds_a_step: float = 0.1,
    memory: int = 500_000_000,
    evaluations: int = 10,
    lane: int = 0,
    **result: Any,
) -> TrialFolder:
    """Write one finished trial; `loss` is the value at the end of its curve."""
    assert config.origin is not None
    number = config.origin.number
    folder = TrialFolder.create(study.trial(number).path, config)
    if state == "duplicate":
        folder.write_result(
            Result(state=state, eval_loss=loss, finished=START + number * 20, **result)
        )
        return folder
    began = START + number * 20.0
    folder.append_attempt(
        Attempt(started=began, host="bench", pid=100 + lane, device="cpu", cold=number < 2)
    )
    every = max(1, STEPS // evaluations)
    steps = range(every, stopped + 1, every)
    rows = [
        row.model_copy(update={
            "time": began + 3 + row.step * (seconds_a_step + 0.02),
            "train_seconds": row.step * seconds_a_step,
        })
        for row in curve(loss if loss is not None else 9.0, steps)
    ]  # fmt: skip
    folder.metrics.write_text("".join(row.model_dump_json() + "\n" for row in rows))
    folder.log.write_text("Traceback: the whole story\n")
    seconds = Seconds(
        startup=2.0 if number < 2 else 0.0, load=0.5, first_step=0.4,
        train=stopped * seconds_a_step, eval=stopped * 0.02, save=0.1,
    )  # fmt: skip
    ended = dict(
        state=state, eval_loss=loss if state != "failed" else None, best_step=stopped,
        steps=stopped, max_steps=STEPS, tokens=stopped * 800,
        trainable_parameters=1000 * max(1, config.lora.r),
        total_parameters=1_000_000, peak_memory_bytes=memory, seconds=seconds, device="cpu",
        data_hash="d" * 16, model_hash="m" * 16, cause=cause, finished=began + 3 + seconds.total,
    )  # fmt: skip
    folder.write_result(Result(**(ended | result)))
    return folder


def true_loss(rank: int, rate: float, best_rank: int = 16) -> float:
    """A bowl in log10 of the learning rate around 1e-3, lowest at `best_rank`."""
    return 2.3 + 0.3 * (math.log10(rate) + 3) ** 2 + 0.05 * abs(math.log2(rank / best_rank))


def rank_study(
    path: Path,
    loss: Callable[[int, float], float] = true_loss,
    noise: float = 0.002,
    rates: Iterable[float] = (1e-5, 1e-4, 1e-3, 3e-3, 1e-2),
    ranks: Iterable[int] = (4, 16, 64),
) -> StudyFolder:
    """Ranks by learning rates; two pruned, one of each failure, one duplicate, one unfinished."""
    study, draw = make_study(path), np.random.default_rng(0)
    number = -1
    for number, (rank, rate) in enumerate(itertools.product(ranks, rates)):
        config = make_config(number, path.name, lora__r=rank, training__learning_rate=rate)
        value = loss(rank, rate) + noise * draw.standard_normal()
        pruned = rate == 1e-5 and rank != 4
        add_trial(study, config, value + pruned, "pruned" if pruned else "complete",
                  30 if pruned else STEPS, lane=number % 2)  # fmt: skip
    causes = [
        Cause(kind="diverged", message="eval loss is nan at step 20\nmore", step=20),
        Cause(kind="out_of_memory", message="Allocation failed for size::42"),
    ]
    for cause in causes:
        number += 1
        config = make_config(number, path.name, lora__r=64, training__learning_rate=0.1 + number)
        add_trial(study, config, None, "failed", 20, cause)
    repeated = make_config(number + 1, path.name, lora__r=4, training__learning_rate=1e-4)
    add_trial(study, repeated, None, "duplicate", duplicate_of=1)
    TrialFolder.create(
        study.trial(number + 2).path,
        make_config(number + 2, path.name, lora__r=4, training__learning_rate=2e-4),
    )
    return study


def seed_study(
    path: Path,
    means: Mapping[int, float],
    seeds: int = 5,
    noise: float = 0.01,
    shared: float = 0.0,
    random: int = 0,
) -> StudyFolder:
    """Each rank repeated over shared seeds: its mean, a seed effect that all share, and noise."""
    study, draw = make_study(path), np.random.default_rng(random)
    effects = shared * draw.standard_normal(seeds)
    for number, (rank, seed) in enumerate(itertools.product(means, range(seeds))):
        config = make_config(number, path.name, lora__r=rank, training__seed=seed)
        value = means[rank] + effects[seed] + noise * draw.standard_normal()
        add_trial(study, config, float(value))
    return study


def zero_study(path: Path, drift: float = 0.0, device: str = "hpu") -> StudyFolder:
    """Stages 0 to 3 of one configuration; stage 3 drifts from the others by `drift`."""
    study = make_study(path, {**SPEC, "space": {"zero_stage": {"choices": [0, 1, 2, 3]}}})
    for stage in range(4):
        config = make_config(stage, path.name, zero_stage=stage)
        loss = 2.5 + (drift if stage == 3 else 1e-7 * stage)
        add_trial(study, config, loss, seconds_a_step=0.1 + 0.05 * stage,
                  memory=900_000_000 - 200_000_000 * stage, device=device)  # fmt: skip
    return study


def charts(html: str) -> dict[str, dict]:
    """The charts of a page by key, as Plotly gets them."""
    found = re.findall(
        r'<script type="application/json" id="data-(\w+)">(.*?)</script>', html, re.DOTALL
    )
    return {key: json.loads(text) for key, text in found}
