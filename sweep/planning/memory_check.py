"""Does every trial of a sweep fit its device? The heaviest ones are held against it."""

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
from trial.preflight.memory_fit import Fit, fit

WEIGHS = (
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
"""What a trial's memory goes by; of ranges, the ends."""

VARIANTS = 200
"""So many combinations of these are looked at."""


LIGHT = 0.1
"""Below this share of its device nobody wants to read a trial's arithmetic."""


@dataclass(frozen=True, slots=True)
class Heavy:
    """One configuration of a sweep and its memory."""

    drawn: str
    """What it draws, in words."""
    fit: Fit

    def lines(self) -> list[str]:
        """The arithmetic with its heading."""
        where = f" ({self.drawn})" if self.drawn else ""
        return [f"memory of the heaviest trial{where}:", *(f"  {x}" for x in self.fit.lines())]


def heaviest(spec: SweepSpec, here: bool = True) -> Heavy | None:
    """The configuration that takes most; None where no model's shapes are known."""
    found = list(_each(spec, here))
    return max(found, key=lambda heavy: heavy.fit.estimate.certain, default=None)


def problems(spec: SweepSpec, here: bool = True) -> list[Problem]:
    """Why some trial surely cannot fit: the heaviest stands for all."""
    heavy = heaviest(spec, here)
    problem = heavy.fit.problem() if heavy is not None else None
    return [] if problem is None else [problem]


def lines(spec: SweepSpec, here: bool = True) -> list[str]:
    """The arithmetic for a plan; nothing where there is room by far."""
    heavy = heaviest(spec, here)
    if heavy is None or _is_light(heavy.fit):
        return []
    return [*heavy.lines(), *_warnings(heavy)]


def _is_light(found: Fit) -> bool:
    return found.capacity is not None and found.estimate.likely < LIGHT * found.capacity.bytes


def _warnings(heavy: Heavy) -> Iterator[str]:
    if heavy.fit.near and heavy.fit.capacity is not None:
        share = heavy.fit.estimate.likely / heavy.fit.capacity.bytes
        yield (
            f"  warning: that is likely {share:.0%} of {heavy.fit.capacity.bytes / GIB:.0f} GiB:"
            " gradient checkpointing, a smaller batch with accumulation, or ZeRO leave more room"
        )


def _each(spec: SweepSpec, here: bool) -> Iterator[Heavy]:
    space, resources = Space.of(spec), spec.resources
    seen: set[str] = set()
    for values in itertools.islice(variants(space, WEIGHS, limit=VARIANTS), VARIANTS):
        try:
            config = space.configure_values(values)
            key = config.fingerprint()
            if key in seen:
                continue
            seen.add(key)
            found = fit(
                config,
                resources.devices_per_trial,
                given_gib=resources.memory_per_device_gb,
                here=here,
            )
        except (ConfigError, ValueError):
            # Not a valid configuration, or a file that the preflight has its own word for.
            continue
        if found is not None:
            weighed = {name: value for name, value in values.items() if _weighs(name)}
            yield Heavy(params_text(weighed), found)


def _weighs(path: str) -> bool:
    return path != "lora.lora_alpha" and any(path == p or path.startswith(f"{p}.") for p in WEIGHS)
