"""Expressions of derived values: `2 * lora.r`.

Names are dotted paths and variables; the functions are a short list. Evaluation is pure: the same
values always give the same result, on every machine. Time and memory are bounded, whatever a sweep
file says: operators take numbers (`+` also two texts), and no result of one is large.
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
MAX_DEPTH = 50
"""Operators and functions within each other; both walks over a tree are recursive."""
MAX_INTEGER = 2**63
"""Integer results must be smaller than this in absolute value."""
MAX_BITS = 1024
"""Of integers on the way to a result; floats end there too."""
MAX_TEXT = 10_000
"""Characters of a text that is put together."""
MAX_DIGITS = 400
"""Of `round`, before or after the point: no float has more, and integers take a power of ten."""


def _round(number: float, digits: int | None = None) -> float:
    if digits is not None and abs(digits) > MAX_DIGITS:
        raise ValueError(f"round takes at most {MAX_DIGITS} digits")
    return round(number, digits)


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
    "round": _round,
    "sqrt": math.sqrt,
}

_GRAMMAR = (
    ast.Expression, ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.IfExp, ast.Call, ast.Name,
    ast.Attribute, ast.Constant, ast.operator, ast.unaryop, ast.boolop, ast.cmpop, ast.Load,
    bool, int, float, str, type(None),
)  # fmt: skip
"""Nodes of a tree, and types of its constants."""


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
        operators=_OPERATORS,
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
        kind = type(node.value if isinstance(node, ast.Constant) else node)
        if not issubclass(kind, _GRAMMAR):
            raise ValueError(f"`{text}`: {kind.__name__.lower()} is not allowed here")
    if _is_deep(tree):
        raise ValueError(f"`{text}` is nested deeper than {MAX_DEPTH}")
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


def _is_deep(tree: ast.AST) -> bool:
    level, depth = [tree], 0
    while level and depth <= MAX_DEPTH:
        level = [child for node in level for child in ast.iter_child_nodes(node)]
        depth += 1
    return bool(level)


def _power(base: Any, exponent: Any) -> Any:
    """`**`; OverflowError for integers so large that computing them would hang the driver."""
    whole = isinstance(base, int) and isinstance(exponent, int) and exponent > 0
    if whole and abs(float(base) ** exponent) >= MAX_INTEGER:
        raise OverflowError
    return operator.pow(base, exponent)


def _shift_left(number: Any, places: Any) -> Any:
    if isinstance(places, int) and places > MAX_BITS:
        raise OverflowError
    return operator.lshift(number, places)


def _bounded(symbol: str, operate: Callable[..., Any]) -> Callable[..., Any]:
    """An operator that takes numbers only, and makes no large integers.

    `%` would format a text with as many characters as that says; `*` would repeat a text or a list.
    """

    def apply(*operands: Any) -> Any:
        if texts := [operand for operand in operands if isinstance(operand, str)]:
            if symbol in _NOT_OF_TEXT:
                raise TypeError(f"text cannot be {_NOT_OF_TEXT[symbol]}")
            if symbol == "+" and len(texts) == len(operands) > 1:
                return _joined(*texts)
        if not all(isinstance(operand, bool | int | float) for operand in operands):
            kinds = " and ".join(repr(type(operand).__name__) for operand in operands)
            raise TypeError(f"unsupported operand type(s) for {symbol}: {kinds}")
        value = operate(*operands)
        if isinstance(value, int) and value.bit_length() > MAX_BITS:
            raise OverflowError
        return value

    return apply


def _joined(left: str, right: str) -> str:
    if len(left) + len(right) > MAX_TEXT:
        raise ValueError(f"a text must not have more than {MAX_TEXT} characters")
    return left + right


_NOT_OF_TEXT = {"*": "multiplied", "%": "formatted"}
_ARITHMETIC: dict[type[ast.AST], tuple[str, Callable[..., Any]]] = {
    ast.Add: ("+", operator.add),
    ast.Sub: ("-", operator.sub),
    ast.Mult: ("*", operator.mul),
    ast.Div: ("/", operator.truediv),
    ast.FloorDiv: ("//", operator.floordiv),
    ast.Mod: ("%", operator.mod),
    ast.Pow: ("**", _power),
    ast.LShift: ("<<", _shift_left),
    ast.RShift: (">>", operator.rshift),
    ast.BitAnd: ("&", operator.and_),
    ast.BitOr: ("|", operator.or_),
    ast.BitXor: ("^", operator.xor),
    ast.UAdd: ("+", operator.pos),
    ast.USub: ("-", operator.neg),
    ast.Invert: ("~", operator.invert),
}
_OPERATORS = {
    **simpleeval.DEFAULT_OPERATORS,
    **{node: _bounded(*entry) for node, entry in _ARITHMETIC.items()},
}


def _scalar(value: Any) -> Scalar:
    if value is not None and not isinstance(value, bool | int | float | str):
        raise ValueError(f"a derived value is a number, a text or a boolean, got {value!r}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"the value must be finite, got {value}")
    if isinstance(value, int) and abs(value) >= MAX_INTEGER:
        raise ValueError("the value must be below 2**63")
    return value
