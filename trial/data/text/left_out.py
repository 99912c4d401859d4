"""What a chat template leaves out of a row: found by its text, and by words put in its place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jinja2 import TemplateError

FAILURES = (TemplateError, TypeError, ValueError, KeyError, AttributeError, IndexError)
"""What templates raise for messages that they do not expect."""
_THOUGHTS = ("reasoning_content", "thinking")
"""Keys of a message with what was thought before the answer; past thoughts may be left out."""

Entries = list[dict[str, Any]]
"""Messages, or tools, as templates take them."""


def left_out(
    messages: Entries, tools: Entries | None, text: str, render: Callable[[Entries, Any], str]
) -> str:
    """What the text of a row lacks, in words; empty for nothing.

    Args:
        messages: of the row.
        tools: of the row.
        text: of the row, as the template writes it.
        render: gives the template's text for messages and tools.
    """
    for message in messages:
        if message["role"] in ("system", "user") and message["content"].strip() not in text:
            return f"a message of the {message['role']}"
    last = messages[-1]
    thoughts = [str(last[key]).strip() for key in _THOUGHTS if last.get(key)]
    if thoughts and not any(thought in text for thought in thoughts):
        return "what was thought before the answer"
    if not tools and all(_is_seen(message, text) for message in messages):
        return ""
    return _unseen(messages, tools, text, render)


def _is_seen(message: dict[str, Any], text: str) -> bool:
    """Whether a message is surely in the text; a tool's result may be so short as to be in it."""
    is_other = message["role"] == "tool" or "tool_calls" in message
    return not is_other and message["content"].strip() in text


def _unseen(
    messages: Entries, tools: Entries | None, text: str, render: Callable[[Entries, Any], str]
) -> str:
    """What does not come out where it is replaced by a word of its own.

    The names of functions alone say little: a call has them, and the description of its tool too.
    """
    places: dict[str, str] = {}

    def word(what: str) -> str:
        places[f"qxj{len(places)}jxq"] = what
        return next(reversed(places))

    def renamed(entry: dict[str, Any], what: str) -> dict[str, Any]:
        function = entry.get("function")
        if not isinstance(function, dict):
            return entry
        return {**entry, "function": {**function, "name": word(what)}}

    replaced = []
    for message in messages:
        other = dict(message)
        if message["role"] not in ("system", "user") and message["content"].strip():
            other["content"] = word(f"a message of the {message['role']}")
        if calls := message.get("tool_calls"):
            other["tool_calls"] = [renamed(call, "the tool calls") for call in calls]
        replaced.append(other)
    try:
        written = render(replaced, [renamed(tool, "the tools") for tool in tools or ()] or None)
    except FAILURES:
        # The template looks at what stands there: then the names have to do.
        calls = [call for message in messages for call in message.get("tool_calls", ())]
        named = {"the tool calls": calls, "the tools": tools or []}
        return next((what for what, all_ in named.items() if not _are_named(all_, text)), "")
    return next((what for name, what in places.items() if name not in written), "")


def _are_named(entries: Entries, text: str) -> bool:
    """Whether a text has the name of every function."""
    functions = [entry.get("function") for entry in entries]
    return all(str(f.get("name", "")) in text for f in functions if isinstance(f, dict))
