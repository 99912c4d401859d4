"""Estimate what a sweep will cost, in device-hours and hours, from one measured profile."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from sweep.spec.grid import grid_size, variants
from sweep.spec.space import Space
from sweep.spec.spec import SweepSpec
from trial import trust
from trial.config.trial_config import TrialConfig
from trial.devices.detect import usable_cores
from trial.devices.environment import process_environment
from trial.store.folders import StudyFolder, TrialFolder
from trial.store.records import Result

PROFILE_STEPS = 4
"""Optimizer steps of a profile; the first one, with its compilation, is counted apart."""

PRUNED_SHARE = 0.6
"""Assumed share of trials that a pruner stops early, for the low end of the range."""

PRUNED_AT = 1 / 3
"""Assumed share of its steps that a pruned trial makes, for the low end of the range."""

SPREAD = 1.25
"""Assumed factor by which trials take longer than the profile, for the high end of the range."""


@dataclass(frozen=True, slots=True)
class Profile:
    """Seconds that the parts of one trial take."""

    startup: float
    """Once per worker."""
    fixed: float
    """Once per trial: model, data, first step, saving."""
    step: float
    """Each optimizer step after the first."""
    evaluation: float
    source: str
    """Where the profile comes from, in words."""

    def trial_seconds(self, steps: int, evaluations: int) -> float:
        """Seconds of a whole trial on a warm worker."""
        return self.fixed + steps * self.step + evaluations * self.evaluation


@dataclass(frozen=True, slots=True)
class Estimate:
    """Cost of a whole sweep as (low, high): low with pruning, high without it and with SPREAD."""

    trials: tuple[int, int]
    """Fewest and most; equal where their number is known."""
    workers: int
    devices: int
    """Devices of each worker."""
    device_hours: tuple[float, float]
    hours: tuple[float, float]
    by_time: bool = False
    """Whether time alone bounds the number of trials."""


def estimate(spec: SweepSpec, profile: Profile, steps: int, workers: int) -> Estimate | None:
    """The cost of the trials a sweep plans, all of `steps` optimizer steps.

    Where time alone bounds a sweep, that is its cost, and the number of trials is estimated.

    Args:
        spec: The sweep.
        profile: Seconds of one trial.
        steps: Optimizer steps of a trial.
        workers: Jobs that run at once.

    Returns:
        None where neither a number of trials nor time bounds the sweep.
    """
    trials = known_trials(spec)
    if trials is None:
        return _estimate_by_time(spec, profile, steps, workers)
    repeats = min(spec.confirmed_count(), trials) * (spec.confirm.seeds - 1) if spec.confirm else 0
    whole = profile.trial_seconds(steps, evaluations_of(spec, steps))
    share = _share_with_pruning(spec)
    low, high = trials * whole * share + repeats * whole, (trials + repeats) * whole * SPREAD
    devices = spec.resources.devices_per_trial
    used = min(workers, trials)
    both = [(seconds + used * profile.startup) / 3600 for seconds in (low, high)]
    return Estimate(
        trials=(trials + repeats,) * 2,
        workers=used,
        devices=devices,
        device_hours=(both[0] * devices, both[1] * devices),
        hours=(both[0] / used, both[1] / used),
    )


def _share_with_pruning(spec: SweepSpec) -> float:
    """Assumed share of the seconds of whole trials that trials take with the sweep's pruner."""
    return 1.0 if spec.pruner.name == "none" else 1 - PRUNED_SHARE * (1 - PRUNED_AT)


def _estimate_by_time(
    spec: SweepSpec, profile: Profile, steps: int, workers: int
) -> Estimate | None:
    """The cost of a sweep that time alone bounds; None where nothing does.

    Time ends a sweep without the repeats of `confirm`.
    """
    devices, stop = spec.resources.devices_per_trial, spec.stop
    held = None if stop.device_hours is None else stop.device_hours / (workers * devices)
    hours = min((bound for bound in (stop.hours, held) if bound is not None), default=None)
    if hours is None:
        return None
    whole = profile.trial_seconds(steps, evaluations_of(spec, steps))
    return Estimate(
        trials=(
            trials_within(hours, whole * SPREAD, profile, workers),
            trials_within(hours, whole * _share_with_pruning(spec), profile, workers),
        ),
        workers=workers,
        devices=devices,
        device_hours=(hours * workers * devices,) * 2,
        hours=(hours, hours),
        by_time=True,
    )


def trials_within(hours: float, trial_seconds: float, profile: Profile, workers: int) -> int:
    """Trials of a length that workers complete in time, the start of the workers left out."""
    return workers * int(max(0.0, hours * 3600 - profile.startup) / trial_seconds)


def known_trials(spec: SweepSpec) -> int | None:
    """Trials that will run at most, by the stop condition and the space; None when neither says."""
    try:
        size = grid_size(Space.of(spec))
    except ValueError:
        size = None
    return min((count for count in (spec.stop.trials, size) if count is not None), default=None)


