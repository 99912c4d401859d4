"""Functions of the user, named `package.module:function`. Torch-free.

A name is checked without an import: the module's source is parsed where Python would find it, in
the current folder or on `sys.path`.
"""

from __future__ import annotations

import ast
import importlib
import os
import re
import sys
from collections.abc import Callable, Mapping
from decimal import Decimal
from functools import lru_cache
from numbers import Real
from pathlib import Path
from typing import Any

from trial.config.errors import ConfigError, Problem, nearest, unknown

_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
POSITIONAL = 2
"""Arguments that the harness passes by position: model and batch, or model and data."""


def name_problems(key: str, name: str) -> list[Problem]:
    """The mistake in a name that is not of the form `package.module:function`."""
    if _NAME.fullmatch(name):
        return []
    return [Problem(key, "package.module:function", repr(name))]


def code_problems(at: str, key: str, name: str, arguments: Mapping[str, Any]) -> list[Problem]:
    """A missing function, or arguments that it does not take; `at` is the key of the arguments."""
    if name_problems(key, name):
        return []
    module, _, function = name.partition(":")
    file = find_source(module)
    if file is None:
        return [Problem(key, "a module that can be imported from here", repr(module))]
    try:
        stamp = file.stat().st_mtime_ns
        names, functions = _read(file, stamp)
    except (OSError, SyntaxError, UnicodeDecodeError) as error:
        return [Problem(key, f"{file}: Python source ({error})")]
    if function not in names:
        near = nearest(function, sorted(names))
        return [Problem(key, f"a function of {file}", repr(function), near)]
    known = functions.get(function)
    if known is None:
        return []
    return [
        unknown(f"{at}.{argument}", known or ("none",), f"argument of {name}")
        for argument in arguments
        if argument not in known
    ]


def find_source(module: str) -> Path | None:
    """The source file of a module, found without an import."""
    parts = module.split(".")
    for root in (os.getcwd(), *sys.path):
        stem = Path(root or ".", *parts)
        for file in (stem.with_suffix(".py"), stem / "__init__.py"):
            if file.is_file():
                return file
    return None


@lru_cache(maxsize=32)
def _read(file: Path, stamp: int) -> tuple[frozenset[str], dict[str, tuple[str, ...] | None]]:
    """Names that a module defines, and the keyword arguments of its functions; None: any.

    `stamp` is the file's modification time: a changed file is parsed again.
    """
    tree = ast.parse(file.read_text(encoding="utf-8"))
    names: set[str] = set()
    functions: dict[str, tuple[str, ...] | None] = {}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            names.add(node.name)
            functions[node.name] = _keywords(node.args)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return frozenset(names), functions


def _keywords(arguments: ast.arguments) -> tuple[str, ...] | None:
    if arguments.kwarg is not None:
        return None
    positional = [item.arg for item in (*arguments.posonlyargs, *arguments.args)][POSITIONAL:]
    return (*positional, *(item.arg for item in arguments.kwonlyargs))


def load_function(key: str, name: str) -> Callable[..., Any]:
    """Import the function called `name`; `key` is its key in the configuration.

    Raises:
        ConfigError: it cannot be imported, or is no function.
    """
    module, _, function = name.partition(":")
    here = os.getcwd()
    if here not in sys.path:
        sys.path.append(here)
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ConfigError([Problem(key, f"package.module:function ({error})", name)]) from error
    if not callable(found):
        raise ConfigError([Problem(key, "package.module:function", f"{name}, no function")])
    return found  # type: ignore[no-any-return]


def number(key: str, name: str, value: Any) -> float:
    """What the function called `name` returned, as a float; `key` is its key in the configuration.

    A number, or an array or tensor that holds one. A text is none, whatever its digits say.

    Raises:
        ConfigError: it is no number.
    """
    try:
        # Of NumPy's and of torch's, the plain Python value.
        plain = value.item() if hasattr(value, "item") else value
    except (TypeError, ValueError, RuntimeError):
        plain = None
    if not isinstance(plain, Real | Decimal):
        got = f"{name} returned {value!r:.200}, of type {type(value).__name__}"
        raise ConfigError([Problem(key, "a function that returns a number", got)])
    return float(plain)
