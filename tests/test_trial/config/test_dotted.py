"""Dotted paths: flatten, get and set."""

from __future__ import annotations

import pytest

from trial.config import dotted

NESTED = {"a": 1, "b": {"c": [1, 2], "d": {"e": None}}, "f": {}}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, [("a", 1), ("b.c", [1, 2]), ("b.d.e", None), ("f", {})]),
        (
            {"sections": True},
            [
                ("a", 1),
                ("b", NESTED["b"]),
                ("b.c", [1, 2]),
                ("b.d", {"e": None}),
                ("b.d.e", None),
                ("f", {}),
            ],
        ),
        (
            {"descend": lambda path, value: path in ("b", "f")},
            [("a", 1), ("b.c", [1, 2]), ("b.d", {"e": None})],
        ),
    ],
)
def test_flatten_goes_in_the_order_of_the_mapping(arguments, expected):
    assert list(dotted.flatten(NESTED, **arguments).items()) == expected


def test_pairs_show_a_path_that_is_given_dotted_and_nested():
    assert list(dotted.pairs({"a.b": 1, "a": {"b": 2}})) == [("a.b", 1), ("a.b", 2)]
    assert dotted.flatten({"a.b": 1, "a": {"b": 2}}) == {"a.b": 2}


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("a", 1),
        ("b.c", [1, 2]),
        ("b.d.e", None),
        ("f", {}),
        ("g", "default"),
        ("a.b", "default"),
        ("b.d.e.x", "default"),
        ("f.g", "default"),
        ("", "default"),
    ],
)
def test_get(path, expected):
    assert dotted.get_value(NESTED, path, "default") == expected
    assert dotted.has_value(NESTED, path) == (expected != "default")


@pytest.mark.parametrize(
    ("before", "path", "after"),
    [
        ({}, "a", {"a": 7}),
        ({"a": 1}, "a", {"a": 7}),
        ({}, "a.b.c", {"a": {"b": {"c": 7}}}),
        ({"a": None}, "a.b", {"a": {"b": 7}}),
        ({"a": {"x": 1}}, "a.b", {"a": {"x": 1, "b": 7}}),
        ({"a": {"b": {"x": 1}}}, "a.b", {"a": {"b": 7}}),
    ],
)
def test_set(before, path, after):
    dotted.set_value(before, path, 7)
    assert before == after


def test_set_makes_missing_sections_as_it_is_told():
    content = {}
    dotted.set_value(content, "a.b.c", 7, new_section=lambda path: {"made at": path})
    assert content == {"a": {"made at": "a", "b": {"made at": "a.b", "c": 7}}}


@pytest.mark.parametrize("path", ["a.b", "a.b.c"])
def test_set_refuses_a_path_through_a_value(path):
    with pytest.raises(dotted.NotAMapping) as error:
        dotted.set_value({"a": 3}, path, 7)
    assert (error.value.part, error.value.value) == ("a", 3)
    assert "a is not a mapping: 3" in str(error.value)


def test_what_is_set_is_what_is_read():
    content = {}
    for path, value in dotted.flatten(NESTED).items():
        dotted.set_value(content, path, value)
        assert dotted.get_value(content, path) == value
    assert content == NESTED
