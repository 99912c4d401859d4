"""Check the models, data and devices that a sweep may use, before any worker starts."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence

from sweep.loading.keys import is_at_or_below
from sweep.planning import memory_check
from sweep.spec.grid import variants
from sweep.spec.hpu_groups import GROUP_SIZES, hpus_per_node
from sweep.spec.space import Space
from sweep.spec.spec import SweepSpec
from trial.config.errors import ConfigError, Problem
from trial.config.trial_config import TrialConfig, parse
from trial.preflight.checks import KEYS_AFTER_READING, check_trial, rank_problems

PREFLIGHT_KEYS = (
    "model",
    "data",
    "deepspeed",
    "device",
    "lora.target_modules",
    "lora.modules_to_save",
    "training.optim",
    "training.loraplus_lr_ratio",
    "zero_stage",
)
"""Parameters that the preflight depends on; others cannot change its result."""

VARIANTS = 50
"""At most so many different combinations of them are checked."""


def preflight(spec: SweepSpec, here: bool = True, *, planning: bool = False) -> list[Problem]:
    """Check the model, the data, the device and the memory of every configuration.

    Args:
        spec: The sweep.
        here: Whether trials run on this machine; elsewhere, the device is not looked for.
        planning: Do not refuse a model or a device that is only missing on this machine.

    Returns:
        What is only missing on this machine.

    Raises:
        ConfigError: every mistake at once.
    """
    found: dict[Problem, None] = {}
    absent: dict[Problem, None] = {}
    for config in _variants(spec):
        seen = check_trial(config, here=here)
        found |= dict.fromkeys(seen.problems)
        absent |= dict.fromkeys(seen.missing_here)
    found |= dict.fromkeys([*_rank_problems(spec, here), *_mode_problems(spec)])
    found |= dict.fromkeys(memory_check.problems(spec, here))
    if refused := [*found, *([] if planning else absent)]:
        raise ConfigError(refused)
    return list(absent)


def preflight_sound_sections(spec: SweepSpec, problems: Sequence[Problem]) -> list[Problem]:
    """Further problems of the model and the data, for a sweep file that is refused anyway.

    Checks only the sections of `base` that have no problem so far and are not searched.
    """
    if any(problem.key in ("", "base") for problem in problems):
        return []
    excluded = [problem.key.partition(".")[2] for problem in problems]
    excluded += [
        path for path in spec.space if any(is_at_or_below(path, name) for name in PREFLIGHT_KEYS)
    ]
    sound = {
        name: value
        for name, value in spec.base.items()
        if not any(is_at_or_below(path, name) for path in excluded)
    }
    # Modules and lengths cannot be checked without the model they belong to.
    checked = {"model", "data", "lora", "deepspeed", "zero_stage"} if "model" in sound else {"data"}
    content = {name: value for name, value in sound.items() if name in checked}
    if checked == {"data"} and isinstance(content.get("data"), Mapping):
        content["data"] = {k: v for k, v in content["data"].items() if k not in KEYS_AFTER_READING}
    try:
        config = parse(content)
    except ConfigError:
        return []
    outcome = check_trial(config, here=False)
    return [*outcome.problems, *outcome.missing_here]


def _mode_problems(spec: SweepSpec) -> Iterator[Problem]:
    """Lazy or eager mode is set before a worker's Python starts, so all trials share it."""
    if spec.varies("training.use_lazy_mode"):
        rule = "cannot be searched: a worker is lazy or eager from its start; make two sweeps"
        yield Problem("training.use_lazy_mode", rule)


def _rank_problems(spec: SweepSpec, here: bool) -> Iterator[Problem]:
    """Why a trial cannot use the number of devices that the sweep file gives it."""
    count, space = spec.resources.devices_per_trial, Space.of(spec)
    for values in itertools.islice(variants(space, ("device", "zero_stage")), VARIANTS):
        config = space.configure_values(values)
        packed = config.model_copy(update={"packed": spec.resources.pack != 1})
        yield from rank_problems(packed, count, here=here)
        if config.device == "hpu" and hpus_per_node(count) is None:
            sizes = ", ".join(map(str, GROUP_SIZES))
            largest = GROUP_SIZES[-1]
            rule = f"{sizes} or a multiple of {largest}: the groups in which HPUs work together"
            yield Problem("resources.devices_per_trial", rule, str(count))


def _variants(spec: SweepSpec) -> Iterator[TrialConfig]:
    space = Space.of(spec)
    seen: set[str] = set()
    for values in variants(space, PREFLIGHT_KEYS):
        config = space.configure_values(values)
        sections = {"model", "data", "deepspeed", "device", "lora", "zero_stage"}
        optimizer = [config.training.get(name) for name in ("optim", "loraplus_lr_ratio")]
        key = config.model_dump_json(include=sections) + str(optimizer)
        if key not in seen and len(seen) < VARIANTS:
            seen.add(key)
            yield config
