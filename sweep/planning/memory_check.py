"""Check that the trial with the largest estimated memory fits its device."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from sweep.spec.grid import variants
from sweep.spec.space import Space
from sweep.spec.spec import SweepSpec
from sweep.spec.text import params_text
from trial.config.errors import ConfigError, Problem
from trial.preflight.memory_estimate import GIB
from trial.preflight.memory_fit import MemoryFit, memory_fit

MEMORY_KEYS = (
    "model",
    "data.max_length",
    "lora",
    "training.per_device_train_batch_size",
    "training.per_device_eval_batch_size",
    "training.gradient_checkpointing",
    "training.optim",
    "training.bf16",
    "zero_stage",
    "deepspeed",
    "device",
)
"""Parameters that a trial's memory depends on; of ranges, both ends are estimated."""

VARIANTS = 200
"""At most so many combinations of them are estimated."""

SMALL_SHARE = 0.1
"""Below this share of the device's memory the estimate is not worth printing."""


@dataclass(frozen=True, slots=True)
class TrialMemory:
    """The estimated memory of one configuration of a sweep."""

    params: str
    """Its parameters that the memory depends on, as text."""
    fit: MemoryFit

    def lines(self) -> list[str]:
        """The estimate, part by part, below a heading."""
        params = f" ({self.params})" if self.params else ""
        return [f"memory of the heaviest trial{params}:", *(f"  {x}" for x in self.fit.lines())]


def largest(spec: SweepSpec, here: bool = True) -> TrialMemory | None:
    """The configuration with the largest certain memory; None where no model's shapes are known."""
    memories = list(_estimates(spec, here))
    return max(memories, key=lambda memory: memory.fit.estimate.certain, default=None)


def problems(spec: SweepSpec, here: bool = True) -> list[Problem]:
    """The refusal of a sweep whose largest trial certainly does not fit."""
    memory = largest(spec, here)
    problem = memory.fit.problem() if memory is not None else None
    return [] if problem is None else [problem]


def lines(spec: SweepSpec, here: bool = True) -> list[str]:
    """The estimate in lines for a plan; empty where it is a small share of the device."""
    memory = largest(spec, here)
    if memory is None or _is_small(memory.fit):
        return []
    return [*memory.lines(), *_warnings(memory)]


def _is_small(found: MemoryFit) -> bool:
    return found.capacity is not None and found.estimate.likely < SMALL_SHARE * found.capacity.bytes


def _warnings(memory: TrialMemory) -> Iterator[str]:
    if memory.fit.nearly_full and memory.fit.capacity is not None:
        share = memory.fit.estimate.likely / memory.fit.capacity.bytes
        yield (
            f"  warning: that is likely {share:.0%} of {memory.fit.capacity.bytes / GIB:.0f} GiB:"
            " gradient checkpointing, a smaller batch with accumulation, or ZeRO leave more room"
        )


def _estimates(spec: SweepSpec, here: bool) -> Iterator[TrialMemory]:
    space, resources = Space.of(spec), spec.resources
    seen: set[str] = set()
    for values in itertools.islice(variants(space, MEMORY_KEYS, limit=VARIANTS), VARIANTS):
        try:
            config = space.configure_values(values)
            key = config.fingerprint()
            if key in seen:
                continue
            seen.add(key)
            found = memory_fit(
                config,
                resources.devices_per_trial,
                device_gib=resources.memory_per_device_gb,
                here=here,
            )
        except (ConfigError, ValueError):
            # Not a valid configuration, or a missing file: the preflight reports both.
            continue
        if found is not None:
            relevant = {name: value for name, value in values.items() if _affects_memory(name)}
            yield TrialMemory(params_text(relevant), found)


def _affects_memory(path: str) -> bool:
    return path != "lora.lora_alpha" and any(
        path == p or path.startswith(f"{p}.") for p in MEMORY_KEYS
    )
