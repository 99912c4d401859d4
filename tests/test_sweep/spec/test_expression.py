"""Expressions of derived values."""

import pytest

from sweep.spec import expression

EXPRESSIONS = [
    ("2 * lora.r", 16),
    ("lora.r / 2", 4.0),
    ("lora.r // 3", 2),
    ("alpha_over_r * lora.r", 4.0),
    ("sqrt(lora.r * 2)", 4.0),
    ("int(lora.r * 1.6)", 12),
    ("max(lora.r, 16) if use else 1", 16),
    ("training.eval_strategy == 'steps'", True),
    ("-lora.r ** 2", -64),
    ("not use", False),
    ("'all-linear'", "all-linear"),
    ("None", None),
    ("round(lora.r / 3, 1)", 2.7),
    ("round(lora.r / 3)", 3),
    ("lora.r % 3 + (lora.r >> 1) + (1 << 3) + (6 & 3) + (6 | 1) + (6 ^ 3) + ~1", 26),
    ("name + '-' + 'x'", "%099d-x"),
    ("2 ** 62 * 4 // 8", 2**61),
    ("+lora.r - -1", 9),
]


VALUES = {"lora.r": 8, "alpha_over_r": 0.5, "use": True, "training.eval_strategy": "steps"}
VALUES |= {"name": "%099d", "long": "x" * 9000, "modules": ["q_proj"]}


@pytest.mark.parametrize(("text", "value"), EXPRESSIONS)
def test_expressions(text, value):
    got = expression.evaluate(text, VALUES)
    assert got == value
    assert type(got) is type(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lora.r / 0", "division by zero"),
        ("lora.alpha * 2", "lora.alpha has no value here"),
        ("10.0 ** 400", "is too large"),
        ("exp(1000)", "is too large"),
        ("2 ** 63", "is too large"),
        ("9 ** 9 ** 9 ** 9", "is too large"),
        ("'a' * 9999", "text cannot be multiplied"),
        ("'%0999999999d' % 5", "text cannot be formatted"),
        ("1 << 10 ** 18", "is too large"),
        ("round(7, -(10 ** 18))", "round takes at most 400 digits"),
        ("lora.r + 'a'", "unsupported operand"),
        ("+'a'", "unsupported operand"),
        ("modules * 99", "unsupported operand"),
        ("'%099d' % 5", "text cannot be formatted"),
        ("name % 5", "text cannot be formatted"),
        ("long + long", "more than 10000 characters"),
        ("1 << 10000", "is too large"),
        ("1 << 1000 << 1000", "is too large"),
        (" * ".join(["9223372036854775807"] * 20), "is too large"),
        ("round(3, -999999999)", "at most 400 digits"),
        ("-" * 60 + "1", "nested deeper than 50"),
        ("b'%099d' % 5", "bytes is not allowed here"),
        ("1j", "complex is not allowed here"),
        ("1e308 * 10", "must be finite"),
        ("9223372036854775807 + 1", "must be below 2"),
    ],
)
def test_expressions_that_fail_say_why(text, message):
    with pytest.raises(ValueError, match=message):
        expression.evaluate(text, VALUES)


def test_names_of_an_expression():
    assert expression.names("max(a.b.c, d) + e.f if g else 1") == {"a.b.c", "d", "e.f", "g"}
