"""What a user's function returns: a number, or a mistake that names the function."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch

from trial.config.errors import ConfigError
from trial.config.user_functions import number


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (3.5, 3.5),
        (7, 7.0),
        (True, 1.0),
        (Fraction(7, 2), 3.5),
        (Decimal("3.5"), 3.5),
        (np.float32(0.5), 0.5),
        (np.array([[2]]), 2.0),
        (torch.tensor([0.5], dtype=torch.bfloat16), 0.5),
    ],
)
def test_a_number_counts(value, expected):
    found = number("evaluation.metrics", "mine:metric", value)
    assert type(found) is float
    assert found == expected


@pytest.mark.parametrize(
    "value",
    [
        "3.5",
        b"3.5",
        np.array("3.5"),
        np.str_("3.5"),
        None,
        [3.5],
        {},
        1j,
        np.ones(2),
        torch.ones(2),
    ],
    ids=repr,
)
def test_what_is_no_number_is_refused_with_the_function(value):
    with pytest.raises(ConfigError) as caught:
        number("evaluation.metrics", "mine:metric", value)
    (problem,) = caught.value.problems
    assert problem.key == "evaluation.metrics"
    assert problem.got.startswith("mine:metric returned ")
    assert problem.got.endswith(f", of type {type(value).__name__}")
