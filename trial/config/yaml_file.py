"""A YAML file as plain values, with the line of every key.

Stricter and safer than PyYAML's own loader: scalars follow YAML 1.2's core schema (`1e-4` is a
float and `no` a text, as in `eval_strategy: no`), keys must be text and unique, and size, depth,
aliases and numbers are bounded.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from trial.config.errors import ConfigError, Problem

MAX_BYTES = 128 * 1024
MAX_VALUES = 5_000
"""Limit of values with aliases expanded: nine lines of YAML can expand to a billion."""
MAX_TEXT = 8 * MAX_BYTES
"""Limit of characters in all values together, with aliases expanded."""
MAX_DEPTH = 40
MAX_PROBLEMS = 200
MAX_PATH = 2000
"""Characters of a dotted key: each of the values below a long one would repeat it."""

_TAG = "tag:yaml.org,2002:"
_INT = re.compile(r"[-+]?[0-9]+(_[0-9]+)*|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF|nan|NaN|NAN)")
_NULL = ("", "~", "null", "Null", "NULL")
_BOOL = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}


class _Loader(yaml.SafeLoader):
    """A PyYAML loader without YAML 1.1's types; `_scalar` decides what a plain scalar means."""

    def resolve(self, kind: type[yaml.Node], value: Any, implicit: Any) -> str:
        """The tag of a node that names none."""
        if kind is not yaml.ScalarNode:
            return f"{_TAG}{'seq' if kind is yaml.SequenceNode else 'map'}"
        if not implicit[0]:
            return f"{_TAG}str"
        return f"{_TAG}{'merge' if value == '<<' else 'plain'}"

    def fetch_flow_collection_start(self, token: type[yaml.Token]) -> None:
        """Begin `[` or `{`; here, since PyYAML's time is quadratic in the depth of brackets."""
        if self.flow_level >= MAX_DEPTH:
            raise _Refusal("", f"must not be nested deeper than {MAX_DEPTH}", line=self.line + 1)
        super().fetch_flow_collection_start(token)


@dataclass(slots=True)
class Document:
    """Plain values, and the line of each key."""

    content: Any
    lines: dict[str, int] = field(default_factory=dict)
    """Line of each key and list item by dotted path; `""` is the document's own."""


class _Refusal(Exception):  # noqa: N818
    """A mistake at a line."""

    def __init__(self, key: str, expected: str, got: str = "", line: int | None = None) -> None:
        self.key, self.expected, self.got, self.line = key, expected, got, line


