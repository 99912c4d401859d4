"""Passes over the base model as CUDA graphs, captured once per shape and replayed.

A pass is a forward of one batch, in training with its backward. At the batch sizes that LoRA is
tuned with, a GPU waits for its host: a pass is thousands of small kernels, each launched from
Python. A graph launches them all at once. It reads its inputs where they were at capture, so each
graph has input tensors of its own, into which batches are copied.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

import torch

from trial.store import failure_kinds

logger = logging.getLogger(__name__)

Inputs = dict[str, torch.Tensor]
"""Input tensors of a pass by name: all in which passes of one kind differ."""
PassFunction = Callable[[Inputs], torch.Tensor]
"""A pass as a function: inputs on the device to one output tensor."""
Capture = Callable[[Callable[[], torch.Tensor], Any], tuple[Any, torch.Tensor]]
"""`trial.devices.device.Device.record`: a function, and a graph whose memory pool is shared, to a
graph with `replay()` and the function's output."""


@dataclass(slots=True)
class _CapturedGraph:
    graph: Any
    inputs: Inputs
    output: torch.Tensor


@dataclass(slots=True)
class GraphRunner:
    """Runs passes on a device, as graphs where it can capture them."""

    device: torch.device
    capture: Capture | None
    """None: every pass is launched kernel by kernel."""
    warmup_runs: int = 2
    """Passes of a shape before it is captured: libraries choose their kernels in the first ones,
    and rare shapes are not worth a graph."""
    max_graphs: int = 64
    """Maximum number of graphs."""
    _runs: dict[Hashable, int] = field(default_factory=dict)
    _graphs: dict[Hashable, _CapturedGraph] = field(default_factory=dict)

    def run(self, kind: str, inputs: Inputs, body: PassFunction) -> torch.Tensor:
        """Run `body`, replaying a captured CUDA graph when the shapes are known.

        Args:
            kind: Passes of one kind whose inputs have equal names and shapes do the same.
            inputs: On the host.
            body: The pass.

        Returns:
            The output of `body`; later replays do not overwrite it.
        """
        if self.capture is None:
            return body(self._to_device(inputs))
        key = (kind, *((name, tensor.shape) for name, tensor in sorted(inputs.items())))
        graph = self._graphs.get(key)
        if graph is None:
            self._runs[key] = self._runs.get(key, 0) + 1
            if self._runs[key] <= self.warmup_runs or len(self._graphs) == self.max_graphs:
                return body(self._to_device(inputs))
            graph = self._captured(self.capture, key, inputs, body)
            if graph is None:
                return body(self._to_device(inputs))
        for name, tensor in inputs.items():
            graph.inputs[name].copy_(tensor, non_blocking=True)
        graph.graph.replay()
        return graph.output.clone()

    def drop_graphs(self) -> bool:
        """Free all graphs and capture no more; returns whether capturing was on until now."""
        could, self.capture = self.capture is not None, None
        self._graphs.clear()
        return could

    def _captured(
        self, capture: Capture, key: Hashable, inputs: Inputs, body: PassFunction
    ) -> _CapturedGraph | None:
        """Capture a graph; None if that fails, after which no pass is captured any more."""
        own = self._to_device(inputs)
        last = next(reversed(self._graphs.values()), None)
        try:
            graph, output = capture(lambda: body(own), last.graph if last else None)
        except Exception as error:
            why = failure_kinds.cause_of(error, None).message
            logger.warning("passes are launched kernel by kernel: %s", why)
            self.drop_graphs()
            return None
        self._graphs[key] = captured = _CapturedGraph(graph, own, output)
        return captured

    def _to_device(self, inputs: Inputs) -> Inputs:
        return {name: tensor.to(self.device, non_blocking=True) for name, tensor in inputs.items()}
