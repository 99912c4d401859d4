"""Choices and ranges beside the distributions of Optuna that they stand for."""

from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from sweep.spec.dimension_parser import parse_dimension


@given(st.integers(0, 9), st.integers(0, 30), st.sampled_from([1, 2, 3, 0.1, 0.25, 0.7]))
def test_points_of_a_stepped_range_are_those_optuna_holds(low, width, step):
    (ours,) = parse_dimension({"low": low, "high": low + width, "step": step}, "x")
    points = list(ours.grid_values())
    assert len(points) == ours.count()
    assert points == sorted(set(points))
    theirs = (IntDistribution if ours.type == "int" else FloatDistribution)(
        ours.low, ours.high, step=step
    )
    assert all(theirs._contains(theirs.to_internal_repr(point)) for point in points)
    assert points[0] == low
    assert points[-1] == theirs.high
    assert [ours.encode(point) for point in points] == points


def test_optuna_confuses_what_choices_refuses():
    # The reason for the rule: in Optuna's eyes true and 1 are one choice.
    assert CategoricalDistribution([1, True]).to_internal_repr(True) == 0
