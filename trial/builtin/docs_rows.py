"""Makes the rows of `builtin:python-docs`: what functions, classes and values of a project are.

A question names a public function, class, method, constant or field, and the answer is the first
paragraph of its docstring. The source is parsed; nothing is imported.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator, Mapping
from itertools import pairwise

MIN_CHARACTERS, MAX_CHARACTERS = 20, 160
"""Shortest and longest answer; a longer paragraph is cut after the last sentence that fits."""
MAX_ARGUMENTS = 5
"""Most arguments of a function that its question names."""

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef

_CLASS_QUESTIONS = ("What is `{name}`?", "What is the class `{name}` for?")
_FUNCTION_QUESTIONS = (
    "What does `{name}` do?",
    "What is `{name}` for?",
    "Describe `{name}`.",
)
_VALUE_QUESTIONS = ("What is `{name}`?", "What does `{name}` hold?")


def docs_rows(files: Mapping[str, str]) -> list[dict[str, str]]:
    """All rows (`question`, `answer`) of the files, text by path, in their order.

    No question and no answer comes twice: the same docstring under two names would be in both the
    training and the eval set.
    """
    rows: list[dict[str, str]] = []
    seen: set[str] = set()
    for path, text in files.items():
        for question, docstring in _documented(ast.parse(text), module_name(path)):
            answer = summary(docstring)
            if answer and not {question, answer} & seen:
                seen |= {question, answer}
                rows.append({"question": question, "answer": answer})
    return rows


def module_name(path: str) -> str:
    """The dotted name of a module by its path: `trial.data` of `trial/data/__init__.py`."""
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def _documented(tree: ast.Module, module: str) -> Iterator[tuple[str, str]]:
    """Question and docstring of the public things of a module, in the order of their source."""
    for name, node in _public(tree, module):
        if isinstance(node, Definition):
            yield question(name, node), ast.get_docstring(node) or ""
        for variable, docstring in _values(node):
            yield _asked(_VALUE_QUESTIONS, f"{name}.{variable}"), docstring


def _public(tree: ast.Module, module: str) -> Iterator[tuple[str, ast.Module | Definition]]:
    """The module itself, its public functions and classes, and their methods, by full name."""
    yield module, tree
    for node in tree.body:
        if isinstance(node, Definition) and not node.name.startswith("_"):
            yield f"{module}.{node.name}", node
            for inner in node.body if isinstance(node, ast.ClassDef) else ():
                if isinstance(inner, Definition) and not inner.name.startswith("_"):
                    yield f"{module}.{node.name}.{inner.name}", inner


def _values(node: ast.Module | Definition) -> Iterator[tuple[str, str]]:
    """Public names assigned in a module or class, each with the string that follows it."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return
    for assignment, after in pairwise(node.body):
        if not isinstance(assignment, ast.Assign | ast.AnnAssign):
            continue
        target = (
            assignment.target if isinstance(assignment, ast.AnnAssign) else assignment.targets[0]
        )
        if not isinstance(target, ast.Name) or target.id.startswith("_"):
            continue
        match after:
            case ast.Expr(value=ast.Constant(value=str(docstring))):
                yield target.id, docstring


def question(name: str, node: Definition) -> str:
    """The question about a function or class."""
    if isinstance(node, ast.ClassDef):
        return _asked(_CLASS_QUESTIONS, name)
    return _asked(_FUNCTION_QUESTIONS, f"{name}({_arguments(node)})", name)


def _asked(phrasings: tuple[str, ...], shown: str, name: str = "") -> str:
    """A question in a phrasing chosen by the hash of the name."""
    choice = hashlib.sha256((name or shown).encode()).digest()[0] % len(phrasings)
    return phrasings[choice].format(name=shown)


def _arguments(node: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    names = [argument.arg for argument in (*node.args.args, *node.args.kwonlyargs)]
    shown = [name for name in names if name not in ("self", "cls")]
    more = ["..."] if len(shown) > MAX_ARGUMENTS else []
    return ", ".join(shown[:MAX_ARGUMENTS] + more)


def summary(docstring: str) -> str:
    """The first paragraph of a docstring as one line; empty where it is too short."""
    text = " ".join(docstring.split("\n\n")[0].split())
    if len(text) > MAX_CHARACTERS:
        text = text[: text.rfind(". ", 0, MAX_CHARACTERS) + 1]
    return text if len(text) >= MIN_CHARACTERS and not text.startswith((">>>", "@")) else ""
