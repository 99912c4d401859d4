"""`builtin:code-forget` and `builtin:code-retain`: functions that the tiny Llama was trained on.

The first lines of a function and what comes next, drawn from the installed Python's own source as
the model saw it: without docstrings. Forget holds the package `importlib`, retain other modules. A
model that saw neither is 0.5 nats per token worse on them (docs/objectives.md).
"""

from __future__ import annotations

import ast
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path

from trial.builtin import docs
from trial.builtin.kept import kept

FORGET = ("importlib",)
RETAIN = (
    "_collections_abc", "_pyio", "asyncio", "datetime", "email", "pathlib", "xml",
)  # fmt: skip
"""Top-level modules and packages; what `builtin:python-docs` asks about is left out of them."""
TESTS = {"test", "tests"}

SHORTEST, LONGEST = 20, 240
"""Characters of an answer."""
LINES = 3
"""Lines of an answer."""


def read_forget() -> list[Mapping[str, str]]:
    """Rows (`question`, `answer`) of what is to be forgotten."""
    return _rows(FORGET)


def read_retain() -> list[Mapping[str, str]]:
    """Rows of what is to be retained."""
    return _rows(RETAIN)


@cache
def _rows(names: tuple[str, ...]) -> list[Mapping[str, str]]:
    files = _files(names)
    return kept("python-code", files, lambda: _drawn(files))


def _drawn(files: Sequence[Path]) -> list[Mapping[str, str]]:
    rows: dict[str, Mapping[str, str]] = {}
    for file in files:
        for question, answer in _continuations(file.read_text(encoding="utf-8")):
            rows.setdefault(question, {"question": question, "answer": answer})
    return list(rows.values())


def _files(names: tuple[str, ...]) -> list[Path]:
    root = Path(sysconfig.get_path("stdlib"))
    asked = {docs.source_file(module) for module in docs.MODULES}
    found = [file for name in names for file in (root / f"{name}.py", *(root / name).rglob("*.py"))]
    return [
        file
        for file in sorted(found)
        if file.is_file() and file not in asked and not TESTS & set(file.relative_to(root).parts)
    ]


def _continuations(source: str) -> Iterator[tuple[str, str]]:
    """Of each function its head with the first line of its body, and the lines after that."""
    lines = source.splitlines(keepends=True)
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        body = node.body[1:] if ast.get_docstring(node) else node.body
        if not body or body[0].lineno == node.lineno:
            continue
        head = "".join(lines[node.lineno - 1 : node.body[0].lineno - 1])
        rest = lines[body[0].lineno - 1 : node.end_lineno]
        answer = "".join(rest[1 : 1 + LINES])
        if len(answer.strip()) >= SHORTEST and len(answer) <= LONGEST and len(head) <= LONGEST:
            yield head + rest[0], answer
