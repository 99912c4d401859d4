"""Passes over the base model, recorded once for each shape and played back where a device can.

At the batch sizes that LoRA is tuned with, a GPU waits for its host: a pass is thousands of small
kernels, each launched by Python. A recording launches them as one. What a pass reads must lie where
it lay before, so a recording has tensors of its own, into which each batch is copied.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

import torch

from trial.store import failure_kinds

logger = logging.getLogger(__name__)

Given = dict[str, torch.Tensor]
"""What differs from one pass to the next."""
Body = Callable[[Given], torch.Tensor]
Record = Callable[[Callable[[], torch.Tensor], Any], tuple[Any, torch.Tensor]]
"""As `trial.devices.device.Device.record`."""

WARM = 2
"""Passes of a shape before it is recorded: libraries choose their kernels, and rare shapes are not
worth it."""
MOST = 64
"""Recordings that are kept."""


@dataclass(slots=True)
class _Recording:
    graph: Any
    given: Given
    found: torch.Tensor


@dataclass(slots=True)
class GraphRunner:
    """Runs passes on a device; `record` is None where it cannot record."""

    device: torch.device
    record: Record | None
    _seen: dict[Hashable, int] = field(default_factory=dict)
    _recordings: dict[Hashable, _Recording] = field(default_factory=dict)

    def run(self, kind: str, given: Given, body: Body) -> torch.Tensor:
        """What `body` finds in `given`, which lies on the host, once it is on the device.

        Passes of one kind and of equal shapes must do the same.
        """
        if self.record is None:
            return body(self._moved(given))
        key = (kind, *((name, tensor.shape) for name, tensor in sorted(given.items())))
        recording = self._recordings.get(key)
        if recording is None:
            self._seen[key] = self._seen.get(key, 0) + 1
            if self._seen[key] <= WARM or len(self._recordings) == MOST:
                return body(self._moved(given))
            recording = self._recorded(self.record, key, given, body)
            if recording is None:
                return body(self._moved(given))
        for name, tensor in given.items():
            recording.given[name].copy_(tensor, non_blocking=True)
        recording.graph.replay()
        return recording.found.clone()

    def forget(self) -> bool:
        """Drop all recordings and make no more; whether that is news."""
        was, self.record = self.record is not None, None
        self._recordings.clear()
        return was

    def _recorded(
        self, record: Record, key: Hashable, given: Given, body: Body
    ) -> _Recording | None:
        """A new recording; None, from now on, where that fails."""
        own = self._moved(given)
        last = next(reversed(self._recordings.values()), None)
        try:
            graph, found = record(lambda: body(own), last.graph if last else None)
        except Exception as error:
            why = failure_kinds.cause_of(error, None).message
            logger.warning("passes are launched kernel by kernel: %s", why)
            self.forget()
            return None
        self._recordings[key] = recording = _Recording(graph, own, found)
        return recording

    def _moved(self, given: Given) -> Given:
        return {name: tensor.to(self.device, non_blocking=True) for name, tensor in given.items()}
