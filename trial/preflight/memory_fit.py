"""Compares a trial's estimated memory with its device. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass

from trial.config.errors import Problem
from trial.config.trial_config import TrialConfig
from trial.devices.detect import detected_device
from trial.devices.device_memory import CARD_GIB, DeviceMemory, find_device_memory
from trial.model.known_shapes import known_settings, shapes_of
from trial.preflight.memory_estimate import GIB, NEARLY_FULL, MemoryEstimate, Shapes, estimate
from trial.preflight.model_checks import MODEL_KEY, find_model

KEYS_BY_PART = {
    "weights": MODEL_KEY,
    "gathered weights": MODEL_KEY,
    "activations": "training.per_device_train_batch_size",
    "logits": "training.per_device_train_batch_size",
}
"""The key that a refusal names, by the largest part of the sum; `lora.r` for all others."""


@dataclass(frozen=True, slots=True)
class MemoryFit:
    """The estimate of one trial beside the memory of its device."""

    estimate: MemoryEstimate
    capacity: DeviceMemory | None
    """None where the memory of the device is not known."""

    @property
    def too_large(self) -> bool:
        """Whether the certain part exceeds the device's memory."""
        return self.capacity is not None and self.estimate.certain > self.capacity.bytes

    @property
    def nearly_full(self) -> bool:
        """Whether the likely sum comes close to the device's memory, or exceeds it."""
        return (
            self.capacity is not None and self.estimate.likely > NEARLY_FULL * self.capacity.bytes
        )

    def device_text(self) -> str:
        """The device in words, and where its card is assumed, the cards that are too small."""
        if self.capacity is None:
            return (
                "of a device whose memory is not known; say resources.memory_per_device_gb (in GiB)"
            )
        text = f"of {self.capacity.bytes / GIB:.0f} GiB ({self.capacity.what})"
        if self.capacity.assumed:
            small = [
                f"{card} has {size:g}" for card, size in CARD_GIB.items() if self._exceeds(size)
            ]
            text += f"; {', '.join(small)}: too small" if small else ""
        return text

    def _exceeds(self, gib: float) -> bool:
        return self.estimate.certain > gib * GIB

    def lines(self) -> list[str]:
        """The estimate, part by part, and a line that compares it with the device."""
        certain, likely = self.estimate.certain / GIB, self.estimate.likely / GIB
        verdict = f"at least {certain:.1f} GiB, likely {likely:.1f}, {self.device_text()}"
        return [*self.estimate.lines(), verdict]

    def problem(self) -> Problem | None:
        """The refusal of a trial that certainly does not fit; None when it may."""
        if not self.too_large or self.capacity is None:
            return None
        largest = max(self.estimate.parts, key=lambda part: part.certain)
        key = KEYS_BY_PART.get(largest.name, "lora.r")
        rule = f"a trial that fits {self.capacity.bytes / GIB:.0f} GiB ({self.capacity.what})"
        table = "".join(f"\n    {line}" for line in self.estimate.lines())
        return Problem(key, rule, f"at least {self.estimate.certain / GIB:.1f} GiB{table}")


def memory_fit(
    config: TrialConfig, ranks: int = 1, *, device_gib: float | None = None, here: bool = True
) -> MemoryFit | None:
    """Estimate a trial's memory and look up its device's; None when either is not known here.

    Args:
        config: the trial.
        ranks: number of devices that the trial trains on.
        device_gib: memory of each device in GiB, where the user says so.
        here: whether trials run on this machine.

    Raises:
        ValueError: the user's DeepSpeed configuration cannot be read.
    """
    shapes = shapes_for(config)
    device = device_for(config, here)
    if not shapes or device is None:
        return None
    estimated = estimate(config, shapes, ranks=ranks, fixed_shapes=device == "hpu")
    capacity = find_device_memory(device, device_gib, here)
    if capacity is not None and device == "cpu" and device_gib is None:
        # The ranks of a CPU trial share one machine's memory.
        capacity = DeviceMemory(capacity.what, capacity.bytes / ranks)
    return MemoryFit(estimated, capacity)


def shapes_for(config: TrialConfig) -> Shapes | None:
    """Shapes of the base model's weights by name, from its settings or files; None if unknown."""
    name = config.model.name_or_path
    folder, _ = find_model(name, config.model.revision, MODEL_KEY, ask=False)
    try:
        settings = known_settings(name) if folder is None else folder.settings()
        if settings is not None and (known := shapes_of(settings)):
            return known
        tensors = folder.tensors() if folder is not None else {}
    except (ValueError, LookupError, OSError):
        return None
    return tensors if all(tensors.values()) else None


def device_for(config: TrialConfig, here: bool) -> str | None:
    """The kind of device; None for `auto` on another machine."""
    if config.device != "auto":
        return config.device
    return detected_device() if here else None
