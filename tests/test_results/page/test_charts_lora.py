"""The cost front of the LoRA charts."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from results.page.charts_lora import pareto

coordinates = arrays(float, st.integers(1, 30), elements=st.integers(0, 8).map(float))


@given(coordinates, st.randoms())
def test_the_front_is_what_nothing_beats(costs, random):
    losses = np.array([float(random.randrange(8)) for _ in costs])
    front = set(pareto(costs, losses).tolist())
    for point in range(len(costs)):
        beaten = any(
            costs[other] <= costs[point]
            and losses[other] <= losses[point]
            and (costs[other] < costs[point] or losses[other] < losses[point])
            for other in range(len(costs))
        )
        if point in front:
            assert not beaten
        elif not beaten:
            twin = [o for o in front if (costs[o], losses[o]) == (costs[point], losses[point])]
            assert twin
