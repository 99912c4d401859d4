"""Before any worker starts: does every model and dataset a sweep may use exist and fit?"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence

from sweep.loading.raw_sweep import is_at_or_below
from sweep.planning import memory_check
from sweep.spec.grid import variants
from sweep.spec.hpu_groups import GROUP_SIZES, hpus_per_node
from sweep.spec.space import Space
from sweep.spec.spec import SweepSpec
from trial.config.errors import ConfigError, Problem
from trial.config.trial_config import TrialConfig, parse
from trial.preflight.checks import NOT_READ, rank_problems, survey

TOUCHES = ("model", "data", "deepspeed", "device", "lora.target_modules", "lora.modules_to_save")
"""What the preflight looks at; other parameters cannot change its answer."""

VARIANTS = 50
"""So many different combinations of these are looked at."""


def preflight(spec: SweepSpec, here: bool = True, *, planning: bool = False) -> list[Problem]:
    """Look at the model, the data, the device and the memory of every configuration.

    `here` says whether trials run on this machine; elsewhere, the device is not looked for. When
    `planning`, what is only not on this machine is returned instead of refused.

    Raises:
        ConfigError: every mistake at once.
    """
    found: dict[Problem, None] = {}
    absent: dict[Problem, None] = {}
    for config in _variants(spec):
        seen = survey(config, here=here)
        found |= dict.fromkeys(seen.problems)
        absent |= dict.fromkeys(seen.absent)
    found |= dict.fromkeys([*_rank_problems(spec, here), *_mode_problems(spec)])
    found |= dict.fromkeys(memory_check.problems(spec, here))
    if refused := [*found, *([] if planning else absent)]:
        raise ConfigError(refused)
    return list(absent)


def preflight_sound_sections(spec: SweepSpec, problems: Sequence[Problem]) -> list[Problem]:
    """What more is wrong with the model and the data of a sweep file that is to be refused anyway.

    Only sections that are sound and not searched are looked at.
    """
    if any(problem.key in ("", "base") for problem in problems):
        return []
    suspect = [problem.key.partition(".")[2] for problem in problems]
    suspect += [path for path in spec.space if any(is_at_or_below(path, name) for name in TOUCHES)]
    sound = {
        name: value
        for name, value in spec.base.items()
        if not any(is_at_or_below(path, name) for path in suspect)
    }
    # Without its model, what is said of modules and lengths has nothing to be held against.
    looked = {"model", "data", "lora", "deepspeed", "zero_stage"} if "model" in sound else {"data"}
    content = {name: value for name, value in sound.items() if name in looked}
    if looked == {"data"} and isinstance(content.get("data"), Mapping):
        content["data"] = {k: v for k, v in content["data"].items() if k not in NOT_READ}
    try:
        config = parse(content)
    except ConfigError:
        return []
    found = survey(config, here=False)
    return [*found.problems, *found.absent]


def _mode_problems(spec: SweepSpec) -> Iterator[Problem]:
    """The bridge's mode is set before a worker's Python starts: all trials share it."""
    if spec.varies("training.use_lazy_mode"):
        rule = "cannot be searched: a worker is lazy or eager from its start; make two sweeps"
        yield Problem("training.use_lazy_mode", rule)


def _rank_problems(spec: SweepSpec, here: bool) -> Iterator[Problem]:
    """What stands against several devices for one trial."""
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
    for values in variants(space, TOUCHES):
        config = space.configure_values(values)
        key = config.model_dump_json(include={"model", "data", "deepspeed", "device", "lora"})
        if key not in seen and len(seen) < VARIANTS:
            seen.add(key)
            yield config
