"""Jinja environments for HTML and Markdown."""

from __future__ import annotations

import re
from functools import cache
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup, escape


@cache
def environment(html: bool) -> jinja2.Environment:
    """Environment of the package's templates; HTML templates escape all values."""
    made = jinja2.Environment(
        loader=jinja2.PackageLoader("results"), autoescape=html, trim_blocks=True,
        lstrip_blocks=True, undefined=jinja2.StrictUndefined, keep_trailing_newline=True,
    )  # fmt: skip
    made.filters |= {"words": words, "sortkey": sortkey}
    return made


def file(name: str) -> str:
    """The text of a file beside the templates."""
    return resources.files("results").joinpath("templates", name).read_text(encoding="utf-8")


def words(text: str) -> Markup:
    """HTML of a text: escaped, with `<code>` elements for the parts in backquotes."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def sortkey(value: Any) -> str:
    """Short sort key of a cell."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:.10g}"
