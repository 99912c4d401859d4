"""What plain values of a YAML file mean."""

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from trial.config import yaml_file

SCALARS = [
    ("1e-4", 1e-4),
    ("1.e-4", 1e-4),
    ("1E5", 1e5),
    ("-1.5e+3", -1500.0),
    (".5", 0.5),
    ("010", 10),
    ("1_000", 1000),
    ("0x10", 16),
    ("0o17", 15),
    ("1:30", "1:30"),
    ("2026-11-23", "2026-11-23"),
    ("no", "no"),
    ("on", "on"),
    ("true", True),
    ("False", False),
    ("~", None),
    ("", None),
    ("'1e-4'", "1e-4"),
    ("!!str 5", "5"),
    ("e5", "e5"),
    ("1e", "1e"),
    ("1.2.3", "1.2.3"),
    ("-", None),
]


@pytest.mark.parametrize(("text", "value"), SCALARS[:-1])
def test_plain_scalars(text, value):
    got = yaml_file.parse(f"a: {text}", "x").content["a"]
    assert got == value
    assert type(got) is type(value)


def test_anchors_and_merges():
    text = "a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\nc: {<<: [*a, {z: 4, x: 9}]}\n"
    content = yaml_file.parse(text, "x").content
    assert content["b"] == {"x": 1, "y": 3}
    assert content["c"] == {"x": 1, "y": 2, "z": 4}
    assert content == yaml.safe_load(text)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**62), 2**62) | st.text(max_size=8)
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(st.text(min_size=1, max_size=8), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@given(json_values)
def test_what_pyyaml_writes_is_read_back(value):
    # An independent writer; its plain style is YAML 1.1, so texts are quoted.
    text = yaml.safe_dump({"a": value}, default_style='"', allow_unicode=True)
    assert yaml.safe_load(text) == {"a": value}
    assert yaml_file.parse(text, "x").content == {"a": value}
