"""Trials that do nothing, five reports each, as many a second as can be; the peers' Python.

python tests/bench/peers/trivial.py tune|tune-reuse|actors FOLDER --trials N
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

REPORTS = 5
VALUE = 0.5
"""Equal for all: every pruner is asked, and none prunes."""


def rates(ends: list[float], began: float) -> dict[str, float]:
    """From the clock at the start and at each trial's end."""
    steady = (len(ends) - 1) / (ends[-1] - ends[0])
    return {
        "trials_per_second": steady,
        "trials_per_second_overall": len(ends) / (ends[-1] - began),
        "seconds_to_first_trial": ends[0] - began,
    }


def objective(config: dict[str, Any]) -> None:
    """A trial of Ray Tune."""
    from ray import tune

    for step in range(1, REPORTS + 1):
        tune.report({"eval_loss": VALUE, "step": step})


def by_tune(folder: Path, trials: int, reuse: bool) -> dict[str, float]:
    """Ray Tune with OptunaSearch and ASHA; with reused actors also without loggers."""
    if reuse:
        os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    began = time.perf_counter()
    import ray
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler
    from ray.tune.search.optuna import OptunaSearch

    ends: list[float] = []

    class Watch(tune.Callback):
        def on_trial_complete(self, *_: Any, **__: Any) -> None:
            ends.append(time.perf_counter())

    import optuna

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    tune.Tuner(
        tune.with_resources(objective, {"cpu": 1}),
        param_space={
            "learning_rate": tune.loguniform(1e-5, 1e-2),
            "lora_alpha": tune.uniform(1.0, 64.0),
        },
        tune_config=tune.TuneConfig(
            search_alg=OptunaSearch(sampler=optuna.samplers.RandomSampler(seed=0)),
            scheduler=ASHAScheduler(time_attr="step", max_t=REPORTS + 1, grace_period=1),
            num_samples=trials,
            max_concurrent_trials=2,
            metric="eval_loss",
            mode="min",
            reuse_actors=reuse,
        ),
        run_config=tune.RunConfig(
            storage_path=str(folder / "tune"), verbose=0, callbacks=[Watch()]
        ),
    ).fit()
    return rates(ends, began)


class Runner:
    """A bare Ray actor: one report a call."""

    def report(self, params: dict[str, float], step: int) -> float:
        return VALUE


def by_actors(folder: Path, trials: int) -> dict[str, float]:
    """Two bare Ray actors; the driver asks, reports and tells a study on a journal file."""
    began = time.perf_counter()
    import optuna
    import ray
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    storage = JournalStorage(JournalFileBackend(str(folder / "journal.log")))
    study = optuna.create_study(
        storage=storage,
        sampler=optuna.samplers.RandomSampler(seed=0),
        pruner=optuna.pruners.MedianPruner(),
    )
    actors = [ray.remote(Runner).options(num_cpus=1).remote() for _ in range(2)]
    waiting: dict[Any, tuple[Any, Any, dict[str, float], int]] = {}
    asked, ends = 0, []

    def start(actor: Any) -> None:
        nonlocal asked
        asked += 1
        trial = study.ask()
        params = {
            "learning_rate": trial.suggest_float("learning_rate", 1e-5, 1e-2, log=True),
            "lora_alpha": trial.suggest_float("lora_alpha", 1.0, 64.0),
        }
        waiting[actor.report.remote(params, 1)] = actor, trial, params, 1

    for actor in actors:
        start(actor)
    while waiting:
        (ready,), _ = ray.wait(list(waiting))
        actor, trial, params, step = waiting.pop(ready)
        value = ray.get(ready)
        trial.report(value, step)
        if not trial.should_prune() and step < REPORTS:
            waiting[actor.report.remote(params, step + 1)] = actor, trial, params, step + 1
            continue
        study.tell(trial, value)
        ends.append(time.perf_counter())
        if asked < trials:
            start(actor)
    return rates(ends, began)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("how", choices=["tune", "tune-reuse", "actors"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--trials", type=int, required=True)
    asked = parser.parse_args()
    if asked.how == "actors":
        told = by_actors(asked.folder, asked.trials)
    else:
        told = by_tune(asked.folder, asked.trials, asked.how == "tune-reuse")
    print(json.dumps(told))


if __name__ == "__main__":
    main()
