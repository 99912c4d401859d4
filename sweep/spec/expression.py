"""Expressions of derived values: `2 * lora.r`.

Names are dotted paths and variables; the functions are a short list. Evaluation is pure: the same
values always give the same result, on every machine.
"""

from __future__ import annotations

import ast
import math
import operator
import warnings
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import simpleeval

from trial.config.sections import Scalar

MAX_CHARACTERS = 500
MAX_INTEGER = 2**63
"""Integer results must be smaller than this in absolute value."""

MAX_DIGITS = 400
"""`round` takes at most so many digits, before or after the point: a float has 308."""


def _rounded(value: float, digits: int | None = None) -> float:
    """`round`; an integer rounded to many digits before the point would take 10 to that power."""
    if digits is not None and abs(digits) > MAX_DIGITS:
        raise ValueError(f"round takes at most {MAX_DIGITS} digits")
    return round(value, digits)


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "abs": abs,
    "ceil": math.ceil,
    "exp": math.exp,
    "float": float,
    "floor": math.floor,
    "int": int,
    "log": math.log,
    "log10": math.log10,
    "log2": math.log2,
    "max": max,
    "min": min,
    "round": _rounded,
    "sqrt": math.sqrt,
}

_GRAMMAR = (
    ast.Expression, ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.IfExp, ast.Call, ast.Name,
    ast.Attribute, ast.Constant, ast.operator, ast.unaryop, ast.boolop, ast.cmpop, ast.Load,
)  # fmt: skip


def names(text: str) -> frozenset[str]:
    """The dotted paths and variables that an expression reads.

    Raises:
        ValueError: The text is not an expression, or uses more than the grammar allows.
    """
    return _compiled(text)[1]


def evaluate(text: str, values: Mapping[str, Any]) -> Scalar:
    """The value of an expression.

    Args:
        text: The expression.
        values: The values it may read, by dotted path or variable name.

    Raises:
        ValueError: It cannot be evaluated, or its value is not a finite scalar.
    """
    tree, reads = _compiled(text)
    evaluator = simpleeval.SimpleEval(
        operators={**simpleeval.DEFAULT_OPERATORS, **_BOUNDED},
        functions=FUNCTIONS,
        names=dict(values),
    )
    try:
        return _scalar(evaluator.eval(text, previously_parsed=tree))
    except simpleeval.NameNotDefined as error:
        raise ValueError(f"`{text}`: {error.name} has no value here") from error
    except (simpleeval.InvalidExpression, ArithmeticError, TypeError, ValueError) as error:
        at = ", ".join(f"{name}={values[name]}" for name in sorted(reads) if name in values)
        why = "the value is too large" if isinstance(error, OverflowError) else error
        where = f" at {at}" if at else ""
        raise ValueError(f"`{text}` cannot be evaluated{where}: {why}") from error


@cache
def _compiled(text: str) -> tuple[ast.expr, frozenset[str]]:
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"an expression has at most {MAX_CHARACTERS} characters")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"`{text}` is not an expression") from error
    for node in ast.walk(tree):
        if not isinstance(node, _GRAMMAR):
            raise ValueError(f"`{text}`: {type(node).__name__.lower()} is not allowed here")
    paths = _Paths()
    return paths.visit(tree).body, frozenset(paths.found)


class _Paths(ast.NodeTransformer):
    """Makes one name of each dotted path, which Python parses as attributes, and collects them."""

    def __init__(self) -> None:
        self.found: set[str] = set()

    def visit_Attribute(self, node: ast.Attribute) -> ast.expr:
        return self._name(ast.unparse(node)) if _is_path(node) else self._refuse(node)

    def visit_Name(self, node: ast.Name) -> ast.expr:
        if node.id in FUNCTIONS:
            raise ValueError(f"`{node.id}` is a function: call it")
        return self._name(node.id)

    def visit_Call(self, node: ast.Call) -> ast.expr:
        if not isinstance(node.func, ast.Name) or node.func.id not in FUNCTIONS or node.keywords:
            known = ", ".join(FUNCTIONS)
            raise ValueError(f"`{ast.unparse(node)}` is not one of the functions {known}")
        node.args = [self.visit(argument) for argument in node.args]
        return node

    def _name(self, path: str) -> ast.expr:
        self.found.add(path)
        return ast.Name(id=path, ctx=ast.Load())

    def _refuse(self, node: ast.expr) -> ast.expr:
        raise ValueError(f"`{ast.unparse(node)}` is not a dotted path")


def _is_path(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) or (isinstance(node, ast.Attribute) and _is_path(node.value))


def _power(base: Any, exponent: Any) -> Any:
    """`**`; OverflowError for integers so large that computing them would hang the driver."""
    whole = isinstance(base, int) and isinstance(exponent, int) and exponent > 0
    if whole and abs(float(base) ** exponent) >= MAX_INTEGER:
        raise OverflowError
    return operator.pow(base, exponent)


def _numbers(compute: Callable[[Any, Any], Any], name: str) -> Callable[[Any, Any], Any]:
    """The operation, for numbers alone: `%` formats text, and `*` repeats it, to any length."""

    def compute_numbers(left: Any, right: Any) -> Any:
        if isinstance(left, str) or isinstance(right, str):
            raise TypeError(f"`{name}` is for numbers, not for text")
        return compute(left, right)

    return compute_numbers


def _left_shift(value: int, places: int) -> int:
    """`<<`; OverflowError for a result that no parameter could hold."""
    if places >= MAX_INTEGER.bit_length():
        raise OverflowError
    return operator.lshift(value, places)


_BOUNDED: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Pow: _power,
    ast.Mult: _numbers(operator.mul, "*"),
    ast.Mod: _numbers(operator.mod, "%"),
    ast.LShift: _left_shift,
}
"""Operators whose time and memory are bounded whatever the operands."""


def _scalar(value: Any) -> Scalar:
    if value is not None and not isinstance(value, bool | int | float | str):
        raise ValueError(f"a derived value is a number, a text or a boolean, got {value!r}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"the value must be finite, got {value}")
    if isinstance(value, int) and abs(value) >= MAX_INTEGER:
        raise ValueError("the value must be below 2**63")
    return value
