"""Will it fit? A trial's estimated memory against the device it is to train on. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass

from trial.config.errors import Problem
from trial.config.trial_config import TrialConfig
from trial.devices.detect import detected_device
from trial.devices.device_memory import CARD_GIB, Capacity, device_capacity
from trial.model.known_shapes import known_settings, shapes_of
from trial.preflight.checks import MODEL_KEY, find_model
from trial.preflight.memory_estimate import GIB, NEAR, Estimate, Shapes, estimate

BLAMED = {
    "weights": MODEL_KEY,
    "gathered weights": MODEL_KEY,
    "activations": "training.per_device_train_batch_size",
    "logits": "training.per_device_train_batch_size",
}
"""The key to turn for the largest part of a sum; anything else is the adapter's rank."""


@dataclass(frozen=True, slots=True)
class Fit:
    """One trial on one device."""

    estimate: Estimate
    capacity: Capacity | None

    @property
    def refused(self) -> bool:
        """Whether what is certain is more than the device has."""
        return self.capacity is not None and self.estimate.certain > self.capacity.bytes

    @property
    def near(self) -> bool:
        """Whether what is likely comes close to it, or beyond."""
        return self.capacity is not None and self.estimate.likely > NEAR * self.capacity.bytes

    def against(self) -> str:
        """The device in words, smaller ones that could be meant included."""
        if self.capacity is None:
            return "of a device whose memory is not known; say resources.memory_per_device_gb"
        text = f"of {self.capacity.bytes / GIB:.0f} GiB ({self.capacity.what})"
        if self.capacity.assumed:
            small = [
                f"{card} has {size:g}" for card, size in CARD_GIB.items() if self._misses(size)
            ]
            text += f"; {', '.join(small)}: too small" if small else ""
        return text

    def _misses(self, gib: float) -> bool:
        return self.estimate.certain > gib * GIB

    def lines(self) -> list[str]:
        """The arithmetic, line by line, and what it is held against."""
        certain, likely = self.estimate.certain / GIB, self.estimate.likely / GIB
        verdict = f"at least {certain:.1f} GiB, likely {likely:.1f}, {self.against()}"
        return [*self.estimate.lines(), verdict]

    def problem(self) -> Problem | None:
        """Why the trial is refused; None when it may fit."""
        if not self.refused or self.capacity is None:
            return None
        largest = max(self.estimate.parts, key=lambda part: part.certain)
        key = BLAMED.get(largest.name, "lora.r")
        rule = f"a trial that fits {self.capacity.bytes / GIB:.0f} GiB ({self.capacity.what})"
        table = "".join(f"\n    {line}" for line in self.estimate.lines())
        return Problem(key, rule, f"at least {self.estimate.certain / GIB:.1f} GiB{table}")


def fit(
    config: TrialConfig, ranks: int = 1, *, given_gib: float | None = None, here: bool = True
) -> Fit | None:
    """Hold a trial against its device; None when the model's shapes are not known here.

    Raises:
        ValueError: the user's DeepSpeed configuration cannot be read.
    """
    shapes = shapes_for(config)
    device = device_for(config, here)
    if not shapes or device is None:
        return None
    found = estimate(config, shapes, ranks=ranks, fixed_shapes=device == "hpu")
    room = device_capacity(device, given_gib, here)
    if room is not None and device == "cpu" and given_gib is None:
        # The ranks of a CPU trial share one machine's memory.
        room = Capacity(room.what, room.bytes / ranks)
    return Fit(found, room)


def shapes_for(config: TrialConfig) -> Shapes | None:
    """The weights of the base model, from its settings or its files; None when neither is known."""
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
    """The kind of device; None when only another machine knows what `auto` is."""
    if config.device != "auto":
        return config.device
    return detected_device() if here else None
