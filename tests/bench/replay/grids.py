"""Full grids of recorded learning curves, and the spaces that are searched on them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sweep.driver.simulated_executor import RecordedGrid
from sweep.spec.dimension import Choices, Derived, Range
from sweep.spec.rungs import evaluated_at_rungs
from sweep.spec.spec import PrunerSpec, SamplerSpec, StopSpec, SweepSpec

CURVES = Path(__file__).resolve().parents[1] / "curves"
RANK, RATE, DROPOUT = "lora.r", "training.learning_rate", "lora.lora_dropout"
SCALE = "alpha_over_r"
RANKS = Choices(choices=(2, 4, 8, 16, 32))
MOST_TRIALS = 100


@dataclass(frozen=True)
class Grid:
    """Recorded curves, and the space that is searched on them."""

    name: str
    recorded: RecordedGrid
    drawn: Mapping[str, Choices | Range]
    alpha: str
    """What `lora_alpha` is."""

    def spec(self, sampler: SamplerSpec, pruner: PrunerSpec) -> SweepSpec:
        """A sweep of the recorded trials' length, evaluated as recorded or as its pruner wants."""
        steps = self.recorded.steps
        space: dict[str, Any] = {name: (one,) for name, one in self.drawn.items() if "." in name}
        spec = SweepSpec(
            name="replay",
            base={"training": {"max_steps": steps[-1], "eval_steps": steps[0]}},
            space={**space, "lora.lora_alpha": (Derived(expression=self.alpha),)},
            variables={name: (one,) for name, one in self.drawn.items() if "." not in name},
            sampler=sampler, pruner=pruner, stop=StopSpec(trials=MOST_TRIALS),
        )  # fmt: skip
        return evaluated_at_rungs(spec)


def grids() -> list[Grid]:
    """Both: any rate between the recorded ends, else what a sweep file would list.

    The joint one has the ranges of `spaces/lora_joint.yaml`, and the other's seconds: it was
    recorded packed, on a busy machine.
    """
    plain = RecordedGrid.read(CURVES / "tiny_llama.csv")
    joint = RecordedGrid.read(CURVES / "tiny_llama_joint.csv", costs=plain.costs)
    scale = Choices(choices=(0.5, 1, 2, 4))
    dropout = Range(type="float", low=0.0, high=0.2, step=0.05)
    return [
        Grid("rank x rate", plain, {RANK: RANKS, RATE: _rates(plain)}, "2 * lora.r"),
        Grid(
            "joint", joint, {SCALE: scale, RANK: RANKS, DROPOUT: dropout, RATE: _rates(joint)},
            f"{SCALE} * lora.r",
        ),
    ]  # fmt: skip


def _rates(recorded: RecordedGrid) -> Range:
    rates = recorded.axes[RATE]
    return Range(type="float", low=rates[0], high=rates[-1], log=True)


def target(recorded: RecordedGrid, widths: float = 1.0) -> tuple[float, float]:
    """The best cell's value on the mean of its seeds, and what is within noise of it."""
    finals = recorded.losses.min(axis=-1)
    means = finals.mean(axis=-1)
    nearest = np.argsort(means, axis=None)[:10]
    variance = finals.var(axis=-1, ddof=1).ravel()[nearest].mean()
    best = float(means.min())
    return best, best + widths * float(np.sqrt(2 * variance))
