"""Dimensions of a sweep file: what they mean, and which are refused."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import FloatDistribution, IntDistribution

from sweep.spec.dimension_parser import parse_dimension
from trial.config.errors import ConfigError

GRAMMAR = [
    # raw value in the file -> form, fields
    ([4, 8], "Choices", {"choices": (4, 8)}),
    ([None, 2], "Choices", {"choices": (None, 2)}),
    ([["q", "v"], "all-linear"], "Choices", {"choices": (["q", "v"], "all-linear")}),
    ([{"a": 1}, {"a": 2}], "Choices", {"choices": ({"a": 1}, {"a": 2})}),
    ({"choices": [True, False]}, "Choices", {"choices": (True, False)}),
    (8, "Fixed", {"value": 8}),
    (None, "Fixed", {"value": None}),
    ("all-linear", "Fixed", {"value": "all-linear"}),
    ({"value": [1, 2]}, "Fixed", {"value": [1, 2]}),
    ({"low": 1, "high": 4}, "Range", {"type": "int", "low": 1, "high": 4, "step": None}),
    ({"low": 1, "high": 4, "step": 1}, "Range", {"type": "int", "step": None}),
    ({"low": 1, "high": 8, "step": 3}, "Range", {"type": "int", "high": 7, "step": 3}),
    ({"low": 1, "high": 4.0}, "Range", {"type": "float", "low": 1.0, "high": 4.0}),
    ({"low": 0, "high": 1, "step": 0.25}, "Range", {"type": "float", "step": 0.25}),
    ({"low": 1, "high": 4, "type": "float"}, "Range", {"type": "float", "low": 1.0}),
    ({"low": 0.0, "high": 1.0, "step": 0.3}, "Range", {"high": 0.9}),
    ({"low": 1, "high": 64, "log": True}, "Range", {"type": "int", "log": True}),
    ({"low": 3, "high": 3}, "Range", {"low": 3, "high": 3}),
    ({"expression": " 2 * lora.r "}, "Derived", {"expression": "2 * lora.r"}),
    ({"value": 1, "when": {"a": 2}}, "Fixed", {"when": {"a": (2,)}}),
    ({"value": 1, "when": {"a": [2, 3]}}, "Fixed", {"when": {"a": (2, 3)}}),
    ({"value": 1, "when": {"a": None}}, "Fixed", {"when": {"a": (None,)}}),
]


@pytest.mark.parametrize(("raw", "form", "fields"), GRAMMAR)
def test_grammar_means(raw, form, fields):
    (branch,) = parse_dimension(raw, "space.x")
    assert type(branch).__name__ == form
    for name, value in fields.items():
        got = getattr(branch, name)
        assert got == value
        assert type(got) is type(value)


REFUSED = [
    ([], "at least one choice"),
    ([1, 1], "must differ"),
    ([0, False], "must differ"),
    ([1, 1.0], "must differ"),
    ([["a"], '["a"]'], "must differ"),
    ([{"a": 1, "b": 2}, {"b": 2, "a": 1}], "must differ"),
    ({}, "needs `choices`"),
    ({"when": {"a": 1}}, "needs `choices`"),
    ({"choices": "ab"}, "`choices` is a list"),
    ({"low": 4}, "`high` is missing"),
    ({"low": 4, "high": 3}, "`low <= high`"),
    ({"low": 0.0, "high": 3.0, "log": True}, "must be > 0 when log"),
    ({"low": 0, "high": 3, "log": True}, "must be at least 1 when log"),
    ({"low": 1, "high": 3, "log": True, "step": 2}, "not supported when log"),
    ({"low": 1.0, "high": 3.0, "log": True, "step": 1}, "not supported when log"),
    ({"low": 1, "high": 3, "step": 0}, "must be > 0"),
    ({"low": 1, "high": 3, "step": -1}, "must be > 0"),
    ({"low": True, "high": 3}, "finite number, got True"),
    ({"low": math.nan, "high": 3}, "finite number, got nan"),
    ({"low": 1, "high": math.inf}, "finite number, got inf"),
    ({"low": 1.5, "high": 3, "type": "int"}, "whole when the type is int, got 1.5"),
    ({"low": 1, "high": 3, "type": "integer"}, "int or float, got 'integer'"),
    ({"low": 1, "high": 3, "log": 1}, "true or false, got 1"),
    ({"lo": 1, "high": 3}, "did you mean low"),
    ({"values": [1, 2]}, "did you mean choices"),
    ({"low": 1, "high": 3, "value": 2}, "one of them"),
    ({"expression": "lora.r +"}, "is not an expression"),
    ({"expression": "().__class__"}, "is not allowed here"),
    ({"expression": "open('x')"}, "is not one of the functions"),
    ({"expression": "lora.r.bit_length()"}, "is not one of the functions"),
    ({"expression": "sqrt + 1"}, "is a function: call it"),
    ({"expression": "x" * 501}, "at most 500 characters"),
    ({"value": 1, "when": {}}, "is a mapping {path"),
    ({"value": 1, "when": {"a": []}}, "names no value"),
    ([{"value": 1, "when": {"a": 1}}, 3], "every branch is a mapping with `when`"),
    ([{"value": 1, "when": {"a": 1}}, {"value": 2, "when": {"a": [1, 2]}}], "at most one branch"),
    ([{"value": 1, "when": {"a": 1}}, {"value": 2, "when": {"b": 1}}], "at most one branch"),
]


@pytest.mark.parametrize(("raw", "message"), REFUSED)
def test_grammar_refuses(raw, message):
    with pytest.raises(ConfigError) as caught:
        parse_dimension(raw, "space.x")
    assert message in str(caught.value)
    assert all(problem.key.startswith("space.x") for problem in caught.value.problems)


def test_branches_that_one_condition_keeps_apart_are_taken():
    raw = [
        {"value": 1, "when": {"a": 1, "b": [1, 2]}},
        {"value": 2, "when": {"a": 2}},
        {"value": 3, "when": {"a": True, "b": 3}},
    ]
    assert len(parse_dimension(raw, "space.x")) == 3


numbers = st.one_of(
    st.integers(-6, 40), st.floats(-2, 10, allow_nan=False).map(lambda x: round(x, 3))
)


@pytest.mark.filterwarnings("ignore:The distribution is specified")
@given(numbers, numbers, st.none() | numbers, st.booleans(), st.sampled_from(["int", "float"]))
def test_a_range_is_accepted_exactly_when_optuna_accepts_it(low, high, step, log, kind):
    raw = {"low": low, "high": high, "step": step, "log": log, "type": kind}
    whole = all(isinstance(x, int) for x in (low, high, step) if x is not None)
    try:
        if kind == "int":
            theirs = IntDistribution(low, high, log, 1 if step is None else step)
        else:
            theirs = FloatDistribution(low, high, log, step)
    except (ValueError, ArithmeticError):
        theirs = None
    try:
        (ours,) = parse_dimension(raw, "x")
    except ConfigError:
        ours = None
    assert (ours is not None) == (theirs is not None and (whole or kind == "float"))
    if ours:
        assert (ours.low, ours.high) == (theirs.low, theirs.high)
        assert all(theirs._contains(theirs.to_internal_repr(x)) for x in ours.extremes())
