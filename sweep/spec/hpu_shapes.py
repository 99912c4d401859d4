"""Graph shapes on HPU: dimensions that change them, their number, and trials grouped by shape.

A shape that is new to a device costs a compilation (about half a minute for the first steps of a 7B
model, by Gaudi's documentation); equal shapes reuse what an earlier trial of the study compiled.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from sweep.spec.dimension import Choices, Derived, Dimension, Range
from sweep.spec.spec import SweepSpec
from trial.devices.detect import has_gaudi_software

SHAPE_PATHS = (
    "model",
    "data.max_length",
    "lora.r",
    "lora.target_modules",
    "lora.use_dora",
    "lora.modules_to_save",
    "training.per_device_train_batch_size",
    "training.per_device_eval_batch_size",
    "training.gradient_accumulation_steps",
    "training.gradient_checkpointing",
    "training.bf16",
    "training.torch_compile",
    "zero_stage",
)
"""Configuration paths that change the shape of a trial's graphs."""

MAX_SILENT_SHAPES = 8
"""Up to so many shapes, the lint gives no advice about compilations."""

T = TypeVar("T")


def is_for_hpu(spec: SweepSpec) -> bool:
    """Whether the trials of a sweep train on HPU, as far as this machine can tell."""
    device = spec.base.get("device", "auto")
    return device == "hpu" or (device == "auto" and has_gaudi_software())


def value_counts(spec: SweepSpec) -> dict[str, int | None]:
    """The number of values of every dimension that changes shapes; None for one with no end."""
    dimensions = {**spec.variables, **spec.space}
    to_visit = [name for name in spec.space if _changes_shape(name)]
    found: dict[str, int | None] = {}
    while to_visit:
        name = to_visit.pop(0)
        dimension = dimensions.get(name, ())
        if name in found or not dimension:
            continue
        for branch in dimension:
            to_visit += [*branch.when, *(branch.names if isinstance(branch, Derived) else ())]
        found[name] = _count_values(dimension)
    return {name: count for name, count in found.items() if count != 1}


def _changes_shape(name: str) -> bool:
    return any(name == path or name.startswith(f"{path}.") for path in SHAPE_PATHS)


def _count_values(dimension: Dimension) -> int | None:
    """The number of values of a dimension over all its branches; None when there is no end."""
    total = 0
    for branch in dimension:
        count = branch.count() if isinstance(branch, Choices | Range) else 1
        if count is None:
            return None
        total += count
    return total


def grouped_by_shape(points: Iterable[T], values: Callable[[T], Mapping[str, Any]]) -> list[T]:
    """The points with those of equal shape next to each other, else in their order.

    Args:
        points: Points of the search space.
        values: Gives the configuration values of a point by dotted path.
    """
    groups: dict[str, list[T]] = {}
    for point in points:
        shape = {name: value for name, value in values(point).items() if _changes_shape(name)}
        groups.setdefault(json.dumps(shape, sort_keys=True, default=str), []).append(point)
    return [point for group in groups.values() for point in group]