def base_models(spec: SweepSpec) -> int:
    """Number of different base models that the search may draw."""
    name = "model.name_or_path"
    return len({values.get(name) for values in variants(Space.of(spec), (name,))})


def evaluations_of(spec: SweepSpec, steps: int) -> int:
    """Evaluations of one whole trial."""
    config = base_config(spec)
    training = config.training
    if config.evaluation.steps:
        before = sum(step < steps for step in config.evaluation.steps)
        return before + 1 + bool(training.get("eval_on_start"))
    every = training["eval_steps"] or steps
    interval = every if every >= 1 else max(1.0, every * steps)
    if training["eval_strategy"] != "steps":
        return max(1, round(training["num_train_epochs"]))
    return max(1, int(steps // interval)) + bool(training.get("eval_on_start"))


def steps_of(spec: SweepSpec) -> int:
    """Optimizer steps of one whole trial."""
    config = base_config(spec)
    training = config.training
    if training["max_steps"] > 0:
        return int(training["max_steps"])
    from trial.data.split import read_split

    rows = len(read_split(config.data).train)
    batch = training["per_device_train_batch_size"] * training["gradient_accumulation_steps"]
    batch *= spec.resources.devices_per_trial
    return max(1, int(training["num_train_epochs"] * (rows // batch or 1)))


def local_workers(spec: SweepSpec) -> int:
    """Jobs this machine's cores can hold at once; other devices are Ray's to count."""
    cores = usable_cores()
    each = spec.resources.cpus_per_trial * spec.resources.devices_per_trial
    return max(1, min(cores // each, spec.resources.concurrency or cores))


def base_config(spec: SweepSpec) -> TrialConfig:
    """The first configuration of the space, which stands for all of them."""
    space = Space.of(spec)
    return space.configure_values(next(iter(variants(space, []))))


def earlier_profile(spec: SweepSpec, runs: Path) -> Profile | None:
    """The profile of an earlier study with the same model, data and batch; None without one."""
    wanted = _cost_key(base_config(spec))
    for record in sorted(runs.glob("*/study.json"), key=os.path.getmtime, reverse=True):
        study = StudyFolder(record.parent)
        alike = [done for config, done in _complete(study) if _cost_key(config) == wanted]
        if alike:
            return profile_of(alike, f"study {study.name}, {len(alike)} trials")
    return None


Done = tuple[Result, int]
"""A complete trial's result, and how many evaluations it had."""


def _complete(study: StudyFolder) -> Iterator[tuple[TrialConfig, Done]]:
    for _, folder in study.all_trials():
        try:
            result = folder.read_result()
            if result and result.state == "complete":
                yield folder.read_config(), (result, len(folder.read_evaluations()))
        except (OSError, ValueError):
            continue


def _cost_key(config: TrialConfig) -> str:
    """Settings that the cost of a step depends on most, as a comparable string."""
    keys = ("per_device_train_batch_size", "gradient_accumulation_steps", "bf16")
    batch = {key: config.training.get(key) for key in keys}
    parts = config.model_dump(mode="json", include={"model", "data", "device"})
    return json.dumps([parts, batch], sort_keys=True)


def profile_of(done: list[Done], source: str) -> Profile:
    """The median times of complete trials; of start-up the longest, that of a cold worker."""
    costs = [(result.seconds, max(1, result.steps - 1), max(1, count)) for result, count in done]
    return Profile(
        startup=max(seconds.startup for seconds, _, _ in costs),
        fixed=median(seconds.load + seconds.first_step + seconds.save for seconds, _, _ in costs),
        step=median(seconds.train / steps for seconds, steps, _ in costs),
        evaluation=median(seconds.eval / count for seconds, _, count in costs),
        source=source,
    )


def measure(spec: SweepSpec) -> Profile:
    """Train the first configuration for a few steps, in a process and a folder of its own.

    Raises:
        ValueError: that trial fails; says why.
    """
    config = base_config(spec)
    short = {"max_steps": PROFILE_STEPS, "eval_steps": PROFILE_STEPS, "eval_on_start": False}
    config = config.model_copy(update={"training": {**config.training, **short}})
    threads = str(spec.resources.cpus_per_trial)
    variables = {**os.environ, **process_environment(config.device), "OMP_NUM_THREADS": threads}
    with tempfile.TemporaryDirectory() as scratch:
        folder = TrialFolder.create(Path(scratch, "profile"), config)
        # The sweep file that the user has named says which code runs.
        words = [sys.executable, "-m", "trial", str(folder.path), trust.FLAG]
        done = subprocess.run(words, capture_output=True, text=True, env=variables)
        result = folder.read_result()
        if result is None or result.state != "complete":
            cause = result.cause.message if result and result.cause else done.stderr.strip()[-500:]
            raise ValueError(f"the profiled trial failed: {cause}")
        return profile_of([(result, 1)], f"{PROFILE_STEPS} steps just measured")
