"""`builtin:code-forget` and `builtin:code-retain`: functions that the tiny Llama was trained on.

A question is the first lines of a function, the answer the lines that follow, from the installed
Python's own source as the model saw it: without docstrings. Forget rows come from the package
`importlib`, retain rows from other modules. The loss of a model that saw neither is higher by 0.5
nats per token.
"""

from __future__ import annotations

import ast
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path

from trial.builtin import docs_dataset
from trial.builtin.row_cache import cached_rows

FORGET = ("importlib",)
RETAIN = (
    "_collections_abc", "_pyio", "asyncio", "datetime", "email", "pathlib", "xml",
)  # fmt: skip
"""Top-level modules and packages, without the modules that `builtin:python-docs` asks about."""
TESTS = {"test", "tests"}
"""Folders that are left out."""

MIN_CHARACTERS, MAX_CHARACTERS = 20, 240
"""Shortest and longest answer."""
MAX_LINES = 3
"""Most lines of an answer."""


def read_forget() -> list[Mapping[str, str]]:
    """The forget rows (`question`, `answer`)."""
    return _rows(FORGET)


def read_retain() -> list[Mapping[str, str]]:
    """The retain rows (`question`, `answer`)."""
    return _rows(RETAIN)


@cache
def _rows(names: tuple[str, ...]) -> list[Mapping[str, str]]:
    files = _files(names)
    return cached_rows("python-code", files, lambda: _extract_rows(files))


def _extract_rows(files: Sequence[Path]) -> list[Mapping[str, str]]:
    rows: dict[str, Mapping[str, str]] = {}
    for file in files:
        for question, answer in _continuations(file.read_text(encoding="utf-8")):
            rows.setdefault(question, {"question": question, "answer": answer})
    return list(rows.values())


def _files(names: tuple[str, ...]) -> list[Path]:
    root = Path(sysconfig.get_path("stdlib"))
    in_docs = {docs_dataset.source_file(module) for module in docs_dataset.MODULES}
    candidates = [
        file for name in names for file in (root / f"{name}.py", *(root / name).rglob("*.py"))
    ]
    return [
        file
        for file in sorted(candidates)
        if file.is_file() and file not in in_docs and not TESTS & set(file.relative_to(root).parts)
    ]


def _continuations(source: str) -> Iterator[tuple[str, str]]:
    """Question and answer of each function: head and first line of its body; the lines after."""
    lines = source.splitlines(keepends=True)
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        body = node.body[1:] if ast.get_docstring(node) else node.body
        if not body or body[0].lineno == node.lineno:
            continue
        head = "".join(lines[node.lineno - 1 : node.body[0].lineno - 1])
        rest = lines[body[0].lineno - 1 : node.end_lineno]
        answer = "".join(rest[1 : 1 + MAX_LINES])
        longest = max(len(answer), len(head))
        if len(answer.strip()) >= MIN_CHARACTERS and longest <= MAX_CHARACTERS:
            yield head + rest[0], answer
