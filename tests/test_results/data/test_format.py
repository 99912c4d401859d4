"""Numbers, sizes and durations as text."""

from __future__ import annotations

import pandas as pd
import pytest

from results.data import format


@pytest.mark.parametrize(
    ("write", "value", "text"),
    [
        (format.seconds, 0, "0 s"),
        (format.seconds, 0.84, "0.8 s"),
        (format.seconds, 59.4, "59 s"),
        (format.seconds, 200, "3 min 20 s"),
        (format.seconds, 7500, "2 h 05 min"),
        (format.seconds, 3 * 86400 + 4 * 3600, "3 d 4 h"),
        (format.seconds, None, format.MISSING),
        (format.size, 350e6, "350 MB"),
        (format.size, 1.234e9, "1.23 GB"),
        (format.size, 999, "999 B"),
        (format.count, 512, "512"),
        (format.count, 86_000, "86 k"),
        (format.count, 7_213_000, "7.21 M"),
        (format.number, 1e-4, "1e-4"),
        (format.number, 0.00012345, "1.23e-4"),
        (format.number, 2.34567, "2.346"),
        (format.number, 16, "16"),
        (format.number, True, "True"),
        (format.number, pd.NA, format.MISSING),
        (format.loss, 2.30194, "2.3019"),
        (format.loss, 1e-7, "1.000e-07"),
    ],
)
def test_units(write, value, text):
    assert write(value) == text
