"""Choices and ranges beside the distributions of Optuna that they stand for."""

import optuna
import pytest
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


def points_drawn(low: float, high: float, step: float) -> list[float]:
    """Every point that Optuna itself can draw from a stepped range, in its own binary sums."""
    distribution = FloatDistribution(low, high, step=step)
    count = round((distribution.high - low) / step)
    return [low + number * step for number in range(count + 1)]


@pytest.mark.parametrize(
    ("low", "high", "step"), [(0.0, 1.0, 0.1), (0.1, 0.9, 0.05), (1e-5, 1e-4, 1e-5), (0, 3, 0.25)]
)
def test_a_drawn_number_has_one_value_its_shortest_decimal(low, high, step):
    (ours,) = parse_dimension({"low": low, "high": high, "step": step, "type": "float"}, "x")
    drawn = points_drawn(low, high, step)
    written = [round(low + number * step, 10) for number in range(len(drawn))]
    assert [ours.decode(value) for value in drawn] == written == list(ours.grid_values())
    assert [ours.encode(value) for value in drawn] == written
    if step == 0.1:
        assert drawn != written


def test_an_optuna_study_draws_them_too():
    (ours,) = parse_dimension({"low": 0.0, "high": 0.4, "step": 0.1}, "x")
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    seen = {ours.suggest(study.ask(), "x") for _ in range(60)}
    assert seen == {0.0, 0.1, 0.2, 0.3, 0.4}
    raw = {trial.params["x"] for trial in study.trials}
    assert 0.1 + 0.2 in raw


def test_numbers_between_steps_and_of_other_ranges_stay_as_they_are():
    (stepped,) = parse_dimension({"low": 0.0, "high": 1.0, "step": 0.1}, "x")
    (smooth,) = parse_dimension({"low": 0.0, "high": 1.0}, "x")
    assert stepped.canonical(0.25) == 0.25
    assert smooth.canonical(0.1 + 0.2) == 0.1 + 0.2
