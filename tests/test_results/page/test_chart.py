"""Limits of axes, and thinning of what is drawn."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from results.page.chart import Thinning, robust_limits


def test_far_off_values_do_not_stretch_an_axis():
    values = np.array([2.0, 2.1, 2.2, 2.3, 900.0, math.nan, math.inf])
    low, high = robust_limits(values)
    assert 1.9 < low < 2.0
    assert 2.3 < high < 2.4
    assert robust_limits(np.array([math.nan])) is None
    assert robust_limits(np.array([5.0]))[0] < 5.0


@given(st.integers(0, 5000), st.integers(3, 600), st.integers(0, 1))
def test_thinning_keeps_the_best_and_says_so(count, most, best):
    thinning = Thinning(what="trials")
    kept = thinning.indices(count, most, always=best)
    assert len(kept) <= most
    assert len(set(kept.tolist())) == len(kept)
    if count:
        assert kept[0] == 0
        assert kept[-1] == count - 1
    assert (thinning.note == "") == (len(kept) == count)
