"""A chart with every kind of series, for the tests of renderers."""

from __future__ import annotations

import math

import pytest

from results.page.chart import Axis, Chart, Series


@pytest.fixture
def chart() -> Chart:
    series = (
        Series("dots <b>", [1.0, 10.0], [2.0, math.nan], hover=["a<br><i>b</i>", "c"]),
        Series("line", [1.0, 2.0], [1.0, 2.0], kind="step", tone="best", low=[0.5, 1], high=[2, 3]),
        Series("bars", [1.0, 2.0], [1.0, 2.0], kind="bar", base=[0.1, 0.2], index=9),
    )
    axes = Axis("x $1", log=True, limits=(0.1, 100.0)), Axis("y", labels=((1.0, "$one$"),))
    return Chart("key", "Title & <more>", "How to read.", *axes, series)