def read(path: Path) -> Document:
    """The file's values.

    Raises:
        ConfigError: it cannot be read, or is not the YAML accepted here; names the line.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError([Problem("", f"cannot be read: {reason}", where=str(path))]) from error
    if len(data) > MAX_BYTES:
        raise ConfigError([Problem("", f"must not exceed {MAX_BYTES} bytes", where=str(path))])
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        problem = Problem("", "must be UTF-8 text", f"byte {data[error.start]:#04x}")
        raise ConfigError([_at(problem, str(path), line)]) from error
    return parse(text, str(path))


def parse(text: str, where: str) -> Document:
    """The values of a YAML text; `where` names it in problems.

    Raises:
        ConfigError: it is not the YAML accepted here; names the line.
    """
    try:
        node = yaml.compose(text, Loader=_Loader)
        if node is None:
            return Document(None)
        reader = _Reader()
        content = reader.value(node, "", node.start_mark.line + 1)
    except yaml.reader.ReaderError as error:
        line = text[: error.position].count("\n") + 1
        problem = Problem("", f"a character that YAML does not allow: {error.character:#x}")
        raise ConfigError([_at(problem, where, line)]) from error
    except yaml.YAMLError as error:
        raise ConfigError([_syntax(error, where)]) from error
    except _Refusal as error:
        raise ConfigError([_at(Problem("", error.expected), where, error.line)]) from error
    except RecursionError as error:
        raise ConfigError([Problem("", "is nested too deeply", where=where)]) from error
    if found := reader.problems[:MAX_PROBLEMS]:
        problems = [_at(Problem(r.key, r.expected, r.got), where, r.line) for r in found]
        if len(reader.problems) > MAX_PROBLEMS:
            rule = f"has more than {MAX_PROBLEMS} mistakes; the first ones are listed"
            problems.append(Problem("", rule, where=where))
        raise ConfigError(problems)
    return Document(content, reader.lines)


def _at(problem: Problem, where: str, line: int | None) -> Problem:
    place = where if line is None or where.startswith("--set") else f"{where}:{line}"
    return Problem(problem.key, problem.expected, problem.got, problem.near, place)


def _syntax(error: yaml.YAMLError, where: str) -> Problem:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    text = getattr(error, "problem", None) or getattr(error, "context", None) or str(error)
    if "'\\t'" in text:
        text = "found a tab: indent with spaces"
    problem = Problem("", f"is not valid YAML: {text}")
    return _at(problem, where, mark.line + 1 if mark else None)


class _Reader:
    """Converts the nodes of one document into values; collects mistakes and goes on."""

    def __init__(self) -> None:
        self.lines: dict[str, int] = {}
        self.problems: list[_Refusal] = []
        self._count = self._characters = 0
        self._open: list[int] = []

    def value(self, node: yaml.Node, key: str, line: int) -> Any:
        """The value of a node; None, with a problem collected, where it has a mistake."""
        self.lines.setdefault(key, line)
        try:
            return self._value(node, key)
        except _Refusal as refusal:
            refusal.line = refusal.line or node.start_mark.line + 1
            if self._count > MAX_VALUES or self._characters > MAX_TEXT:
                raise
            self.problems.append(refusal)
            return None

    def _value(self, node: yaml.Node, key: str) -> Any:
        self._count += 1
        if self._count > MAX_VALUES:
            raise _Refusal("", f"must not hold more than {MAX_VALUES} values, aliases expanded")
        if isinstance(node, yaml.ScalarNode):
            self._characters += len(node.value)
            if self._characters > MAX_TEXT:
                rule = f"must not hold more than {MAX_TEXT} characters, aliases expanded"
                raise _Refusal("", rule)
            return _scalar(node, key)
        if id(node) in self._open:
            raise _Refusal(key, "an alias must not contain itself")
        if len(self._open) >= MAX_DEPTH:
            raise _Refusal(key, f"must not be nested deeper than {MAX_DEPTH}")
        self._open.append(id(node))
        try:
            return self._collection(node, key)
        finally:
            self._open.pop()

    def _collection(self, node: yaml.Node, key: str) -> Any:
        if isinstance(node, yaml.SequenceNode) and node.tag == f"{_TAG}seq":
            return [
                self.value(item, f"{key}.{index}" if key else str(index), _line(item))
                for index, item in enumerate(node.value)
            ]
        if isinstance(node, yaml.MappingNode) and node.tag == f"{_TAG}map":
            return self._mapping(node, key)
        raise _Refusal(key, "a YAML tag is not allowed here", node.tag)

    def _mapping(self, node: yaml.MappingNode, key: str) -> dict[str, Any]:
        content: dict[str, Any] = {}
        first: dict[str, int] = {}
        for name_node, value_node in node.value:
            if name_node.tag == f"{_TAG}merge":
                continue
            name = self._name(name_node, key)
            if name is None:
                continue
            path = f"{key}.{name}" if key else name
            if len(path) > MAX_PATH:
                rule = f"a key, with those above it, has at most {MAX_PATH} characters"
                self.problems.append(_Refusal(key, rule, f"{name[:40]!r}...", _line(name_node)))
                continue
            if name in first:
                said = f"a second time, first on line {first[name]}"
                refusal = _Refusal(path, "a key stands once", said, _line(name_node))
                self.problems.append(refusal)
                continue
            first[name] = _line(name_node)
            content[name] = self.value(value_node, path, _line(name_node))
        for name, value in self._merged(node, key):
            content.setdefault(name, value)
        return content

    def _merged(self, node: yaml.MappingNode, key: str) -> Iterator[tuple[str, Any]]:
        """Keys and values that `<<` merges into a mapping; explicit keys take precedence."""
        for name_node, value_node in node.value:
            if name_node.tag != f"{_TAG}merge":
                continue
            merged = self.value(value_node, key, _line(name_node))
            for content in merged if isinstance(merged, list) else [merged]:
                if isinstance(content, dict):
                    yield from content.items()
                elif content is not None:
                    self.problems.append(
                        _Refusal(key, "`<<` merges mappings", repr(content), _line(name_node))
                    )

    def _name(self, node: yaml.Node, key: str) -> str | None:
        got = "a collection"
        if isinstance(node, yaml.ScalarNode):
            value = _scalar(node, key)
            if isinstance(value, str) and value:
                return value
            got = repr(value)
        self.problems.append(_Refusal(key, "a key is a text", got, _line(node)))
        return None


def _line(node: yaml.Node) -> int:
    return node.start_mark.line + 1


def _scalar(node: yaml.ScalarNode, key: str) -> Any:
    """The value of a scalar by YAML 1.2's core schema."""
    tag = node.tag.removeprefix(_TAG)
    if tag == "str":
        return node.value
    if tag not in ("plain", "null", "bool", "int", "float"):
        raise _Refusal(key, "a YAML tag is not allowed here", node.tag)
    value = _plain(node.value)
    too_large = isinstance(value, int) and abs(value) >= 2**63
    if too_large or (isinstance(value, float) and not math.isfinite(value)):
        raise _Refusal(key, "numbers must be finite and below 2**63", node.value[:40])
    return value


def _plain(text: str) -> Any:
    if text in _NULL:
        return None
    if text in _BOOL:
        return _BOOL[text]
    if _INT.fullmatch(text):
        base = {"0o": 8, "0x": 16}.get(text[:2], 10)
        return int(text, base) if len(text) < 100 else math.inf
    if _FLOAT.fullmatch(text):
        return float(text)
    return float(text.replace(".", "")) if _NOT_FINITE.fullmatch(text) else text
