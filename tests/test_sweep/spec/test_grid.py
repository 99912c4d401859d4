"""The points of a space: grids, extremes and variants."""

import itertools

import pytest
from helpers.sweeps.spaces import BRANCHED, RS, make
from hypothesis import given
from hypothesis import strategies as st

from sweep.spec.grid import extreme_points, grid_points, grid_size, variants


def test_a_plain_grid_is_the_product_in_file_order():
    space = make(
        {"lora.r": [4, 8], "training.seed": {"low": 1, "high": 5, "step": 2}, RS: [True, False]}
    )
    names = ["lora.r", "training.seed", RS]
    want = [dict(zip(names, p, strict=True)) for p in itertools.product([4, 8], [1, 3, 5], [1, 0])]
    assert grid_points(space) == want
    assert grid_size(space) == len(want) == 12


def test_a_conditional_grid_equals_the_product_with_the_inactive_left_out():
    space = make(
        {
            **BRANCHED,
            "lora.lora_dropout": {"low": 0.0, "high": 0.2, "step": 0.1, "when": {RS: True}},
        }
    )
    want = []
    for rs in (True, False):
        for alpha in (8, 16) if rs else (1, 2, 3, 4):
            for dropout in (0.0, 0.1, 0.2) if rs else (None,):
                for r in (4, 8):
                    point = {RS: rs, f"lora.lora_alpha[lora.use_rslora={str(rs).lower()}]": alpha}
                    point |= {} if dropout is None else {"lora.lora_dropout": dropout}
                    want.append({**point, "lora.r": r})
    assert grid_points(space) == want
    assert grid_size(space) == len(want)


conditional = st.fixed_dictionaries(
    {name: st.lists(st.integers(0, 4), min_size=1, max_size=3, unique=True) for name in "abcd"}
)


@given(
    conditional,
    st.dictionaries(st.sampled_from("bcd"), st.lists(st.integers(0, 4), min_size=1, max_size=2)),
    st.permutations("abcd"),
)
def test_any_conditional_grid_equals_a_filtered_product(choices, conditions, written):
    """Each of b, c and d may depend on the letter before it; files may write them in any order."""
    variables = {}
    for name in written:
        variables[name] = {"choices": choices[name]}
        if name in conditions:
            variables[name]["when"] = {chr(ord(name) - 1): conditions[name]}
    want = set()
    for combination in itertools.product(*(choices[name] for name in "abcd")):
        point = {}
        for name, value in zip("abcd", combination, strict=True):
            if name not in conditions or point.get(chr(ord(name) - 1)) in conditions[name]:
                point[name] = value
        want.add(frozenset(point.items()))
    space = make({}, variables)
    grid = grid_points(space)
    assert {frozenset(point.items()) for point in grid} == want
    assert len(grid) == len(want) == grid_size(space)
    assert all(space.encode_point(point) == point for point in grid)


def test_conditions_reach_through_derived_values():
    space = make(
        {},
        {
            "a": [1, 2],
            "b": {"expression": "a"},
            "c": {"expression": "b"},
            "d": {"choices": [5, 6, 7], "when": {"c": 1}},
        },
    )
    assert grid_points(space) == [{"a": 1, "d": 5}, {"a": 1, "d": 6}, {"a": 1, "d": 7}, {"a": 2}]
    assert grid_size(space) == 4


def test_a_grid_names_the_range_without_an_end():
    space = make({"lora.r": [4], "training.learning_rate": {"low": 0.1, "high": 0.2}})
    assert grid_size(space) is None
    with pytest.raises(ValueError, match=r"training\.learning_rate: a float range needs a `step`"):
        grid_points(space)


def test_a_huge_grid_is_counted_without_being_walked():
    million = {"low": 1, "high": 10**6}
    space = make({"lora.r": million, "training.seed": million, RS: [True, False]})
    assert grid_size(space) == 2 * 10**12
    with pytest.raises(ValueError, match="at most 100000"):
        grid_points(space)


def test_extreme_points_hold_the_ends_and_are_bounded():
    wide = {"low": 0.0, "high": 1.0}
    space = make({"lora.lora_dropout": wide, "training.weight_decay": wide})
    assert len(list(extreme_points(space))) == 4
    many = make({}, {f"v{i}": [1, 2, 3] for i in range(20)})
    assert len(list(extreme_points(many, limit=50))) == 50


def test_variants_differ_only_in_the_sections_and_their_dependencies():
    space = make(
        {
            "data.path": {"choices": ["x", "y"], "when": {RS: True}},
            RS: [True, False],
            "lora.r": [4, 8],
        }
    )
    assert list(variants(space, ["data"])) == [
        {"data.path": "x", RS: True, "lora.r": 4},
        {"data.path": "y", RS: True, "lora.r": 4},
        {RS: False, "lora.r": 4},
    ]
