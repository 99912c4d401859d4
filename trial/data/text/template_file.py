"""The user's own chat template (`data.chat_template`): a Jinja file, or its text. Torch-free."""

from __future__ import annotations

import copy
import hashlib
from pathlib import Path
from typing import Any

from jinja2 import TemplateSyntaxError, meta, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from trial.config.errors import ConfigError, Problem, nearest
from trial.config.paths import is_template_text

KEY = "data.chat_template"
INLINE = "(inline)"
"""Stands for the name of a template that is written into the configuration."""


class _Generation(Extension):
    """`{% generation %}`, around what an assistant writes, as transformers has it."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        """The block between the markers."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def template_name(given: str) -> str:
    """The name of the file, for errors and summaries."""
    return INLINE if is_template_text(given) else Path(given).name


def template_hash(text: str) -> str:
    """The first 12 hexadecimal digits of a template's SHA-256."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:12]


def read_template(given: str) -> str:
    """The text of the template.

    Raises:
        ConfigError: the file cannot be read, or is no template of messages; names the line.
    """
    if is_template_text(given):
        text = given
    else:
        try:
            text = Path(given).expanduser().read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            rule = f"a file with a Jinja template, in UTF-8 ({reason})"
            raise ConfigError([Problem(KEY, rule, repr(given))]) from error
    if problem := _problem(text, template_name(given)):
        raise ConfigError([problem])
    return text


def template_problems(given: str | None) -> list[Problem]:
    """Why a template cannot be used; none for null."""
    try:
        if given is not None:
            read_template(given)
    except ConfigError as error:
        return list(error.problems)
    return []


def _problem(text: str, name: str) -> Problem | None:
    """A mistake that can be seen without a row."""
    # As transformers compiles chat templates.
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
    )
    try:
        tree = environment.parse(text)
        environment.compile(tree)
    except TemplateSyntaxError as error:
        lines = text.splitlines() or [""]
        line = lines[min(error.lineno, len(lines)) - 1].strip()
        return Problem(KEY, f"{name} line {error.lineno}: Jinja ({error.message})", repr(line[:80]))
    names = meta.find_undeclared_variables(tree)
    if "messages" in names:
        return None
    rule = f"{name}: a Jinja template that writes the conversation in `messages`"
    near = "messages" if nearest("messages", sorted(names)) else ""
    return Problem(KEY, rule, f"one that reads {', '.join(sorted(names)) or 'nothing'}"[:100], near)


def with_template(tokenizer: Any, text: str) -> Any:
    """A copy of a tokenizer with another chat template; the tokenizer itself stays what it is."""
    copied = copy.copy(tokenizer)
    copied.chat_template = text
    return copied
